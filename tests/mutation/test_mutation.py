"""The campaign of planted faults; a sample of them nightly, all by ``python tests/mutation``."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from nightly import NIGHTLY
from processes import search_path

from mutation import plant, wrong
from mutation.campaign import (
    NEAR_SECONDS,
    SURVIVORS,
    Campaign,
    affordable,
    expected,
    remove,
    stale,
)
from mutation.faults import Fault, faults
from mutation.kernels import code_of, compile_into, kernel_faults
from mutation.modules import (
    OF_EACH,
    is_near,
    may_have_near,
    name_of,
    of_tests,
    some_of_each,
    sources,
)
from mutation.suite import processes, without_torch
from xbp.accelerators.cpu import native

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each fault has a process of its own, by fork")
@pytest.mark.skipif(
    not NIGHTLY,
    reason="minutes; HYPOTHESIS_PROFILE=nightly runs it, or python tests/mutation --sample 30",
)
def test_a_sample_of_the_faults_is_caught() -> None:
    command = [sys.executable, "tests/mutation", "--sample", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults caught: 100.00 %" in done.stdout


def test_every_survivor_has_a_reason_and_stands_once() -> None:
    listed = expected()
    assert all(len(group["reason"]) >= 20 for group in listed.values())
    assert len(listed) == SURVIVORS.read_text(encoding="utf-8").count("\n  '''")


def test_a_survivor_that_is_no_more_there_is_found_and_removed() -> None:
    text = """# head\n\n[[group]]\nreason = "a"\nfaults = [\n  '''one''',\n  '''two''',\n]
\n[[group]]\nreason = "b"\nfaults = [\n  '''three''',\n]\n"""
    assert stale(["two", "four"], ["one", "two", "three"]) == ["one", "three"]
    left = remove(text, ["one", "three"])
    assert left == """# head\n\n[[group]]\nreason = "a"\nfaults = [\n  '''two''',\n]\n"""
    assert remove(SURVIVORS.read_text(encoding="utf-8"), []) == SURVIVORS.read_text(
        encoding="utf-8"
    )


# --- modules and tests ---------------------------------------------------------------------------


def test_modules_are_found_by_a_rule_and_have_tests() -> None:
    names = {name_of(path) for path in sources()}
    # one of each room, at every depth
    names_expected = {"nn.batch_norm", "primitives.chain", "models.gpt", "data.augment", "random"}
    names_expected |= {"training.steps", "training.metrics.accuracy", "accelerators.cuda.product"}
    assert names_expected <= names
    assert not names & {"cli.train", "accelerators.cpu.build", "testing.parity", "errors"}
    folders = {"tests/nn", "tests/training", "tests/properties", "tests/test_random.py"}
    assert folders <= set(of_tests(sources()))


@pytest.mark.parametrize(
    ("test", "near"),
    [
        ("tests/nn/test_normalization.py::test_a_layer", True),  # its text names the class
        ("tests/nn/test_normalization.py::test_a_layer[LayerNorm(3)]", False),
        ("tests/nn/test_catalogue.py::test_forward[BatchNorm2d(3)-numpy]", True),
        ("tests/nn/test_catalogue.py::test_forward[Linear(3, 4)-numpy]", False),
        ("tests/optim/test_muon.py::test_it", False),
        ("xbp/nn/batch_norm.py::xbp.nn.batch_norm.BatchNorm1d", True),
        ("xbp/nn/norm.py::xbp.nn.norm.LayerNorm", False),
    ],
)
def test_the_tests_nearest_to_a_module(test: str, near: bool) -> None:
    assert is_near(test, "nn.batch_norm") == near


def test_all_tests_in_a_folder_named_after_a_module_are_near_it() -> None:
    test = "tests/training/capture/test_capture_steps.py::test_random_words_of_a_late_step"
    assert is_near(test, "training.capture")


def test_the_layers_of_a_primitive_are_near_it() -> None:
    test = "tests/nn/test_catalogue.py::test_forward[BatchNorm2d(3)-numpy]"
    assert is_near(test, "primitives.normalization")


@pytest.mark.parametrize(
    ("file", "has"),
    [
        ("tests/nn/test_normalization.py", True),  # named in its text
        ("tests/nn/test_catalogue.py", True),  # named in the table of cases alone
        ("tests/optim/test_muon.py", False),
    ],
)
def test_only_files_with_near_tests_are_collected(file: str, has: bool) -> None:
    assert may_have_near(file, "nn.batch_norm") == has


