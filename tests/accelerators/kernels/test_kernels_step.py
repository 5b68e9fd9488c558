"""Forward, loss and backward of small networks in one kernel, against the chain's reference."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.networks import NETWORKS, Problem, agree, of_scale
from accelerators.kernels.reference import batch_innermost, needs_a_compiler
from layouts import assert_close
from nightly import NIGHTLY

import xbp
from xbp import models, nn, optim, primitives, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import launch, whole
from xbp.accelerators.cuda.ahead import Recorder
from xbp.accelerators.cuda.cross_entropy import LABELS
from xbp.backend import Graph
from xbp.backend.libraries import NumPy

KERNELS = pytest.mark.usefixtures("few_threads")
STEP = ["whole_step", "whole_weights"]
NETWORKS = NETWORKS | {"one layer": ((6,), lambda: [nn.Linear(6, 40, rng=0), nn.Tanh()])}
CASES = [
    ("lenet", "float32", "uint8"),
    ("means", "float64", "int64"),
    ("one layer", "float64", "int64"),
]
if NIGHTLY:
    CASES = [(name, dtype, "int64") for name in NETWORKS for dtype in launch.REALS]
    CASES += [("one layer", "float64", kind) for kind in LABELS]


def labels_of(problem: Problem, dtype: str = "int64") -> Any:
    return (np.arange(len(problem.x)) ** 2 % problem.dy.shape[1]).astype(dtype)


def problem_of(name: str, n: int, dtype: str, **options: Any) -> Problem:
    return Problem(name, n, dtype, networks=NETWORKS, **options)


# --- what is computed ----------------------------------------------------------------------------


@KERNELS
@needs_a_compiler
@pytest.mark.parametrize(("name", "dtype", "kind"), CASES)
def test_steps(name: str, dtype: str, kind: str, machine: Emulation) -> None:
    """With blocks of three and two samples, in any order, and images in any."""
    orders = (np.ascontiguousarray, np.ascontiguousarray, batch_innermost)
    results = []
    for machine.order, order in zip((0, 1, 5), orders, strict=True):
        images = len(NETWORKS[name][0]) == 3
        problem = problem_of(name, 5, dtype, order=order if images else np.ascontiguousarray)
        labels = labels_of(problem, kind)
        machine.launches.clear()
        results.append(problem.step(machine, labels))
        assert machine.launches == STEP
    # Sums of at most some 100 terms in each layer, one after the other.
    agree(results[0], problem.true_step(labels), 400)
    assert all(a is None or a.dtype == dtype for a in results[0])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b is None or a.tobytes() == b.tobytes()


@KERNELS
@needs_a_compiler
@pytest.mark.parametrize("n", [1, 3])
def test_steps_of_few_samples(n: int, machine: Emulation) -> None:
    """Of one, and of two in a block, whose losses come from both warps."""
    problem = problem_of("one layer", n, "float64")
    labels = labels_of(problem)
    for machine.order in (0, 1):
        agree(problem.step(machine, labels), problem.true_step(labels), 100)


@KERNELS
@needs_a_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["means", "one layer"])
def test_numbers_that_are_not_finite(name: str, value: float, machine: Emulation) -> None:
    """Of a sample, the loss and the gradients; the other samples keep their outputs."""
    problem = problem_of(name, 5, "float64")
    problem.x[1].flat[3] = value
    labels = labels_of(problem)
    with np.errstate(all="ignore"):
        truth, found = problem.true_step(labels), problem.step(machine, labels)
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(truth[0]))
    for ours, true in zip(found, truth, strict=True):
        if ours is not None:
            finite = np.isfinite(true)
            assert_close(np.where(finite, ours, 0), np.where(finite, true, 0), 400)
    assert np.isfinite(found[1]) == np.isfinite(truth[1])


@KERNELS
@needs_a_compiler
@pytest.mark.parametrize("label", [-1, 40, 2**40])
def test_a_label_out_of_range_makes_the_loss_nan(label: int, machine: Emulation) -> None:
    problem = problem_of("one layer", 5, "float64")
    labels = labels_of(problem)
    labels[3] = label
    found = problem.step(machine, labels)
    assert np.isfinite(found[0]).all()
    assert all(np.isnan(array).any() for array in found[1:])


@KERNELS
@needs_a_compiler
def test_measured_choices(machine: Emulation, tuned_by: Any) -> None:
    """Of threads, samples and blocks of a multiprocessor; impossible ones are left to the rule."""
    problem = problem_of("one layer", 5, "float64")
    network = "6 40 True tangent 0"
    for numbers, blocks in (([32, 5, 3], 1), ([32, 9, 1], 2), ([48, 5, 1], 2), ([32, 5], 2)):
        tuned_by({"whole": {f"float64 {network}": [[[5], numbers]]}})
        machine.grids.clear()
        labels = labels_of(problem)
        found = problem.step(machine, labels)
        assert machine.grids[0] == (blocks, 1)
        agree(found, problem.true_step(labels), 100)


@KERNELS
def test_what_is_declined() -> None:
    problem = problem_of("deep", 5, "float32")
    labels, arrays = labels_of(problem), problem.arrays

    def declined(loss: Any, target: Any, operations: Any = problem.operations) -> bool:
        return whole.chain_to_loss(problem.x, operations, arrays, loss, target) is NotImplemented

    assert declined(of_scale(1.0), np.eye(5, 7, dtype="f4"))
    assert declined(of_scale(1.0), labels[:4])
    assert declined(of_scale(1.0), labels > 0)
    assert declined((primitives.add, ()), labels)
    assert declined(of_scale(1.0), labels, (*problem.operations, (primitives.gelu, ())))


# --- launches of a training step -----------------------------------------------------------------


class Again(Graph):
    """A graph that makes each replay by the recorded function."""

    def record(self, function: Any) -> None:
        self.function = function

    def replay(self) -> None:
        self.function()


class Counting(Recorder):
    """Counts launches, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def launch(self, kernel: Any, *rest: Any) -> None:
        self.launches.append(kernel[1])


