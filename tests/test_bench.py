"""The benchmark harness: what it compares is the same on all sides; nothing here measures time."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xbp
from xbp.benchmarks import harness as harness_module
from xbp.benchmarks.harness import Harness, Options, deviation, environment, spread
from xbp.benchmarks.report import add_floors, markdown, results
from xbp.benchmarks.workloads import SIDES, WORKLOADS, Side, flop, step_products, traffic
from xbp.cli import main

ROOT = Path(xbp.__file__).parents[1]
SIDE_XBP = ROOT / "xbp" / "benchmarks" / "side_xbp.py"
INSTALLED = [
    name
    for name, module in (("torch", "torch"), ("sklearn", "sklearn"), ("jax", "jax"))
    if importlib.util.find_spec(module)
]


def quick(**options):
    chosen = {"backend": "numpy", "device": None, "threads": 1, "tf32": False, "rounds": None}
    return Options(**chosen | {"batches": (), "quick": True} | options)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``xbp bench …`` in this process: its exit status, output and errors."""

    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["xbp", "bench", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def side(tmp_path, monkeypatch):
    """A side that is xbp's with some methods of its own, given as lines of Python."""

    def make(lines, name="fake", **options):
        file = tmp_path / f"side_{name}.py"
        text = f"import os, runpy, sys\nBase = runpy.run_path({str(SIDE_XBP)!r})['Side']\n"
        file.write_text(text + "class Side(Base):\n" + "".join(f"    {x}\n" for x in lines))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        new = Side(name, str(file), "xbp", environment={"PYTHONPATH": path}, **options)
        monkeypatch.setitem(SIDES, name, new)
        for key, workload in WORKLOADS.items():
            if "xbp" in workload.sides:
                sides = (*workload.sides, name)
                monkeypatch.setitem(WORKLOADS, key, dataclasses.replace(workload, sides=sides))
        return name

    return make


# --- all of it -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything, run quickly on whatever is installed: (JSON, Markdown, PNG, standard output)."""
    folder = tmp_path_factory.mktemp("bench")
    files = [folder / name for name in ("r.json", "r.md", "r.png")]
    options = zip(("--json", "--markdown", "--plot"), map(str, files), strict=True)
    sides = [f"--side={name}" for name in ("xbp", "reference", "numpy", *INSTALLED)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--threads=1", *sides]
        + [item for option in options for item in option],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    texts = [file.read_text(encoding="utf-8") for file in files[:2]]
    return json.loads(texts[0]), texts[1], files[2].read_bytes(), done.stdout


class TestEverything:
    def test_each_workload_on_each_of_its_sides(self, found):
        rows = {row["workload"]: row for row in found[0]["rows"]}
        assert list(rows) == list(WORKLOADS)
        for name, row in rows.items():
            expected = [s for s in WORKLOADS[name].sides if s in ("xbp", "reference", "numpy")]
            expected += [s for s in WORKLOADS[name].sides if s in INSTALLED]
            assert sorted(row["costs"]) == sorted(expected), name
            for costs in row["costs"].values():
                assert costs
                assert all(cost > 0 for cost in costs)

    def test_all_sides_computed_the_same(self, found):
        checked = [row for row in found[0]["rows"] if "deviation" in row]
        assert {row["workload"] for row in checked} == {
            *("lenet5-train", "lenet5-infer", "mlp", "rnn", "accuracy"),
        }
        for row in checked:
            assert set(row["losses"]) == set(row["costs"])
            assert max(row["deviation"].values()) <= harness_module.SAME
            assert all(math.isfinite(loss) for losses in row["losses"].values() for loss in losses)
        losses = {row["workload"]: row["losses"]["xbp"] for row in checked}
        assert losses["lenet5-train"][0] == pytest.approx(math.log(10), rel=0.1)  # new weights
        assert losses["lenet5-train"][0] != losses["lenet5-train"][1]  # and it trains

    def test_one_side_of_xbp_is_its_reference(self, found):
        assert found[0]["versions"]["reference"]["accelerators"] == "off"
        assert found[0]["versions"]["xbp"]["accelerators"] != "off"

    def test_floor(self, found):
        rows = {row["workload"]: row for row in found[0]["rows"]}
        for name in ("lenet5-train", "lenet5-infer", "mlp", "rnn"):
            assert rows[name]["floor"] > 0
        assert rows["mlp"]["products"] > 0

    def test_tables(self, found):
        text = found[1]
        assert found[3] == text
        for workload in WORKLOADS.values():
            assert f"## {workload.title} ({workload.unit})" in text
        for table in text.split("## ")[1:-1]:
            lines = [line for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) == 1
            assert len(lines) >= 3
        assert "its numbers mean nothing" in text

    def test_plot(self, found):
        if not importlib.util.find_spec("matplotlib"):
            pytest.skip("matplotlib is not installed")
        assert found[2].startswith(b"\x89PNG")

    def test_json_says_where_and_with_what(self, found):
        assert set(found[0]) == {
            *("machine", "options", "versions", "not_run", "failures", "rows"),
        }
        assert found[0]["machine"]["cpus"] >= 1
        assert found[0]["options"]["threads"] == 1
        assert found[0]["failures"] == []


# --- the comparison is of the same things --------------------------------------------------------


class TestGuard:
    def test_another_network_is_not_timed(self, side):
        wrong = side(
            [
                "def network(self, model, optimizer, lr):",
                "    return super().network(model, optimizer, 1.1 * lr)",
            ]
        )
        with Harness(quick(), ["xbp", wrong]) as harness:
            harness.measure("lenet5-train")
            harness.measure("call")
        train, call = harness.rows
        assert set(train["costs"]) == {"xbp"}
        assert train["deviation"][wrong] > harness_module.SAME
        assert set(call["costs"]) == {"xbp", wrong}
        (failure,) = harness.failures
        assert "LeNet-5, training step 32, fake: its losses 2.3" in failure
        assert "not timed" in failure
        assert failure in markdown(results(harness))

    @pytest.mark.parametrize(
        ("line", "part"),
        [
            ("    raise ValueError('no such thing\\nat all')", "fake: ValueError: no such thing"),
            ("    sys.stderr.write('killed\\n'); os._exit(3)", "fake: the process ended with"),
        ],
    )
    def test_what_a_side_cannot_do_is_told(self, side, line, part):
        broken = side(["def network(self, model, optimizer, lr):", line])
        with Harness(quick(), ["xbp", broken]) as harness:
            harness.measure("lenet5-train")
        assert set(harness.rows[0]["costs"]) == {"xbp"}
        (failure,) = harness.failures
        assert part in failure
        assert "\n" not in failure

    def test_a_side_that_breaks_later_costs_its_row_only(self, side):
        broken = side(["def wait(self, value):", "    raise MemoryError('full')"])
        with Harness(quick(), ["xbp", broken]) as harness:
            harness.measure("memory")
            harness.measure("call")
        assert [(row["workload"], set(row["costs"])) for row in harness.rows] == [
            ("call", {"xbp"}),
        ]
        assert len(harness.failures) == 2

    def test_a_peers_process_holds_no_xbp(self, tmp_path, monkeypatch):
        file = tmp_path / "side_bare.py"
        file.write_text(
            "import sys\nclass Side:\n    def __init__(self, options):\n"
            "        self.versions = {'loaded': ' '.join(sys.modules)}\n"
        )
        monkeypatch.setitem(SIDES, "bare", Side("bare", str(file), "sys"))
        with Harness(quick(), ["bare"]) as harness:
            loaded = harness.versions["bare"]["loaded"].split()
        assert "numpy" in loaded
        assert "xbp" not in loaded

    def test_printing_libraries_do_not_disturb(self, side):
        loud = side(["def wait(self, value):", "    os.write(1, b'warming up')"])
        with Harness(quick(), [loud]) as harness:
            harness.measure("call")
        assert harness.failures == []

    def test_an_absent_peer_is_named_with_what_installs_it(self, monkeypatch):
        absent = Side("Absent", "side_torch.py", "no_such_library", "pip install it")
        monkeypatch.setitem(SIDES, "torch", absent)
        with Harness(quick(), ["xbp", "torch"]) as harness:
            harness.measure("call")
        assert harness.not_run == {"torch": "not installed; pip install it"}
        assert "- Absent: not installed; pip install it" in markdown(results(harness))

    def test_workers_end_with_the_harness(self):
        with pytest.raises(KeyboardInterrupt), Harness(quick(), ["xbp"]) as harness:
            raise KeyboardInterrupt
        assert harness.workers["xbp"].process.poll() is not None
        assert not harness.folder.exists()


def test_environment_of_the_sides(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "XBP_BACKEND", "XBP_ACCELERATE"):
        monkeypatch.setenv(name, "1")
    ours, reference, peer = (environment(n, quick(), 3) for n in ("xbp", "reference", "torch"))
    for env in (ours, reference, peer):
        assert (
            env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == env["XBP_NUM_THREADS"] == "3"
        )
        assert {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "XBP_BACKEND"}.isdisjoint(env)
    assert reference["XBP_ACCELERATE"] == "0"
    assert "XBP_ACCELERATE" not in ours
    assert environment("xbp", quick(backend="cupy", tf32=True), 1)["CUPY_TF32"] == "1"


# --- the arithmetic of the report ----------------------------------------------------------------


class TestNumbers:
    def test_flop_of_lenet5(self):
        # Published figures of the layers: multiplications forward, an image.
        forward = 117_600 + 240_000 + 48_000 + 10_080 + 840
        assert flop("infer", ["lenet5"], 7) == 7 * 2 * forward
        assert flop("train", ["lenet5"], 1) == 2 * (3 * forward - 117_600) == 2_263_920

    def test_flop_of_an_mlp_is_that_of_its_products(self):
        shapes = step_products([784, 4096, 4096, 10], 256)
        total = sum(2 * m * k * n for m, k, n, _ in shapes)
        assert flop("train", ["mlp", 784, 4096, 4096, 10], 256) == total
        assert len(shapes) == 8

    def test_flop_of_an_rnn(self):
        # One image: 28 times 28 × 128 from the input and 128 × 128 from the state, then 128 × 10.
        cell, state, last = 28 * 28 * 128, 28 * 128 * 128, 1280
        assert flop("train", ["rnn", 28, 128, 10], 1) == 2 * (2 * cell + 3 * (state + last))

    def test_traffic(self):
        image, weights = 4 * 784 + 8, 4 * 61_706
        assert traffic("train", ["lenet5"], 64) == 64 * image + 2 * weights
        assert traffic("infer", ["lenet5"], 1) == image + weights

    def test_floor_is_the_longer_of_two(self):
        rows = [
            {"workload": "sgemm", "label": "1 thread", "flop": 1, "medians": {"xbp": 9.0}},
            {"workload": "sgemm", "label": "2 threads", "flop": 100, "medians": {"a": 2.0, "b": 1}},
            {"workload": "copy", "label": "2 threads", "bytes": 10, "medians": {"xbp": 1.0}},
            {"workload": "rnn", "label": "8", "flop": 1000, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "rnn", "label": "9", "flop": 100, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "mlp-products", "label": "8", "flop": 9, "medians": {"a": 3.0, "b": 4.0}},
            {"workload": "mlp", "label": "8", "flop": 9, "bytes": 0, "medians": {"xbp": 6.0}},
        ]
        add_floors(rows, "2 threads")
        assert [row["floor"] for row in rows if "floor" in row] == [10.0, 5.0, 0.09]
        assert rows[-1]["products"] == 3.0

    def test_spread_compares_within_a_round(self):
        assert spread([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == [3.0, 2.0, 4.0]
        assert spread([2.0, None], [None, 1.0]) is None  # a goal not reached
        assert spread([2.0, 3.0], [None, 1.0]) == [3.0, 3.0, 3.0]

    @pytest.mark.parametrize(
        ("values", "apart"),
        [
            ([2.0, 4.0], 0.0),
            ([2.0, 5.0], 0.25),
            ([2.0, math.nan], math.inf),
            ([3, math.nan], math.inf),
        ],
    )
    def test_deviation(self, values, apart):
        assert deviation(values, [2.0, 4.0]) == apart


# --- mistakes ------------------------------------------------------------------------------------


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
        (["call", "--json", "no/such/folder/r.json"], ["no/such/folder/r.json", "exists"]),
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


def test_import_xbp_does_not_load_the_benchmarks():
    code = "import sys, xbp; print('xbp.benchmarks' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