def test_a_few_parameters_of_each_test_go_first() -> None:
    """Of those that are near."""
    many = [f"test_a[BatchNorm2d({i})]" for i in range(1, 3 * OF_EACH)]
    tests = ["test_b[BatchNorm2d(1)]", *many, "test_c[BatchNorm1d]", "test_c[Linear]"]
    tests = [f"tests/nn/test_catalogue.py::{test}" for test in tests]
    chosen = some_of_each(tests, "nn.batch_norm")
    assert chosen == [0, *range(1, 3 * OF_EACH, 3), 3 * OF_EACH]


def test_only_so_many_seconds_of_tests_are_spent_on_a_fault() -> None:
    half = NEAR_SECONDS / 2
    assert affordable([(3, half), (1, half), (2, 0.1)]) == [(3, half), (1, half)]


def test_asking_for_pytorch_finds_none_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = importlib.machinery.PathFinder
    monkeypatch.setattr(finder, "find_spec", finder.find_spec)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    without_torch()
    assert importlib.util.find_spec("torch") is None
    assert importlib.util.find_spec("numpy") is not None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch")


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks into /proc")
def test_an_interruption_ends_the_processes_and_what_they_started(tmp_path: Path) -> None:
    def slow(_: int) -> int:
        command = "import pathlib, time; time.sleep(30); pathlib.Path('finished').touch()"
        with subprocess.Popen([sys.executable, "-c", command], cwd=tmp_path) as started:
            (tmp_path / "partial").write_text(str(started.pid))
            (tmp_path / "partial").rename(tmp_path / "pid")
        return 0

    def waiting(_: int) -> int:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        return 0

    ended = processes([(1, slow), (2, waiting)], 2)
    assert next(ended) == (2, 0)
    ended.close()
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)  # it is about to end
    assert not (tmp_path / "finished").exists()


def test_an_interrupted_campaign_says_what_it_has_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"names": ["nn.linear"], "sample": 0, "seed": 0, "jobs": 1, "near": False}
    monkeypatch.setattr("mutation.campaign.sources", lambda: [ROOT / "xbp" / "nn" / "linear.py"])
    campaign = Campaign(argparse.Namespace(**options, list=True))
    first, second, *others = map(str, campaign.planted)
    assert capsys.readouterr().out.startswith(f"{first}\n{second}\n")

    def rounds() -> None:
        campaign.caught |= {first: True, second: False}
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "rounds", rounds)
    monkeypatch.setattr(campaign, "known", {})
    out = io.StringIO()
    campaign.run(types.SimpleNamespace(out=out))  # type: ignore[arg-type]
    assert f"interrupted: 2 of {2 + len(others)} faults" in out.getvalue()
    assert "1 of 2 faults caught" in out.getvalue()
    assert f"not caught, and not listed: {second}" in out.getvalue()
    assert campaign.result == 130


# --- faults in Python ----------------------------------------------------------------------------

SOURCE = '''
from __future__ import annotations

SHARE = 0.7

def layer(xp, x, factor: float = 2.0) -> Array:
    """y = factor · max(x, 0) · HALF, its transpose."""
    if x.ndim != 2:
        raise ValueError("2-D")
    mask = x > 0

    def backward(dy):
        return factor * SHARE * xp.where(mask, dy.T, 0.0)

    return (factor * SHARE * xp.maximum(x, 0.0)).T, backward
'''


def toy() -> types.ModuleType:
    module = types.ModuleType("toy")
    module.__file__ = "toy.py"
    exec(SOURCE, vars(module))
    return module


def found() -> list[Fault]:
    return list(faults("toy", ast.parse(SOURCE)))


def test_each_kind_is_found_where_it_belongs() -> None:
    texts = [str(fault) for fault in found()]
    assert len(set(texts)) == len(texts)
    for text in [
        "toy.SHARE, constant: `0.7` as `0.7 * 1.01` in `SHARE = 0.7`",
        "toy.layer, mask: `x > 0` as `(x > 0) | True` in `mask = x > 0`",
        "toy.layer, off by one: `x > 0` as `x >= 0` in `mask = x > 0`",
        "toy.layer, dropped: `xp.maximum(x, 0.0)` as `x` in",
        "toy.layer.<locals>.backward, transposed: `dy.T` as `wrong.untransposed(dy)` in",
        "toy.layer.<locals>.backward, mask: `mask` as `mask | True` in",
        "toy.layer.<locals>.backward, swapped: `xp.where(mask, dy.T, 0.0)` as",
        "toy.layer.<locals>.backward, waits: `factor * SHARE * xp.where(mask, dy.T, 0.0)` as",
    ]:
        assert any(found.startswith(text) for found in texts), text
    assert not any("ndim" in text or "y = factor" in text for text in texts)


