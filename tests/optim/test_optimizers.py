"""Every optimizer: a step, its rate, and a rule of one's own."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from optim.rules import assert_close, feed, problem, trained
from optim.steps import HERE, STEPS, Make, every_rule, one_sentence, stateful, two_gradients

import xbp
from xbp import nn, optim
from xbp.backend import dtype_name, find_backend
from xbp.errors import InputError
from xbp.testing.cases import Rule


@every_rule
@pytest.mark.parametrize("backend", HERE)
def test_float32_stays_float32_whatever_the_schedule_returns(backend: str, rule: Rule) -> None:
    with xbp.use_backend(backend):
        parameter = nn.Parameter(xbp.asarray([1.0, -2.0], dtype="float32"))
    schedule = lambda step: np.float64(0.1) / (step + 1)  # noqa: E731
    optimizer = replace(rule, options={**rule.options, "lr": schedule})([parameter])
    for _ in range(3):
        feed(optimizer, np.ones(2))
    arrays = [parameter.data, *optimizer.state[0].values()]
    assert {dtype_name(array.dtype) for array in arrays} == {"float32"}
    assert type(optimizer.lr) is float


def test_adams_first_step_is_the_rate_whatever_the_scale() -> None:
    scales = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0])
    found = trained(partial(optim.Adam, lr=0.1, eps=0.0), np.zeros(7), [-scales])
    assert_close(found, np.full(7, 0.1), 1e-15)  # three roundings


def test_adam_takes_numpy_numbers_and_lists_as_betas() -> None:
    start, gradients = problem()
    expected = trained(partial(optim.Adam, betas=(0.5, 0.75)), start, gradients)
    forms: list[Any] = [[0.5, 0.75], (np.float64(0.5), np.float64(0.75))]
    for betas in forms:
        for backend in HERE:
            found = trained(partial(optim.Adam, betas=betas), start, gradients, backend)
            assert_close(found, expected, 1e-13)  # as above


# --- the step ------------------------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("backend", HERE)
def test_updates_are_in_place_and_leave_the_gradient_alone(backend: str, rule: Rule) -> None:
    here = find_backend(backend)
    data, gradient = here.asarray([1.0, 2.0]), here.asarray([0.5, -0.5])
    parameter = nn.Parameter(data)
    optimizer = rule([parameter])
    parameter.add_grad(gradient)
    kept: list[dict[str, Any]] = []
    seen = []
    for _ in range(3):
        optimizer.step()
        kept.append(dict(optimizer.state[0]))
        seen.append(xbp.to_numpy(data).tolist())
    assert parameter.data is data
    assert all(before != after for before, after in pairwise([[1.0, 2.0], *seen]))
    assert parameter.grad is gradient
    assert xbp.to_numpy(gradient).tolist() == [0.5, -0.5]
    assert set(kept[0]) == set(optimizer.rules()[0][0].state_names())
    assert all(kept[0][name] is kept[2][name] for name in kept[0])


@stateful
def test_a_parameter_without_gradient_is_left_alone_and_not_counted(
    make: Make, two: list[nn.Parameter]
) -> None:
    optimizer = make(two)
    gradients = list(two_gradients(4))
    for first, _ in gradients[:2]:
        optimizer.zero_grad()
        two[0].add_grad(first)
        optimizer.step()
    assert two[1].data.tolist() == [[3.0]]
    assert (optimizer.steps, optimizer.counts) == (2, [2, 0])
    assert optimizer.state[1] == {}

    # With its first gradient, it gets the first update of a new optimizer at that rate.
    alone = nn.Parameter(np.array([[3.0]]))
    other = make([alone])
    other.lr = optimizer.lr
    feed(other, gradients[2][1])
    feed(optimizer, *gradients[2])
    assert two[1].data.tobytes() == alone.data.tobytes()
    assert (optimizer.steps, optimizer.counts) == (3, [3, 1])


def test_a_step_without_any_gradient_is_a_step(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=optim.StepLR(0.1, 1, 0.5))
    optimizer.step()
    assert optimizer.lr == 0.05
    assert two[0].data.tolist() == [1.0, 2.0]


def test_zero_grad_forgets_all_gradients(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.1)
    feed(optimizer, *next(two_gradients(1)))
    assert all(parameter.grad is not None for parameter in two)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in two)


def test_parameters_may_come_from_an_iterator(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(iter(two), lr=0.5)
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    assert two[0].data.tolist() == [0.5, 1.5]
    assert two[1].data.tolist() == [[2.5]]


# --- the learning rate ---------------------------------------------------------------------------


def test_a_schedule_is_asked_for_each_step_in_turn() -> None:
    start, gradients = problem()
    schedule = optim.OneCycleLR(0.1, STEPS)
    expected, optimizer = [], optim.SGD([nn.Parameter(start.copy())], lr=1.0, momentum=0.9)
    for step, gradient in enumerate(gradients):
        optimizer.lr = schedule(step)
        feed(optimizer, gradient)
        expected.append(schedule(step))
    found = trained(partial(optim.SGD, lr=schedule, momentum=0.9), start, gradients)
    assert found.tobytes() == optimizer.parameters[0].data.tobytes()
    fresh = optim.SGD([nn.Parameter(start.copy())], lr=schedule)
    assert [fresh.lr_at(step) for step in range(STEPS)] == expected


def test_the_rate_can_be_set_to_a_number_and_to_a_schedule(two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.5)
    assert optimizer.lr == optimizer.lr_at(7) == 0.5
    optimizer.lr = 0
    feed(optimizer, np.ones(2), np.ones((1, 1)))
    assert two[0].data.tolist() == [1.0, 2.0]
    optimizer.lr = lambda step: 10.0 + step
    assert (optimizer.steps, optimizer.lr, optimizer.lr_at(5)) == (1, 11.0, 15.0)


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), "0.1", None, True, [0.1]])
def test_a_rate_that_is_no_rate_is_one_sentence(lr: Any, two: list[nn.Parameter]) -> None:
    optimizer = optim.SGD(two, lr=0.5)
    with pytest.raises(InputError) as caught:
        optimizer.lr = lr
    assert one_sentence(caught).startswith("lr must be a finite number from 0")
    assert optimizer.lr == 0.5
    for rule in (optim.SGD, optim.Adam):
        with pytest.raises(InputError, match="lr must be"):
            rule(two, lr=lr)
