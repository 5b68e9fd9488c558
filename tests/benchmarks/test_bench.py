"""The benchmark harness: all sides compute the same. No test here measures time."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from processes import search_path

import xbp
from xbp.benchmarks import process, turns
from xbp.benchmarks.comparison import deviation, disagreements, spread
from xbp.benchmarks.harness import Harness
from xbp.benchmarks.options import QUICK, Options
from xbp.benchmarks.process import SideError, environment
from xbp.benchmarks.tables import add_floors, file_stem, markdown, results
from xbp.benchmarks.worker import Worker, summary
from xbp.benchmarks.workloads import (
    NEXT,
    SAME,
    SIDES,
    WORKLOADS,
    Side,
    flop,
    make_model,
    step_products,
    takes_part,
    traffic,
)
from xbp.cli import main
from xbp.random import permutation
from xbp.testing import emulated_graphs
from xbp.training.capture import recordings_of

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
        path = {"PYTHONPATH": search_path()}
        new = Side(name, str(file), "xbp", environment=path, **options)
        monkeypatch.setitem(SIDES, name, new)
        for key, workload in WORKLOADS.items():
            if "xbp" in workload.sides and name != "xbp":
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
        assert list(rows) == [n for n, w in WORKLOADS.items() if takes_part(w.where, "numpy")]
        for name, row in rows.items():
            expected = [s for s in WORKLOADS[name].sides if s in ("xbp", "reference", "numpy")]
            expected += [s for s in WORKLOADS[name].sides if s in INSTALLED]
            assert sorted(row["costs"]) == sorted(expected), name
            for costs in row["costs"].values():
                assert costs
                assert all(cost > 0 or name == "growth" for cost in costs)

    def test_all_sides_computed_the_same(self, found):
        checked = [row for row in found[0]["rows"] if "deviation" in row]
        assert {row["workload"] for row in checked} == {
            *("lenet5-train", "lenet5-infer", "mlp", "rnn", "accuracy", *NEXT),
        }
        for row in checked:
            assert set(row["losses"]) == set(row["costs"])
            assert max(row["deviation"].values()) <= WORKLOADS[row["workload"]].same
            assert all(math.isfinite(loss) for losses in row["losses"].values() for loss in losses)
        losses = {row["workload"]: row["losses"]["xbp"] for row in checked}
        assert losses["lenet5-train"][0] == pytest.approx(math.log(10), rel=0.1)  # new weights
        assert losses["lenet5-train"][0] != losses["lenet5-train"][1]  # and it trains

    def test_one_side_of_xbp_is_its_reference(self, found):
        assert found[0]["versions"]["reference"]["accelerators"] == "off"
        assert found[0]["versions"]["xbp"]["accelerators"] != "off"

    def test_floor(self, found):
        rows = {row["workload"]: row for row in found[0]["rows"]}
        for name in ("lenet5-train", "lenet5-infer", "mlp", "rnn", *NEXT):
            assert rows[name]["floor"] > 0
        assert rows["mlp"]["products"] > 0

    def test_tables(self, found):
        text = found[1]
        assert found[3] == text
        for workload in WORKLOADS.values():
            heading = f"## {workload.title} ({workload.unit})"
            assert (heading in text) == takes_part(workload.where, "numpy")
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
        assert train["deviation"][wrong] > SAME
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

    def test_a_side_that_breaks_later_costs_itself_only(self, side):
        broken = side(["def wait(self, value):", "    raise MemoryError('full')"])
        with Harness(quick(), ["xbp", broken]) as harness:
            harness.measure("memory")
            harness.measure("call")
        assert [(row["workload"], set(row["costs"])) for row in harness.rows] == [
            *(("memory", {"xbp"}), ("call", {"xbp"})),
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
    dropped = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "XBP_BACKEND", "NVIDIA_TF32_OVERRIDE")
    dropped += ("XBP_CAPTURE",)
    for name in (*dropped, "XBP_ACCELERATE"):
        monkeypatch.setenv(name, "1")
    ours, reference, peer = (environment(n, quick(), 3) for n in ("xbp", "reference", "torch"))
    for env in (ours, reference, peer):
        assert (
            env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == env["XBP_NUM_THREADS"] == "3"
        )
        assert set(dropped).isdisjoint(env)
        assert env["JAX_PLATFORMS"] == "cpu"
    assert reference["XBP_ACCELERATE"] == "0"
    assert str(ROOT) in environment("xbp-numpy", quick(), 1)["PYTHONPATH"]
    assert "JAX_PLATFORMS" not in environment("jax", quick(backend="cupy"), 1) or (
        "JAX_PLATFORMS" in os.environ
    )
    assert environment("xbp", quick(backend="cupy"), 1)["CUPY_TF32"] == "0"
    assert "XBP_ACCELERATE" not in ours
    assert environment("xbp", quick(backend="cupy", tf32=True), 1)["CUPY_TF32"] == "1"


# --- data that stay on the device, and a Trainer that takes its own batches -----------------------


@pytest.fixture
def trainer(monkeypatch):
    """What all of a GPU's sides do, on the CPU: a function that makes the harness."""
    by_trainer = dataclasses.replace(SIDES["xbp"], options={"trainer": True})
    monkeypatch.setitem(SIDES, "xbp", by_trainer)

    def make(sides, **options):
        harness = Harness(quick(**{"batches": (64,)} | options), sides)
        harness.resident = True
        return harness

    return make


