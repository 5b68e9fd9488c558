"""Small networks in one kernel each way, emulated on the CPU, against the chain's reference."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.networks import NETWORKS, Problem, agree
from accelerators.kernels.reference import batch_innermost, needs_a_compiler
from layouts import assert_close
from nightly import NIGHTLY

from xbp import accelerators, models, nn, optim, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import launch, whole, whole_layers, whole_plan, whole_run
from xbp.errors import InputError
from xbp.nn.sequential import plan_of

pytestmark = [needs_a_compiler, pytest.mark.usefixtures("few_threads")]


@pytest.mark.parametrize(("name", "n"), [*((name, 5) for name in NETWORKS), ("lenet", 1)])
def test_networks(name: str, n: int, dtype: str, machine: Emulation) -> None:
    """With one sample, and with blocks of three and two of them."""
    problem = Problem(name, n, dtype)
    found = problem.solve(machine)
    assert machine.launches == ["whole_forward", "whole_backward", "whole_weights"]
    assert machine.grids[0] == (min(n, 2), 1)
    # Sums of at most some 100 terms in each layer, one after the other.
    agree(found, problem.truth(), 400)
    assert all(a is None or a.dtype == dtype for a in found)
    without = problem.solve(machine, wants_dx=False)
    assert without[1] is None
    for a, b in zip(without[2:], found[2:], strict=True):
        assert a is b is None or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["lenet", "images as vectors"])
def test_images_with_the_batch_innermost(name: str, machine: Emulation) -> None:
    one, other = (
        Problem(name, 5, "float64", order).solve(machine)
        for order in (np.ascontiguousarray, batch_innermost)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert other[1].transpose(1, 2, 3, 0).flags.c_contiguous


@pytest.mark.parametrize("name", NETWORKS)
def test_no_order_of_threads_changes_a_bit(name: str, machine: Emulation) -> None:
    results = []
    for machine.order in (0, 1, 5):
        results.append(Problem(name, 5, "float32").solve(machine))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b is None or a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("threads", "samples"), [(32, 4), (224, 1)])
def test_any_division_of_the_work(
    threads: int, samples: int, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_plan, "THREADS", threads)
    monkeypatch.setattr(whole_plan, "MOST_SAMPLES", samples)
    for name in ("lenet", "deep") if NIGHTLY else ("lenet",):
        problem = Problem(name, 7, "float64")
        agree(problem.solve(machine), problem.truth(), 400)


def test_many_samples_in_parts(machine: Emulation) -> None:
    """More than are in shared memory at a time, in the kernel of ∂L/∂W."""
    problem = Problem("deep", 75, "float64")
    agree(problem.solve(machine), problem.truth(), 400)


def test_sizes_that_are_constants_of_the_program(
    machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NVRTC sees them."""
    variables = Problem("lenet", 5, "float32").solve(machine)
    fixed = Emulation(fixed=True)
    monkeypatch.setitem(launch.machines, "numpy", fixed)
    constants = Problem("lenet", 5, "float32").solve(fixed)
    assert all(np.array_equal(a, b) for a, b in zip(variables, constants, strict=True))


# --- numbers that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_not_finite_where_the_reference_is_not(
    name: str, value: float, machine: Emulation
) -> None:
    """In a sample, in ∂L/∂y, in a weight; the other samples keep their values."""
    problem = Problem(name, 5, "float64")
    problem.x[1].flat[3] = value
    problem.dy[2].flat[0] = value
    with np.errstate(all="ignore"):
        truth, found = problem.truth(), problem.solve(machine)
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(truth[0]))
    for ours, true in zip(found, truth, strict=True):
        if ours is None:
            continue
        finite = np.isfinite(true)
        assert_close(np.where(finite, ours, 0), np.where(finite, true, 0), 400)
    last = next(array for array in found[2:] if array is not None)
    assert not np.isfinite(last).all()  # reaches the optimizer


# --- what is chosen and declined -----------------------------------------------------------------


def declined(*layers: nn.Layer, shape: tuple[int, ...]) -> bool:
    """Whether a chain is left to kernels by operation."""
    model, x = nn.Sequential(*layers), np.ones((2, *shape), "float32")
    (part,) = plan_of(model).parts
    operations = part.operations[True]  # type: ignore[union-attr]
    if whole.whole_chain(operations) is None:
        return True
    _, arrays = part.lent(x, True)  # type: ignore[union-attr]
    flat = [array for each in arrays for array in each]
    return whole.network(x, *flat, operations=operations) is NotImplemented