MODELS: dict[str, Any] = {  # with the shape of a sample, and the launches by operations
    "LeNet-5": (lambda: models.LeNet5(rng=0), (1, 28, 28), 14),
    "784-128-10": (lambda: models.MLP(784, 128, 10, rng=0), (784,), 7),
    "64-128-128-128-10": (lambda: models.MLP(64, 128, 128, 128, 10, rng=0), (64,), 11),
}


def launches_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch, setting: str) -> Any:
    """Of a recorded step with 128 samples, by Adam."""
    monkeypatch.setenv("XBP_WHOLE", setting)
    monkeypatch.setattr(NumPy, "graph", lambda self, device: Again())
    table = {function.__name__: function for function in cuda.implementations()}
    monkeypatch.setitem(registry._tables, np.ndarray, table)
    monkeypatch.setitem(launch.machines, "numpy", machine := Counting())
    make, shape, _ = MODELS[name]
    model = make()
    adam = optim.Adam(model.parameters())
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), adam, capture=True)
    found = []
    for epochs in (1, 1, 3):  # the first one records
        machine.launches.clear()
        trainer.fit(np.ones((512, *shape), "f4"), np.zeros(512, int), epochs, batch_size=128)
        found.append(Counter(machine.launches))
    return Counter({kernel: count / 8 for kernel, count in (found[2] - found[1]).items()})


@pytest.mark.parametrize(
    ("name", "launches"), [(name, count) for name, (*_, count) in MODELS.items()]
)
def test_launches_of_a_recorded_step(
    name: str, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and the loss are two; the others take the batch, and update and note the result."""
    before, after = (launches_of_a_step(name, monkeypatch, setting) for setting in ("", "1"))
    assert before.total() <= MODELS[name][2]  # by operations
    assert after == dict.fromkeys(("take", *STEP, "adaptive_step"), 1)