class TestResident:
    SIDES = ("xbp", "xbp-eager", *(["torch"] if "torch" in INSTALLED else []))

    def test_all_sides_take_the_batches_of_the_trainer(self, trainer):
        with trainer(self.SIDES) as harness:
            for name in ("lenet5-train", "mlp", "accuracy"):
                harness.measure(name)
        assert harness.failures == []
        assert len(harness.rows) == 3
        for row in harness.rows:
            assert set(row["costs"]) == set(self.SIDES)
            assert row["losses"]["xbp"] == pytest.approx(row["losses"]["xbp-eager"], rel=1e-12)
            assert len(row["losses"]["xbp"]) == 2  # short epochs
            assert all(cost > 0 for costs in row["costs"].values() for cost in costs)

    def test_another_shuffle_is_not_timed(self, trainer, side):
        wrong = side(
            [
                "def take(self, x, rows):",
                "    return super().take(x, rows[::-1] // 2)",
            ],
            options={"trainer": False},
        )
        with trainer(["xbp", wrong]) as harness:
            harness.measure("lenet5-train")
        assert set(harness.rows[0]["costs"]) == {"xbp"}
        assert "not timed" in harness.failures[0]

    def test_whole_epochs_are_counted_as_the_steps_they_are(self):
        """Five steps are wanted, an epoch has three of 64, 64 and 32 images."""
        made = []

        class Trainer:
            def fit(self, x, y, epochs, batch_size, verbose):
                made.append((epochs, batch_size, verbose))

        from xbp.benchmarks.side_xbp import Trained

        network = Trained(["lenet5"], "sgd", 0.01, [])
        network.trainer = Trainer()
        x = xbp.to_numpy(xbp.asarray([0.0] * 160))
        assert network.fit(x, x, 64, 5) == 6
        assert network.fit(x, x, 64, 1) == 3
        assert made == [(2, 64, False), (1, 64, False)]

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_recorded_steps_are_the_same(self, optimizer):
        """Weights are loaded anew between two fits: what has been recorded must follow."""
        pytest.importorskip("torch")
        from xbp.benchmarks.side_xbp import Network, Trained

        model, rng = ["mlp", 784, 16, 10], np.random.default_rng(0)
        x, y = rng.random((96, 784), np.float32), rng.integers(0, 10, 96)
        with xbp.use_backend("numpy"):
            weights = make_model(*model, rng=0).state_dict()
            eager, expected = Network(model, optimizer, 0.01), []
            eager.load(weights)
            for epoch in range(3):
                rows = permutation(0, epoch, 96).reshape(3, 32)
                expected.append(np.mean([eager.step(x[part], y[part]) for part in rows]))
        with xbp.use_backend("torch") as backend, emulated_graphs():
            trained = Trained(model, optimizer, 0.01, [])
            data = backend.asarray(x), backend.asarray(y)
            for _ in range(2):
                trained.load(weights)
                assert trained.first(*data, 32, 3) == pytest.approx(expected, rel=1e-5)
                assert trained.fit(*data, 32, 4) == 6
        assert recordings_of(trained.trainer._stepper) is not None
        assert trained.remarks == []

    def test_what_cannot_be_recorded_is_told(self, side):
        silent = side(
            [
                "def network(self, *model):",
                "    network = super().network(*model)",
                "    first = network.first",
                "    network.first = lambda *a: self.remarks.append('it is slow') or first(*a)",
                "    return network",
            ],
            options={"trainer": True},
        )
        with Harness(quick(batches=(64,)), [silent]) as harness:
            harness.resident = True
            harness.measure("lenet5-train")
        assert set(harness.rows[0]["costs"]) == {silent}
        assert harness.failures == ["LeNet-5, training step 64, fake: it is slow"]

    def test_warnings_become_remarks(self, monkeypatch):
        from xbp.benchmarks.side_xbp import Trained

        class Trainer:
            def fit(self, *_, verbose):
                warnings.warn("not recorded", stacklevel=1)
                return {"loss": [1.0, 2.0]}

        network = Trained(["lenet5"], "sgd", 0.01, [])
        network.trainer = Trainer()
        assert network.first(0, 0, 64, 2) == [1.0, 2.0]
        assert network.remarks == ["not recorded"]

    def test_epochs_without_a_target_are_all_made(self, trainer, monkeypatch):
        monkeypatch.setattr(turns, "QUICK", dataclasses.replace(QUICK, most_epochs=3))
        with trainer(["xbp", "xbp-eager"]) as harness:
            harness.measure("ten-epochs")
            harness.measure("accuracy")
        ten, until = harness.rows
        for side in ("xbp", "xbp-eager"):
            ((last,),) = ten["epochs"][side]  # looked at once, at the end
            ((first,),) = until["epochs"][side]  # the goal is 0 %, reached after one epoch
            assert last["accuracy"] > first["accuracy"]
        assert (
            ten["epochs"]["xbp"][0][0]["accuracy"] == ten["epochs"]["xbp-eager"][0][0]["accuracy"]
        )
        text = markdown(results(harness))
        accuracy = ten["epochs"]["xbp"][0][0]["accuracy"]
        assert f"- xbp: test accuracy {accuracy:.2%} to {accuracy:.2%}\n" in text

    def test_seeds(self, trainer):
        with trainer(["xbp", "xbp-numpy"], rounds=2) as harness:
            harness.measure("seeds")
        assert harness.failures == []
        (row,) = harness.rows
        assert row["costs"]["xbp"] == row["costs"]["xbp-numpy"]
        assert 0 < row["costs"]["xbp"][0] < 1

    def test_disagreements(self):
        one, far = [0.010, 0.014], [0.020, 0.021]
        assert disagreements({"xbp": [0.013, 0.015], "xbp-numpy": one}) == []
        (line,) = disagreements({"xbp": far, "xbp-numpy": one})
        assert "xbp is 2.050%" in line
        assert "xbp-numpy 1.200%" in line
        assert "0.400%" in line
        assert len(disagreements({"xbp": [0.001, 0.002], "xbp-numpy": one})) == 1  # too good
        assert disagreements({"xbp": [0.1, None], "xbp-numpy": [0.1]}) == []

    def test_memory_that_grows_is_told(self, trainer, side):
        leak = side(
            [
                "def grow(self, network, *rest):",
                "    import numpy as np",
                "    step, kept = network.optimizer.step, []",
                "    def leaking():",
                "        kept.append(np.ones(2**23, np.float32))",
                "        step()",
                "    network.optimizer.step = leaking",
                "    return super().grow(network, *rest)",
            ],
            options={"trainer": False},
        )
        with trainer(["xbp", leak]) as harness:
            harness.measure("growth")
        assert len(harness.rows) == 2
        (failure,) = harness.failures
        assert "growth of memory" in failure
        assert ", fake: " in failure
        assert "bytes (process) from epoch 1 to 2" in failure