@pytest.mark.parametrize("index", range(len(found())), ids=[str(fault) for fault in found()])
def test_a_planted_fault_changes_what_the_function_does(index: int) -> None:
    original, tree, module = ast.parse(SOURCE), ast.parse(SOURCE), toy()
    layer = module.layer  # as somebody else would have imported it
    fault = list(faults("toy", tree))[index]
    fault.plant()
    plant.install(module, fault.function, original, tree)
    x, dy = np.array([[1.0, 2.0], [0.0, -3.1]]), np.array([[0.1, 0.2], [0.3, 0.4]])

    def results(function: object) -> list[object]:
        assert callable(function)
        y, backward = function(np, x)
        dx = backward(dy)
        return [y.tolist(), dx.tolist(), y.dtype, dx.dtype]

    try:
        same = results(layer) == results(toy().layer)
    except Exception:  # a crash is a change, too
        same = False
    assert same == (fault.kind == "waits"), fault  # which shows on a device only


def test_what_is_done_to_a_value() -> None:
    x = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    assert wrong.untransposed(x).tolist() == [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    assert wrong.untransposed(x[None], 0, 2, 1).shape == (1, 3, 2)
    assert wrong.dtype(x).dtype == np.float32 and wrong.rounded(x).dtype == np.float64
    assert 0 < np.abs(wrong.rounded(x) - x).max() < 1e-7
    assert wrong.scaled(np.array([3])).tolist() == [6] and wrong.shifted(3) == 4
    assert wrong.waited(x) is x


# --- faults in C ---------------------------------------------------------------------------------

KERNEL = """
/* The sum of all a[i] * b[i] with i < n. */
#include <stddef.h>
#define TERM(i) sum += a[i] * b[i];
double dot(const double *a, const double *b, long n) {
    double sum = 0;
    if (n < 1) return -1.0; // nothing
    for (long i = 0; i < n; i++) TERM(i);
    return sum;
}
"""


def test_faults_of_c_are_in_its_code_only() -> None:
    code = code_of(KERNEL)
    assert len(code) == len(KERNEL)
    assert "nothing" not in code and "stddef" not in code and "sum += a[i] * b[i]" in code
    texts = {str(fault) for fault in kernel_faults("dot.c", KERNEL)}
    loop = "for (long i = 0; i < n; i++) TERM(i);"
    term = "#define TERM(i) sum += a[i] * b[i];"
    assert {
        f"dot.c, off by one: `<` as `<=` in `{loop}`",
        f"dot.c, off by one: `0` as `1` in `{loop}`",
        f"dot.c, scaled: `*` as `/` in `{term}`",
        f"dot.c, sign: `+=` as `-=` in `{term}`",
        f"dot.c, dropped: `+=` as `=` in `{term}`",
    } <= texts


WITHOUT_FAULT = """
import importlib, sys
from mutation.suite import Suite

failing = ["no test was run"]

def run(suite):
    global failing
    importlib.import_module("xbp.accelerators").registered()
    seen = [suite.watched(index) for index in range(len(suite.items))]
    failing = [item.nodeid for item, what in zip(suite.items, seen) if not what.passed]
    if not any(what.kernels for what in seen):
        failing.append("no test called a kernel")

Suite(["tests/accelerators/test_updates.py"], run)
sys.exit("\\n".join(failing) or 0)
"""


@pytest.mark.skipif(native.library() is None, reason="the kernels are not built here")
def test_tests_of_kernels_pass_where_kernels_can_be_exchanged() -> None:
    """A test that fails without a fault catches none."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FAULT],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": search_path(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_fault_of_c_compiles_and_computes_something_else(tmp_path: Path) -> None:
    import ctypes

    def dot(folder: str, text: str) -> float | None:
        (tmp_path / folder).mkdir()
        path = compile_into(tmp_path / folder, {"dot.c": text}, ["-O0"], "cc")
        if path is None:
            return None
        function = ctypes.CDLL(str(path)).dot
        function.restype = ctypes.c_double
        a, b = (ctypes.c_double * 4)(2, 3, 5, 9), (ctypes.c_double * 4)(7, 11, 13, 9)
        return float(function(a, b, ctypes.c_long(3)))

    assert dot("right", KERNEL) == 112
    results = {
        str(fault): dot(str(index), fault.planted(KERNEL))
        for index, fault in enumerate(kernel_faults("dot.c", KERNEL))
    }
    assert None not in results.values()
    same = [text for text, result in results.items() if result == 112]
    # The refusal of n = 0 cannot be seen with n = 3.
    assert all("if (n < 1) return -1.0;" in text and "mask" not in text for text in same)
