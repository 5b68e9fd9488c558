"""Compiled recurrent layers against the reference in double precision, at each level."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from accelerators.recurrences import CELLS, FORMS, LAYOUTS, SHAPES, Problem, Real, wide
from layouts import assert_close

from xbp import nn, primitives
from xbp.accelerators.cpu import native, recurrence
from xbp.errors import InputError
from xbp.primitives import cells

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level", "guards"),
]

AT_ONCE = (7, 13, 17, 18)
"""Rows enough for gradients of weights that are summed step by step."""
PAIRS = [
    *((shape, FORMS[(i + j) % 4]) for i, shape in enumerate(SHAPES) for j in range(2)),
    *((AT_ONCE, form) for form in FORMS),
]


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute what is usually left to the reference, and with two threads."""
    monkeypatch.setattr(recurrence, "LEAST_ROWS", 1)
    monkeypatch.setattr(recurrence, "LEAST_FOR_THREADS", 1)
    monkeypatch.setattr(native, "threads", lambda: 2)
    monkeypatch.setattr(recurrence, "in_lines", lambda shape, dtype: np.empty(shape, dtype))


@pytest.mark.parametrize(("shape", "form"), PAIRS, ids=str)
@pytest.mark.parametrize("step", CELLS)
def test_outputs_and_gradients(step: Any, shape: Any, form: Any, dtype: str) -> None:
    layout = LAYOUTS[PAIRS.index((shape, form)) % len(LAYOUTS)]
    problem = Problem(step, shape, dtype, layout, **form)
    results = problem.solve(recurrence.recurrence)
    terms = sum(shape) * shape[0]  # of the longest sums, through all time steps
    for result, truth in zip(results, problem.truth(), strict=True):
        assert (result is None) == (truth is None)
        if result is not None:
            assert result.dtype == dtype
            assert_close(result, truth, terms)


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), AT_ONCE])
@pytest.mark.parametrize("step", CELLS)
def test_arguments_stay_as_they_were_and_backward_may_run_twice(
    step: Any, shape: Any, dtype: str
) -> None:
    problem = Problem(step, shape, dtype, padded=True)
    before = wide(problem.arguments), wide(problem.given)
    _, gradients = recurrence.recurrence(*problem.arguments, **problem.options)
    dx, dstates, *found = gradients(*problem.given)
    none, dstates_again, *again = gradients(*problem.given, False)
    assert dx is not None and none is None
    for one, two in zip((*dstates, *found), (*dstates_again, *again), strict=True):
        assert np.array_equal(one, two)
    after = wide(problem.arguments), wide(problem.given)
    for one, two in zip(_leaves(before), _leaves(after), strict=True):
        assert np.array_equal(one, two)


def _leaves(given: Any) -> list[Real]:
    if isinstance(given, list | tuple):
        return [leaf for item in given for leaf in _leaves(item)]
    return [] if given is None else [given]


@pytest.mark.parametrize("step", CELLS)
def test_threads_change_no_bit(step: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the states and their gradients; the other gradients are products of the BLAS."""
    expected: list[Real] = []
    for threads in (1, 2, 3, 20):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        results = Problem(step, (3, 17, 5, 35), dtype).solve(recurrence.recurrence)
        kinds = 1 + (step is cells.lstm)
        found = [*results[: 1 + kinds], *results[2 + kinds : 2 + 2 * kinds]]
        expected = expected or found
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("step", CELLS)
def test_numbers_that_are_not_finite(step: Any, dtype: str) -> None:
    """A sample's infinities and nan stay its own, and are those of the reference."""
    problem = Problem(step, (3, 8, 2, 5), dtype)
    x, finite = problem.arguments[0], problem.solve(recurrence.recurrence)
    x[0, 1], x[1, 2, 0], x[0, 4, 1], x[2, 7] = -np.inf, np.inf, np.nan, (np.inf, -np.inf)
    others = [0, 3, 5, 6]
    kinds = 1 + (step is cells.lstm)
    with np.errstate(invalid="ignore"):
        results, truths = problem.solve(recurrence.recurrence), problem.truth()
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        np.testing.assert_allclose(result, truth, rtol=1e-4, atol=1e-4)
        if index < 2 + 2 * kinds:  # states and their gradients, and ∂L/∂x, by samples
            rows = np.s_[:, others] if result.ndim == 3 else np.s_[others]
            assert_close(result[rows], finite[index][rows], 100)


def test_limits_of_the_gates(dtype: str) -> None:
    """Gates are 0 and 1 exactly where the reference's are, so that 0 · ∞ is nan in both."""
    a = np.asarray([50.0, -50.0, np.inf, -np.inf], dtype)
    x, weight = np.ones((1, 1, 1), dtype), np.tile(a, 4)[:, None]
    states = np.ones((1, 4), dtype), np.full((1, 4), np.inf, dtype)
    arguments = x, weight, np.zeros((16, 4), dtype), None, None, *states
    with np.errstate(invalid="ignore"):
        got = recurrence.recurrence(*arguments, step=cells.lstm)[0]
        truth = primitives.recurrence.reference(*arguments, step=cells.lstm)[0]  # type: ignore[attr-defined]
    for one, two in zip(_leaves(got), _leaves(truth), strict=True):
        assert np.array_equal(one, two, equal_nan=True)


@pytest.mark.parametrize("step", CELLS)
def test_what_is_declined(step: Any, dtype: str) -> None:
    problem = Problem(step, (2, 3, 4, 5), dtype)
    other = "float64" if dtype == "float32" else "float32"
    for index in range(len(problem.arguments)):
        for wrong in (lambda a: a.astype(other), lambda a: a[..., :-1]):
            arguments = list(problem.arguments)
            arguments[index] = wrong(arguments[index])
            result = recurrence.recurrence(*arguments, **problem.options)
            assert result is NotImplemented
    x, *others = problem.arguments
    for given in (x[:0], x[0], x.astype("f2")):
        assert recurrence.recurrence(given, *others, **problem.options) is NotImplemented
    for states in ((), (others[-1],) * 3):
        given = (x, *others[:4], *states)
        assert recurrence.recurrence(*given, **problem.options) is NotImplemented
    one_bias = [*problem.arguments[:4], None, *problem.arguments[5:]]
    assert recurrence.recurrence(*one_bias, **problem.options) is NotImplemented
    unknown = {"step": lambda *arguments: step(*arguments)}
    assert recurrence.recurrence(*problem.arguments, **unknown) is NotImplemented
    gradients = recurrence.recurrence(*problem.arguments, **problem.options)[1]
    dh, dstates = problem.given
    for wrong_gradients in ((dh[1:], dstates), (dh, (*dstates[:-1], dstates[-1][1:]))):
        with pytest.raises(InputError, match="shape"):
            gradients(*wrong_gradients)


def test_few_rows_are_declined(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "LEAST_ROWS", 8)
    for T, N in product((1, 2, 7, 8), (1, 4)):
        problem = Problem(cells.gru, (T, N, 2, 3), dtype)
        declined = recurrence.recurrence(*problem.arguments, **problem.options) is NotImplemented
        assert declined == (T * N < 8)


def test_a_step_of_a_subclass_is_its_own(dtype: str) -> None:
    class Still(nn.LSTM):
        def step(self, xp: Any, p: Any, q: Any, *states: Any) -> Any:
            return states, lambda *d: (0 * p, 0 * q, d)

    x = np.ones((4, 5, 3), dtype)
    assert not Still(3, 6, dtype=dtype, rng=0)(x).any()
    assert nn.LSTM(3, 6, dtype=dtype, rng=0)(x).all()