# --- a GPU, as far as it can be imagined ---------------------------------------------------------


class TestImaginedGPU:
    """The harness's ways with a GPU; the side computes on numpy and says what a GPU would say."""

    LINES = (
        "def held(self):",
        "    cls = type(self)",
        "    return {'most': 5_000_000, 'now': 7, 'device': 2**20 * (os.getpid() % 4096)}",
        "def launch(self, kernels, graph):",
        "    return lambda: None",
    )

    @pytest.fixture
    def gpu(self, side, monkeypatch):
        lines = [*self.LINES, "def wait(self, value):", "    pass"]
        imagined = side(lines, "xbp", options={"backend": "numpy", "trainer": True})
        monkeypatch.setitem(SIDES, "xbp", dataclasses.replace(SIDES[imagined], title="xbp"))
        return lambda **o: Harness(quick(**{"backend": "cupy", "batches": (64,)} | o), ["xbp"])

    @pytest.mark.parametrize("tf32", [False, True])
    def test_floors(self, gpu, tf32):
        with gpu(tf32=tf32) as harness:
            for name in ("sgemm", "copy", "launch", "lenet5-train"):
                harness.measure(name)
        assert harness.failures == []
        labels = [(row["workload"], row["label"]) for row in harness.rows]
        assert labels == [
            *(("sgemm", "float32"), ("sgemm", "TF32"), ("copy", "")),
            *(("launch", "1 kernel"), ("launch", "1 kernel, a graph")),
            *(("launch", "100 kernels"), ("launch", "100 kernels, a graph")),
            ("lenet5-train", "64"),
        ]
        found = results(harness)
        rows = {(row["workload"], row["label"]): row for row in found["rows"]}
        products, step = rows["sgemm", "TF32" if tf32 else "float32"], rows["lenet5-train", "64"]
        least = products["medians"]["xbp"] * step["flop"] / products["flop"]
        copying = rows["copy", ""]["medians"]["xbp"] * step["bytes"] / rows["copy", ""]["bytes"]
        assert step["floor"] == pytest.approx(max(least, copying))
        assert "| 100 kernels, a graph |" in markdown(found)

    def test_tf32_reaches_the_workers_of_its_row(self, gpu, monkeypatch):
        seen = []
        real = process.environment
        monkeypatch.setattr(
            process,
            "environment",
            lambda *args: seen.append(args[1].tf32) or real(*args),
        )
        with gpu() as harness:
            harness.measure("sgemm")
        assert seen == [False, False, True]  # the resident one, and one for each row

    def test_memory_is_what_the_driver_gave(self, gpu, monkeypatch):
        given = iter([100, 160])
        monkeypatch.setattr(Harness, "_on_device", lambda self: next(given))
        with gpu() as harness:
            harness.measure("memory")
        assert harness.rows[0]["costs"] == {"xbp": [60]}
        assert harness.rows[0]["held"]["xbp"][0]["most"] == 5_000_000
        assert "- xbp: of this 5 MB in the pool of its library" in markdown(results(harness))

    def test_on_device_asks_a_worker_that_was_there(self, gpu):
        with gpu() as harness:
            assert harness._on_device() == harness._on_device() > 0
            del harness.workers["xbp"]
            harness.measure("memory")
        assert harness.rows == []
        assert "neither takes part" in harness.failures[0]

    def test_kernels(self, gpu, side, monkeypatch):
        """Two processes, with and without a first use of the profiler; the larger count is told."""
        with gpu() as harness:
            asked = []

            class Imagined:
                def __init__(self, *_):
                    self.early = False

                def ask(self, command, **job):
                    asked.append(command)
                    self.early |= command == "listen"
                    if command == "timeline":
                        if not self.early:
                            raise SideError("RuntimeError: the profiler saw nothing")
                        events = [{"cat": "kernel", "ts": 1.0, "dur": 3.0, "name": "gemm"}] * 8
                        return summary(events, 4)
                    return None

                def close(self):
                    pass

            monkeypatch.setattr(turns, "SideProcess", Imagined)
            harness.measure("kernels")
        assert asked == ["train", "timeline", "listen", "train", "timeline"]
        assert harness.rows[0]["costs"] == {"xbp": [2.0]}
        text = markdown(results(harness))
        assert "2.0 kernels and 0.0 copies a step; the device is busy for 0.8 of 0.8 µs" in text
        assert "`gemm`" in text
        assert "most of it, 6.0 µs, in 2.0 of" in text

    def test_kernels_cannot_be_counted_without_one(self, monkeypatch):
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="this PyTorch has no GPU"):
            Worker(None).timeline({"steps": 1})

    def test_who_takes_part_where(self):
        def of(table, backend):
            return {name for name, item in table.items() if takes_part(item.where, backend)}

        assert of(SIDES, "cupy") - of(SIDES, "numpy") == {"xbp-eager", "torch-graph", "xbp-numpy"}
        assert of(SIDES, "torch") - of(SIDES, "cupy") == {"sklearn"}
        only = {"launch", "ten-epochs", "seeds", "kernels"}
        assert of(WORKLOADS, "cupy") - of(WORKLOADS, "numpy") == only
        assert of(WORKLOADS, "numpy") <= of(WORKLOADS, "cupy")


