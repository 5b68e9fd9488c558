"""What changes from step to step may be a float or lie on the device: the result is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optim.rules import RULES, Rule, feed, problem

import xbp
from xbp import accelerators, nn, optim
from xbp.backend import backend_of, find_backend
from xbp.testing import assert_no_host_sync


def on_device(optimizer: optim.Optimizer) -> list[tuple[Any, ...]]:
    """The coefficients of the next step, as 0-d arrays on the parameter's device."""
    (parameter,), (count,) = optimizer.parameters, optimizer.counts
    place = backend_of(parameter.data).asarray
    row = optimizer.all_coefficients(optimizer.lr, count + 1)
    return [tuple(place(number, dtype=parameter.data.dtype) for number in row)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_coefficients_on_the_device_are_as_good_as_floats(
    rule: Rule, dtype: str, backend: xbp.Backend
) -> None:
    """Equal bit for bit: an array rounds a float as an operation with the float does.

    Without kernels, which take floats alone, and multiply and add in one rounding.
    """
    start, gradients = problem()
    floats, arrays = (
        rule([nn.Parameter(backend.asarray(start.copy(), dtype=dtype))]) for _ in range(2)
    )
    with accelerators.disabled():
        for gradient in gradients[:12]:
            feed(floats, gradient)
            arrays.zero_grad()
            arrays.parameters[0].add_grad(backend.asarray(gradient, dtype=dtype))
            arrays.step(on_device(arrays))
    assert in_bits(arrays) == in_bits(floats)


def in_bits(optimizer: optim.Optimizer) -> dict[str, tuple[Any, ...]]:
    state = {**optimizer.state_dict(), "p": xbp.to_numpy(optimizer.parameters[0].data)}
    return {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_step_with_coefficients_on_the_device_does_not_wait_for_it(rule: Rule) -> None:
    pytest.importorskip("array_api_strict")
    start, gradients = problem()
    here = find_backend("array_api_strict")
    parameter = nn.Parameter(here.asarray(start.copy()))
    optimizer = rule([parameter])
    with assert_no_host_sync():
        for gradient in gradients[:8]:  # RAdam's rule changes at the sixth step
            optimizer.zero_grad()
            parameter.add_grad(here.asarray(gradient))
            optimizer.step(on_device(optimizer))
    assert optimizer.steps == optimizer.counts[0] == 8


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_there_are_as_many_numbers_in_each_step(rule: Rule) -> None:
    optimizer = rule([nn.Parameter(np.zeros(2))])
    rows = [optimizer.all_coefficients(0.1, t) for t in (1, 2, 7, 1000)]
    assert len({len(row) for row in rows}) == 1
    assert {type(number) for row in rows for number in row} == {float}


class Harmonic(optim.Optimizer):
    """p ← p - η g / t, with the arguments of `update` before there were coefficients."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, lr: float, t: int) -> None:
        assert type(lr) is float
        assert type(t) is int
        p -= lr / t * g


def test_a_rule_of_ones_own_is_given_the_rate_and_the_step() -> None:
    parameter = nn.Parameter(np.zeros(1))
    optimizer = Harmonic([parameter], lr=optim.StepLR(6.0, 2, gamma=0.5))
    moved = []
    for _ in range(3):
        before = parameter.data.copy()
        feed(optimizer, np.ones(1))
        moved += (before - parameter.data).tolist()
    assert moved == [6.0, 3.0, 1.0]
