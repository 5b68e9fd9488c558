"""A side with other results is not timed, and one that fails does not stop the others."""

import importlib
import os
import sys

import numpy as np
import pytest
from quickly import ROOT, quick

import xbp
from xbp.benchmarks.harness import Harness
from xbp.benchmarks.process import environment
from xbp.benchmarks.tables import markdown, results
from xbp.benchmarks.turns import SAME_BFLOAT16
from xbp.benchmarks.workloads import SAME, SIDES, Side


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


def test_jax_without_a_gpu_says_what_to_install(monkeypatch):
    from xbp.benchmarks.side_jax import Side as JaxSide

    jax = type(sys)("jax")
    jax.default_backend = lambda: "cpu"
    monkeypatch.setitem(sys.modules, "jax", jax)
    with pytest.raises(RuntimeError, match=r"JAX runs on the cpu here.*pip install 'jax\[cuda13"):
        JaxSide({"backend": "cupy", "tf32": False, "device": None})


@pytest.mark.parametrize("kind", ["xbp", "xbp by Trainer", "torch"])
def test_bfloat16_reaches_the_products(kind):
    """The losses are others than in float32, by no more than is allowed."""
    if kind == "torch":
        pytest.importorskip("torch")
    module = importlib.import_module("xbp.benchmarks.side_" + kind.partition(" ")[0])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 784)).astype("f4"), np.arange(8) % 10
    weights = xbp.models.MLP(784, 16, 10, rng=0).state_dict()
    losses = {}
    for bfloat16 in (False, True):
        how = {"backend": "numpy", "device": None, "tf32": False, "threads": 1}
        how |= {"trainer": "Trainer" in kind, "bfloat16": bfloat16}
        with xbp.use_backend("numpy"):
            side = module.Side(how)
            network = side.network(["mlp", 784, 16, 10], "sgd", 0.1)
            network.load(weights)
            given = side.array(x), side.array(y)
            if "Trainer" in kind:
                losses[bfloat16] = np.asarray(network.first(*given, 8, 3))
            else:
                losses[bfloat16] = [float(side.to_host(network.step(*given))) for _ in range(3)]
    apart = abs(np.subtract(losses[True], losses[False])) / losses[False]
    assert np.all(apart > 1e-6) and np.all(apart < SAME_BFLOAT16)


def test_sides_without_bfloat16_do_not_take_part():
    with Harness(quick(bfloat16=True), ["sklearn", "numpy"]) as harness:
        assert harness.sides == ["numpy"]
    assert harness.not_run == {"sklearn": "it has no bfloat16 here"}
    assert "products in bfloat16, else float32" in markdown(results(harness))