def test_a_side_that_breaks_in_its_turn_costs_itself_only(side):
    lines = [
        "def wait(self, value):",
        "    self.waits = getattr(self, 'waits', 0) + 1",
        "    if self.waits > 2: raise MemoryError('full')",
    ]
    with Harness(quick(), ["xbp", side(lines)]) as harness:
        harness.measure("call")
    (row,) = harness.rows
    assert set(row["costs"]) == set(row["medians"]) == {"xbp"}
    assert harness.failures == ["call of an empty layer, fake: MemoryError: full"]


class TestSummary:
    def test_of_a_trace(self):
        def event(cat, ts, dur, name):
            return {"cat": cat, "ts": ts, "dur": dur, "name": name}

        events = [
            event("kernel", 20.0, 10.0, "b"),  # not in order
            event("cpu_op", 0.0, 99.0, "aten::mm"),
            event("kernel", 10.0, 5.0, "a"),
            event("gpu_memcpy", 22.0, 4.0, "Memcpy DtoD"),  # within b
            event("kernel", 28.0, 6.0, "a"),  # overlaps b
            event("gpu_memset", 40.0, 2.0, "Memset"),
            {"name": "a thread", "ph": "M"},
        ]
        found = summary(events, 2)
        assert (found["kernels"], found["copies"]) == (1.5, 1.0)
        assert found["busy"] == (5 + 10 + 4 + 2) / 2
        assert found["span"] == (42 - 10) / 2
        assert found["largest"] == [
            *(["a", 1.0, 5.5], ["b", 0.5, 5.0], ["Memcpy DtoD", 0.5, 2.0], ["Memset", 0.5, 1.0]),
        ]

    def test_nothing_seen(self):
        with pytest.raises(RuntimeError, match="no kernel"):
            summary([{"cat": "gpu_memcpy", "ts": 0.0, "dur": 1.0, "name": "Memcpy"}], 1)