def test_what_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_run.Run, "result", lambda self: ())
    linear = [nn.Flatten(), nn.Linear(18, 4, rng=0)]
    images = (2, 3, 3)
    assert not declined(nn.Conv2d(2, 2, 3, padding=1), *linear, shape=images)
    assert declined(nn.Linear(4, 4), nn.ReLU(), shape=(4,))  # one layer
    assert declined(nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4), shape=(4,))
    assert declined(nn.Linear(4, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 4), shape=(4,))
    assert declined(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), shape=(4,))
    assert declined(nn.Linear(4, 4), nn.Linear(4, 4), shape=(3, 4))  # more axes
    assert declined(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3), shape=images)
    assert declined(nn.Conv2d(2, 2, 3, padding=1, groups=2), *linear, shape=images)
    assert declined(nn.Conv2d(2, 2, 2, dilation=2, padding=1), *linear, shape=images)
    assert declined(nn.Conv2d(2, 2, 3, padding=4, stride=3), *linear, shape=images)
    assert declined(nn.Linear(4, 13000), nn.Linear(13000, 4), shape=(4,))  # shared memory
    assert declined(*(nn.Linear(4, 4) for _ in range(17)), shape=(4,))
    assert not declined(nn.Linear(4, 4), nn.Linear(4, 4), shape=(4,))
    wide = [nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 9, 4)]
    assert declined(*wide, shape=(16, 3, 3))


def plan_for(model: nn.Layer, shape: tuple[int, ...], itemsize: int = 4) -> Any:
    """The plan of a network on an H100 or H200."""
    with mock.patch.multiple(whole_plan, THREADS=512, PROCESSORS=132):
        (part,) = plan_of(model).parts  # type: ignore[arg-type]
        shapes = tuple(parameter.data.shape for parameter in model.parameters())
        layers = whole_layers.layers_of(part.operations[True], shape, shapes)  # type: ignore[union-attr]
        assert layers is not None
        loads = (1,) * len(whole.learned(layers))
        division = whole_plan.by_rule(layers, shape[0], itemsize, loads)
        assert division is not None
        return whole_plan.plan(layers, itemsize, loads, division)


def test_it_is_chosen_where_launches_cost_more_than_weights() -> None:
    def pays(model: nn.Layer, *shape: int, with_loss: bool = False) -> bool:
        return whole.pays(plan_for(model, shape), shape[0], 4, with_loss)

    assert all(pays(models.LeNet5(rng=0), n, 1, 28, 28) for n in (1, 128, 512, 2048))
    assert pays(models.MLP(64, 128, 128, 128, 10, rng=0), 128, 64)
    assert not pays(models.MLP(784, 128, 10, rng=0), 128, 784)
    assert pays(models.MLP(784, 128, 10, rng=0), 128, 784, with_loss=True)
    assert not pays(models.MLP(784, 256, 10, rng=0), 128, 784, with_loss=True)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_lenet_5_has_a_plan(itemsize: int) -> None:
    for n, samples in ((1, 1), (128, 1), (512, 4), (2048, 8)):
        plan = plan_for(models.LeNet5(rng=0), (n, 1, 28, 28), itemsize)
        samples = samples if itemsize == 4 else 1
        assert plan.division == (512, samples, 1 + (n > 132 * samples))
        assert (
            max(it["SHARED"] for it in (plan.forward, *plan.backward, plan.step)) * itemsize
            <= 48 * 1024
        )


def test_gradients_of_another_shape_are_refused(machine: Emulation) -> None:
    problem = Problem("deep", 3, "float64")
    problem.dy = problem.dy[:, 1:]
    with pytest.raises(InputError, match="has shape"):
        problem.solve(machine)


STEP = {
    **dict.fromkeys(("whole_forward", "whole_backward", "whole_weights"), 1),
    **{"cross_entropy": 1, "adaptive_step": 1},
}


def train(steps: int) -> list[float]:
    model = nn.Sequential(*NETWORKS["lenet"][1]()).astype("float64")
    optimizer, losses = optim.Adam(model.parameters()), []
    x = np.random.default_rng(0).normal(size=(5, 1, 10, 11))
    for _ in range(steps):
        logits, backward = model.forward(x, training=True)
        value, gradient = nn.CrossEntropyLoss()(logits, np.arange(5))
        nn.for_parameters(backward)(gradient)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value))
    return losses


def test_a_training_and_its_launches(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {function.__name__: function for function in cuda.implementations()}
    monkeypatch.setitem(registry._tables, np.ndarray, table)
    losses = train(3)
    assert {name: machine.launches.count(name) / 3 for name in machine.launches} == STEP
    with accelerators.disabled():
        # Three steps, each of sums of at most a hundred numbers of order 1.
        np.testing.assert_allclose(losses, train(3), rtol=1e-12)


def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.implementations()[-2:] == (whole.chain_to_loss, cuda.chain_in_one)
    monkeypatch.delenv("XBP_WHOLE")
    assert cuda.implementations()[-1] is cuda.chain
    assert whole.chain_to_loss not in cuda.implementations()
    monkeypatch.setenv("XBP_WHOLE", "yes")
    assert not whole.wanted()
