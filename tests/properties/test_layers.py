"""Properties of every layer and loss, for all options, shapes and numbers.

There are four, with accelerators and without: it equals its definition; its backward is the adjoint
of the definition's derivative; a batch is the stack of its samples; and float32 is float64 rounded.
They hold for inputs, weights and gradients in any memory order, and leave all of them, and the
memory between their entries, unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st
from properties.drawing import (
    MOVES,
    ROUNDINGS,
    Host,
    Layout,
    bound,
    check,
    dtypes,
    everything_of,
    largest,
    layouts,
    normals,
    quarters,
    seeds,
    ways,
)
from properties.problems import BY_SAMPLE, SMOOTH, TABLE, Problem, shapes, windows

from xbp import nn
from xbp.testing import oracles

every_item = pytest.mark.parametrize("name", TABLE)
LAYERS = [name for name in BY_SAMPLE if not name.endswith("Loss")]
LITTLE, MUCH = 1500, 100_000
"""Numbers of multiplications, for oracles with loops in Python and without them."""


class Result(NamedTuple):
    value: Any  # the output, or the loss
    gradients: dict[str, Any]


def is_layer(problem: Problem) -> bool:
    return hasattr(problem.subject, "forward")


def numbers(problem: Problem, rng: np.random.Generator, *shape: int) -> Host:
    """Numbers for weights, gradients and directions, of this problem's kind."""
    return quarters(rng, *shape) if problem.exact else normals(rng, *shape)


def parameters(problem: Problem) -> dict[str, Any]:
    return dict(problem.subject.named_parameters()) if is_layer(problem) else {}


def drawn(data: st.DataObject, name: str, budget: int) -> tuple[Problem, np.random.Generator]:
    """A problem with drawn weights."""
    problem = data.draw(TABLE[name](budget))
    rng = data.draw(seeds)
    note(f"{problem.subject!r}, inputs of shape {[x.shape for x in problem.inputs]}")
    for parameter in parameters(problem).values():
        parameter.data[...] = numbers(problem, rng, *parameter.shape)
    return problem, rng


def definition(problem: Problem) -> tuple[dict[str, Host], Callable[..., Host]]:
    """All arguments of the value, by name, and the oracle as a function of them."""
    constants = problem.subject.state_dict() if is_layer(problem) else {}
    names = list(parameters(problem))
    variables = {"x": problem.inputs[0]} | {name: constants[name] for name in names}

    def function(x: Host, *weights: Host) -> Host:
        state = constants | dict(zip(names, weights, strict=True))
        return np.asarray(problem.oracle(state, x, *problem.inputs[1:]))

    return variables, function


def run(
    problem: Problem, dtype: str, dy: Host | None = None, layout: Layout | None = None
) -> Result:
    """Forward, and backward of `dy`, all in `dtype` and with this memory layout."""
    layout = layout or Layout((0,), (1,) * 5, True)
    given = [x.astype(dtype) if x.dtype.kind == "f" else x for x in problem.inputs]
    given = [layout(x) for x in given]
    subject = problem.subject
    if not is_layer(problem):
        before = [everything_of(x) for x in given]
        value, gradient = subject(*given)
        assert before == [everything_of(x) for x in given], "an input was changed"
        return Result(value, {"x": gradient})
    subject.astype(dtype)
    for parameter in subject.parameters():
        parameter.data, parameter.grad = layout(parameter.data), None
    (x,) = given
    dy = layout(np.zeros((), dtype) if dy is None else dy.astype(dtype))
    owned = [x, dy, *(parameter.data for parameter in subject.parameters())]
    before = [everything_of(array) for array in owned]
    y, backward = subject.forward(x, training=True, rng=0)
    kept = everything_of(y)
    gradients = {}
    if dy.shape == y.shape:
        gradients["x"] = backward(dy)
        gradients |= {name: p.grad for name, p in subject.named_parameters()}
    else:
        inferred, known = subject(x), problem.inference is not None
        assert inferred.dtype == y.dtype and inferred.shape == y.shape
        assert not known or np.array_equal(inferred, y if problem.inference else x), (
            "inference differs from the training forward"
        )
    assert before == [everything_of(array) for array in owned], "an input was changed"
    assert kept == everything_of(y), "the backward changed the output"
    return Result(y, gradients)


@every_item
@given(data=st.data())
def test_it_is_its_definition(name: str, data: st.DataObject) -> None:
    problem, _ = drawn(data, name, LITTLE)
    dtype, layout = data.draw(dtypes), data.draw(layouts)
    variables, function = definition(problem)
    truth = function(*variables.values())
    inputs = [*variables.values()]
    allowed = 0.0 if problem.exact else bound(dtype, truth, function, inputs, problem.scale)
    for way in ways():
        with way:
            check(run(problem, dtype, layout=layout).value, truth, dtype, allowed, "the output")