# --- PyTorch's CUDA graph, with a stand-in for CUDA ----------------------------------------------


class Calls:
    """A stand-in for torch.cuda that does everything at once, on the CPU, and writes it down."""

    def __init__(self):
        self.calls = []
        self.graphs = []

    def note(self, name):
        self.calls.append(name)

    def Stream(self):  # noqa: N802
        stream = type("Stream", (), {})()
        stream.wait_stream = lambda other: self.note("the side stream waits")
        return stream

    def current_stream(self):
        stream = type("Stream", (), {})()
        stream.wait_stream = lambda other: self.note("the stream waits")
        return stream

    @contextlib.contextmanager
    def stream(self, stream):
        self.note("on the side stream")
        yield
        self.note("off it")

    def CUDAGraph(self):  # noqa: N802
        graph = type("Graph", (), {})()
        graph.replay = lambda: self.note("replay")
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.note("capture")
        yield
        self.note("captured")


@pytest.fixture
def graphed(monkeypatch):
    """A network of PyTorch's that captures, its calls, and how to make another one."""
    torch = pytest.importorskip("torch")
    from xbp.benchmarks import side_torch

    options = {"backend": "numpy", "device": None, "tf32": False}
    side = side_torch.Side(options | {"threads": torch.get_num_threads()})
    calls = Calls()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(calls, name))
    return side, calls, side_torch


