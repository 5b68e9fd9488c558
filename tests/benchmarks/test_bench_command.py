"""``xbp bench``: its files, its exit status, and one sentence for each mistake."""

import importlib.util
import json
import subprocess
import sys

import pytest
from quickly import quick

from xbp.benchmarks.harness import Harness
from xbp.benchmarks.tables import file_stem
from xbp.benchmarks.workloads import SIDES, Side


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["lenet6"], ["workload 'lenet6'", "lenet5-train"]),
        (["--side", "theano"], ["side 'theano'", "torch-compiled"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--threads", "100000"], ["--threads must not exceed"]),
        (["--rounds", "0"], ["--rounds"]),
        (["--batch", "0"], ["--batch"]),
        (["call", "--batch", "8"], ["--batch says nothing to call"]),
        (["--backend", "nupmy"], ["no backend 'nupmy'"]),
        (
            ["call", "--json", "no/such/folder/r.json"],
            ["no/such/folder/r.json", "its folder does not exist"],
        ),
        (["lenet5-train", "--quick", "--side", "xbp", "--batch", "9999"], ["1024", "9999"]),
    ],
)
def test_one_sentence(command, args, parts):
    code, out, err = command(*args)
    assert code == 2
    assert out == ""
    sentence = err.splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in sentence


class TestOutput:
    def test_names(self, command, tmp_path):
        folder = tmp_path / "new"
        code, out, err = command("call", "--quick", "--side", "xbp", "--threads", 1, *on(folder))
        assert code == 0
        written = {path.name for path in folder.iterdir()}
        expected = {"cpu_1thread_quick_call.json", "cpu_1thread_quick_call.md"}
        if importlib.util.find_spec("matplotlib"):
            expected.add("cpu_1thread_quick_call.png")
        assert written == expected
        assert (folder / "cpu_1thread_quick_call.md").read_text(encoding="utf-8") == out
        assert f"wrote {folder / 'cpu_1thread_quick_call.json'}" in err

    def test_a_file_of_its_own_comes_first(self, command, tmp_path):
        file = tmp_path / "mine.md"
        options = ("--side", "xbp", "--threads", 1, "--markdown", file, *on(tmp_path))
        assert command("call", "--quick", *options)[0] == 0
        assert file.exists()
        assert not (tmp_path / "cpu_1thread_quick_call.md").exists()
        assert (tmp_path / "cpu_1thread_quick_call.json").exists()

    @pytest.mark.parametrize(
        ("options", "device", "stem"),
        [
            ({}, None, "cpu_1thread"),
            ({"threads": 2, "backend": "torch"}, "cpu", "torch_2threads"),
            ({"backend": "cupy"}, "NVIDIA H200, 140 GiB", "gpu_nvidia_h200"),
            (
                {"backend": "cupy", "tf32": True, "quick": True},
                "A (R) B",
                "gpu_a_r_b_tf32_quick",
            ),
            ({"backend": "cupy"}, None, "gpu_unknown"),
        ],
    )
    def test_stems(self, options, device, stem):
        versions = {"xbp": {"device": device} if device else {}}
        found = {"options": vars(quick(**{"quick": False} | options)), "versions": versions}
        assert file_stem(found) == stem


def on(folder):
    return "--output", folder


def test_a_peer_asked_for_must_be_there(command, monkeypatch):
    monkeypatch.setitem(SIDES, "jax", Side("JAX jit", "side_jax.py", "no_jax", "pip install jax"))
    code, _, err = command("call", "--quick", "--side", "jax")
    assert code == 2
    assert "--side asks for JAX jit (not installed; pip install jax)" in err


def test_a_failure_ends_with_status_2_after_the_tables(command, side):
    wrong = side(["def network(self, *_):", "    raise ValueError('no')"])
    code, out, err = command("lenet5-train", "--quick", "--side", "xbp", "--side", wrong)
    assert code == 2
    assert "## Failed" in out
    assert "1 measurement failed" in err.splitlines()[-1]


def test_each_row_is_written_before_the_next_is_measured(command, tmp_path, monkeypatch):
    file, written = tmp_path / "r.json", []

    def rows():
        return [r["label"] for r in json.loads(file.read_text())["rows"]] if file.exists() else []

    prepare = Harness._prepare

    def look(self, *args):
        written.append(rows())
        return prepare(self, *args)

    monkeypatch.setattr(Harness, "_prepare", look)
    options = ("--quick", "--side", "xbp", "--batch", "8", "--batch", "16", "--json", file)
    assert command("lenet5-train", *options)[0] == 0
    assert written == [[], ["8"]]
    assert rows() == ["8", "16"]


def test_import_xbp_does_not_load_the_benchmarks():
    code = "import sys, xbp; print('xbp.benchmarks' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