@pytest.mark.parametrize("name", [name for name in TABLE if name != "Sequential"])
@given(data=st.data())
def test_its_backward_is_the_adjoint_of_its_derivative(name: str, data: st.DataObject) -> None:
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ in one direction v through the input and all parameters at once,
    with J v from the definition, by a central difference, and Jᵀ dy from the backward.
    """
    problem, rng = drawn(data, name, LITTLE // 2)
    layout, h = data.draw(layouts), problem.step
    variables, function = definition(problem)
    draw = normals if h == SMOOTH else quarters
    v = {key: draw(rng, *x.shape) for key, x in variables.items()}

    def ahead(step: float) -> Host:
        return function(*(x + step * v[key] for key, x in variables.items()))

    up, down = ahead(h), ahead(-h)
    derivative = (up - down) / (2 * h)
    if problem.kinks:
        # Second differences fall with h², unless a kink is near, where nothing is compared.
        further, back, middle = ahead(2 * h), ahead(-2 * h), ahead(0)
        change = (further + back - 2 * middle) / 4 - (up + down - 2 * middle)
        assume(largest(change) <= 1e-12 * max(1.0, largest(middle)))
        derivative = (4 * derivative - (further - back) / (4 * h)) / 3  # of fourth order
    dy = numbers(problem, rng, *up.shape) if is_layer(problem) else np.ones(())
    expected = np.sum(dy * derivative)
    # Each term is good to about 1e-10 (SMOOTH), or to the last bit.
    allowed = 1e-8 * np.sum(np.abs(dy) * (np.abs(derivative) + np.abs(up)))
    allowed *= not problem.exact
    for way in ways():
        with way:
            gradients = run(problem, "float64", dy, layout).gradients
        for key, x in variables.items():
            check(gradients[key], x, "float64", np.inf, f"the gradient of {key}")
        found = sum(np.sum(gradients[key] * v[key]) for key in v)
        assert abs(found - expected) <= allowed, f"⟨Jᵀ dy, v⟩ = {found!r}, ⟨dy, J v⟩ = {expected!r}"


@every_item
@given(data=st.data())
def test_dtype_memory_order_and_accelerators_do_not_matter(name: str, data: st.DataObject) -> None:
    """Large problems too: the reference is float64 in C order without accelerators, which
    the two properties above compare with the definition.
    """
    problem, rng = drawn(data, name, MUCH)
    dtype, layout = data.draw(dtypes), data.draw(layouts)
    dy = gradient_for(problem, rng)
    *_, plain = ways()
    with plain:
        truth = run(problem, "float64", dy)
        allowed = bounds(problem, dtype, truth, dy)
    for way in ways():
        with way:
            compare(run(problem, dtype, dy, layout), truth, dtype, allowed)


@pytest.mark.parametrize("name", BY_SAMPLE)
@given(data=st.data())
def test_a_batch_is_the_stack_of_its_samples(name: str, data: st.DataObject) -> None:
    """The samples before and after one of them; a loss is the mean, or the sum, of both parts."""
    problem, rng = drawn(data, name, MUCH)
    assume(problem.by_sample)
    dy, n = gradient_for(problem, rng), problem.inputs[0].shape[0]
    i, layout = data.draw(st.integers(0, n - 1)), data.draw(layouts)
    parts = [p for p in (slice(i), slice(i, i + 1), slice(i + 1, n)) if len(range(n)[p])]
    shares = [1.0] * len(parts)
    if getattr(problem.subject, "reduction", "sum") != "sum":
        shares = [len(range(n)[part]) / n for part in parts]
        problem = problem._replace(exact=False)
    for way in ways():
        with way:
            truth = run(problem, "float64", dy)
            allowed = bounds(problem, "float64", truth, dy)
            results = []
            for part in parts:
                alone = problem._replace(inputs=tuple(x[part] for x in problem.inputs))
                results.append(run(alone, "float64", None if dy is None else dy[part], layout))
        values = [share * r.value for share, r in zip(shares, results, strict=True)]
        value = np.concatenate(values) if is_layer(problem) else np.asarray(sum(values))
        gradients = {key: sum(r.gradients[key] for r in results) for key in parameters(problem)}
        rows = [share * r.gradients["x"] for share, r in zip(shares, results, strict=True)]
        compare(Result(value, {"x": np.concatenate(rows)} | gradients), truth, "float64", allowed)


@pytest.mark.parametrize("name", LAYERS)
@given(data=st.data())
def test_no_samples_give_no_outputs_and_gradients_of_zero(name: str, data: st.DataObject) -> None:
    problem, _ = drawn(data, name, LITTLE)
    dtype, (x,) = data.draw(dtypes), problem.inputs
    assume(problem.by_sample)
    shape = problem.subject(x).shape
    for way in ways():
        with way:
            empty = problem._replace(inputs=(x[:0],))
            y, gradients = run(empty, dtype, np.zeros((0, *shape[1:])))
        assert y.shape == (0, *shape[1:])
        assert gradients["x"].shape == (0, *x.shape[1:])
        for key in parameters(problem):
            check(gradients[key], 0 * definition(problem)[0][key], dtype, 0.0, key)


def gradient_for(problem: Problem, rng: np.random.Generator) -> Host | None:
    if not is_layer(problem):
        return None
    return numbers(problem, rng, *problem.subject(problem.inputs[0]).shape)


def bounds(problem: Problem, dtype: str, truth: Result, dy: Host | None) -> dict[str, float]:
    """For the output and each gradient, by the rule of `bound`: all that enters is moved by ε.

    A gradient may err by roundings of dy, too: a slope such as 1 - y² cancels where y saturates.
    """
    if problem.exact:
        return dict.fromkeys(["value", *truth.gradients], 0.0)
    epsilon, rng = float(np.finfo(dtype).eps), np.random.default_rng(0)

    def wobble(x: Host) -> Host:
        return x * (1 + epsilon * rng.choice([-1.0, 1.0], x.shape)) if x.dtype.kind == "f" else x

    def moved() -> Result:
        other = problem._replace(
            subject=copy.deepcopy(problem.subject), inputs=tuple(wobble(x) for x in problem.inputs)
        )
        for parameter in parameters(other).values():
            parameter.data = wobble(parameter.data)
        return run(other, "float64", None if dy is None else wobble(dy))

    moves = [moved() for _ in range(MOVES)]
    allowed = {"value": max(rounding(epsilon, truth.value, move.value) for move in moves)}
    mean = dy is None and problem.subject.reduction != "sum"
    incoming = epsilon * (1 / len(problem.inputs[0]) if mean else largest(1 if dy is None else dy))
    for key, gradient in truth.gradients.items():
        most = max(rounding(epsilon, gradient, move.gradients[key]) for move in moves)
        allowed[key] = most + ROUNDINGS * incoming
    return allowed


def rounding(epsilon: float, truth: Any, moved: Any) -> float:
    return ROUNDINGS * (epsilon * largest(truth) + largest(moved - truth))


def compare(result: Result, truth: Result, dtype: str, allowed: dict[str, float]) -> None:
    check(result.value, np.asarray(truth.value), dtype, allowed["value"], "the output")
    for key, expected in truth.gradients.items():
        found = result.gradients[key]
        check(found, expected, dtype, allowed[key], f"the gradient of {key}")


@given(data=st.data())
def test_of_equals_the_first_in_a_window_takes_the_gradient(data: st.DataObject) -> None:
    w, rng, layout = (
        data.draw(windows(MUCH // 50, lambda k: k // 2, 1)),
        data.draw(seeds),
        data.draw(layouts),
    )
    x = quarters(rng, *w.shape, largest=2)
    layer = nn.MaxPool2d(*w.window)
    dy = quarters(rng, *layer(x).shape)
    expected = oracles.max_pool2d_input_gradient(x, dy, *w.window)
    for dtype in ("float32", "float64"):
        for way in ways():
            with way:
                y, backward = layer.forward(layout(x.astype(dtype)), training=True)
                check(y, oracles.max_pool2d(x, *w.window), dtype, 0.0, "the output")
                check(backward(layout(dy.astype(dtype))), expected, dtype, 0.0, "the gradient")


@given(data=st.data())
def test_relu_at_its_kink_and_at_the_ends(data: st.DataObject) -> None:
    """max(x, 0) and its slope for all numbers, nan included."""
    rng, layout = data.draw(seeds), data.draw(layouts)
    ends = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0, -1.0])
    x = rng.choice(ends, data.draw(shapes(MUCH // 50)))
    dy = quarters(rng, *x.shape)
    for dtype in ("float32", "float64"):
        for way in ways():
            with way:
                y, backward = nn.ReLU().forward(layout(x.astype(dtype)))
                dx = backward(layout(dy.astype(dtype)))
            np.testing.assert_array_equal(y, np.where(x < 0, 0, x).astype(dtype))
            np.testing.assert_array_equal(dx, np.where(x <= 0, 0, dy))