class TestCUDAGraph:
    MODEL = ("mlp", 6, 5, 3)

    def data(self, torch, n=16):
        rng = torch.Generator().manual_seed(0)
        x = torch.rand((n, 6), generator=rng)
        return x, torch.arange(n) % 3

    def weights(self):
        return make_model(*self.MODEL, rng=0).state_dict()

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_a_replay_is_a_step(self, graphed, optimizer):
        """What would be replayed, done: the losses and weights of an eager training."""
        side, calls, module = graphed
        torch = side.torch
        x, y = self.data(torch)
        eager = module.Network(side, self.MODEL, optimizer, 0.1)
        network = module.Graphed(side, self.MODEL, optimizer, 0.1)
        for each in (eager, network):
            each.load(self.weights())
        network.feed(x, y)
        losses = []
        for step, rows in enumerate([[3, 1, 4, 9], [5, 2, 6, 8], [0, 7, 15, 14]]):
            rows = torch.tensor(rows)
            for each in (eager, network):
                each.rate(0.1 / (step + 1))
            value = network.step_at(rows)
            _, static, output = network.graphs[4]
            assert static.tolist() == rows.tolist()
            assert value is output
            again = network.step(x[static], y[static])  # what the replay would have done
            losses.append(float(again.detach()))
            expected = float(eager.step(x[rows], y[rows]).detach())
            assert losses[-1] == pytest.approx(expected, rel=1e-6)
        assert calls.calls.count("replay") == 3
        for p, q in zip(eager.model.parameters(), network.model.parameters(), strict=True):
            assert p.detach().numpy() == pytest.approx(q.detach().numpy(), rel=1e-5, abs=1e-7)
        assert len(set(losses)) == 3

    def test_order_of_calls(self, graphed):
        """As PyTorch's notes ask: wait, warm up on a stream of its own, wait, capture, replay."""
        side, calls, module = graphed
        x, y = self.data(side.torch)
        network = module.Graphed(side, self.MODEL, "adam", 0.1)
        network.load(self.weights())
        real = network.step
        network.step = lambda *batch: calls.note("a step") or real(*batch)
        network.feed(x, y)
        for n in (4, 4, 2, 4):
            network.step_at(side.torch.arange(n))
        capture = [
            *("the side stream waits", "on the side stream", "a step", "a step", "a step"),
            *("off it", "the stream waits", "capture", "a step", "captured"),
        ]
        assert calls.calls == [*capture, "replay", "replay", *capture, "replay", "replay"]

    def test_a_capture_changes_nothing(self, graphed):
        side, _, module = graphed
        torch = side.torch
        network = module.Graphed(side, self.MODEL, "adam", 0.1)
        network.load(self.weights())
        network.feed(*self.data(torch))
        network._capture(torch.arange(4))
        for name, value in network.model.state_dict().items():
            assert torch.equal(value, torch.from_numpy(self.weights()[name]))
        assert network._state()
        assert all(float(t.abs().max()) == 0 for t in network._state())
        network.step(*self.data(torch))
        trained = [t.clone() for t in network._state()]
        network._capture(torch.arange(4))  # of another size, in the middle of a training
        assert all(torch.equal(a, b) for a, b in zip(trained, network._state(), strict=True))
        network.load(self.weights())
        assert all(float(t.abs().max()) == 0 for t in network._state())

    def test_gradients_belong_to_the_graph(self, graphed):
        """None before the capture, so that it makes them; and no later step forgets them."""
        side, _, module = graphed
        network = module.Graphed(side, self.MODEL, "sgd", 0.1)
        network.load(self.weights())
        network.feed(*self.data(side.torch))
        seen, real = [], network.step

        def step(*batch):
            seen.append([p.grad for p in network.model.parameters()])
            return real(*batch)

        network.step = step
        network.step_at(side.torch.arange(4))
        assert seen[-1] == [None] * 4
        assert all(p.grad is not None for p in network.model.parameters())

    def test_other_data_are_captured_anew(self, graphed):
        side, calls, module = graphed
        x, y = self.data(side.torch)
        network = module.Graphed(side, self.MODEL, "sgd", 0.1)
        network.load(self.weights())
        for data in ((x, y), (x, y), (x.clone(), y)):
            network.feed(*data)
            network.step_at(side.torch.arange(4))
        assert calls.calls.count("capture") == 2

    def test_an_empty_kernel_is_captured_after_it_was_loaded(self, graphed, monkeypatch):
        side, calls, _ = graphed
        cuda = side.torch.cuda
        monkeypatch.setattr(cuda, "_sleep", lambda cycles: calls.note(f"sleep {cycles}"))
        monkeypatch.setattr(cuda, "synchronize", lambda: calls.note("wait"))
        replay = side.launch(2, graph=True)
        replay()
        sleeps = ["sleep 0"] * 2
        assert calls.calls == [*sleeps, "wait", "capture", *sleeps, "captured", "replay"]
        calls.calls.clear()
        side.launch(1, graph=False)()
        assert calls.calls == ["sleep 0"] * 2

    def test_max_autotune_on_a_gpu_alone(self, graphed, monkeypatch):
        side, calls, module = graphed
        torch, side.compiled = side.torch, True
        asked = []

        def compiled(what, **options):
            asked.append(options)
            return what

        monkeypatch.setattr(torch, "compile", compiled)
        monkeypatch.setattr(
            torch.compiler, "cudagraph_mark_step_begin", lambda: calls.note("a new step")
        )
        x, y = self.data(torch)
        for side.on_gpu in (False, True):
            network = module.Network(side, self.MODEL, "sgd", 0.1)
            network.load(self.weights())
            network.step(x, y)
        assert asked == [{"dynamic": False}] + [{"dynamic": False, "mode": "max-autotune"}] * 2
        assert calls.calls == ["a new step"]

    def test_without_cuda(self):
        torch = pytest.importorskip("torch")
        from xbp.benchmarks.side_torch import Side as TorchSide

        options = {"device": None, "tf32": False, "threads": torch.get_num_threads()}
        with pytest.raises(RuntimeError, match="a CUDA graph needs a GPU"):
            TorchSide(options | {"backend": "numpy", "graph": True})
        if torch.version.cuda is None:
            with pytest.raises(RuntimeError, match="was built without CUDA"):
                TorchSide(options | {"backend": "cupy"})


def test_jax_without_a_gpu_says_what_to_install(monkeypatch):
    from xbp.benchmarks.side_jax import Side as JaxSide

    jax = type(sys)("jax")
    jax.default_backend = lambda: "cpu"
    monkeypatch.setitem(sys.modules, "jax", jax)
    with pytest.raises(RuntimeError, match=r"JAX runs on the cpu here.*pip install 'jax\[cuda13"):
        JaxSide({"backend": "cupy", "tf32": False, "device": None})


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
            {"workload": "sgemm", "label": "2 threads", "flop": 100, "medians": {"a": 5.0, "b": 4}},
            {"workload": "copy", "label": "2 threads", "bytes": 10, "medians": {"xbp": 2.0}},
            {"workload": "rnn", "label": "8", "flop": 1000, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "rnn", "label": "9", "flop": 100, "bytes": 50, "medians": {"xbp": 20.0}},
            {"workload": "mlp-products", "label": "8", "flop": 9, "medians": {"a": 3.0, "b": 4.0}},
            {"workload": "mlp", "label": "8", "flop": 9, "bytes": 0, "medians": {"xbp": 6.0}},
        ]
        add_floors(rows, "2 threads", "2 threads")
        assert [row["floor"] for row in rows if "floor" in row] == [40.0, 10.0, 0.36]
        assert [row["products"] for row in rows if "products" in row] == [3.0]
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
