"""Softmax and normalization along rows against their definitions, at each level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from guards import Guards
from numpy.typing import NDArray

from xbp import primitives
from xbp.accelerators.cpu import native, rows
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level", "guards"),
]

Real = NDArray[Any]
# Full vectors, and not; fewer rows than threads, and more than blocks
SHAPES = [(1, 16), (2, 17), (5, 3, 33), (100, 64), (2100, 31), (3, 700)]


def draw(shape: Any, dtype: str, seed: int = 0, scale: float = 1.0) -> Real:
    x = np.empty(shape, dtype)
    x[...] = scale * np.random.default_rng(seed).normal(size=shape)
    return x


def assert_close(result: Real, truth: Real, allowed: Any) -> None:
    assert result.shape == truth.shape
    assert np.all(np.abs(result - truth) <= allowed * np.finfo(result.dtype).eps)


# --- softmax ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_errors_of_softmax(shape: tuple[int, ...], scale: float, dtype: str) -> None:
    x = draw(shape, dtype, scale=scale)
    wide = x.astype(np.longdouble)
    wide -= wide.max(axis=-1, keepdims=True)
    powers = np.exp(wide)
    truth = powers / powers.sum(axis=-1, keepdims=True)
    y, gradients = rows.softmax(x, axis=-1)
    # of a sum of c/lanes + log₂ lanes terms each is rounded by half a unit at most
    units = 5 + np.abs(wide) + (shape[-1] / 2 + 4) / 2
    least = np.longdouble(np.finfo(dtype).smallest_subnormal) / np.finfo(dtype).eps
    assert_close(y, truth, units * truth + 4 * least)
    dy = draw(shape, dtype, 1)
    exact = y.astype(np.longdouble)
    terms = np.sum(exact * np.abs(dy), axis=-1, keepdims=True)
    true_dx = exact * (dy - np.sum(exact * dy, axis=-1, keepdims=True))
    assert_close(gradients(dy)[0], true_dx, exact * (np.abs(dy) + shape[-1] * terms) + 4 * least)


def test_softmax_reaches_subnormal_numbers(dtype: str) -> None:
    far = -float(np.log(np.finfo(dtype).smallest_subnormal)) - 5
    x = np.asarray([[0, -far, -2 * far, -1e4] * 8], dtype)
    y = rows.softmax(x, axis=1)[0]
    assert 0 < y[0, 1] < np.finfo(dtype).tiny and y[0, 2] == y[0, 3] == 0


def test_softmax_of_what_is_not_finite_as_in_the_reference(dtype: str) -> None:
    x = draw((7, 37), dtype)
    x[0], x[1, 5], x[2, 36], x[3, 3], x[4, :-1] = -np.inf, np.inf, np.nan, -np.inf, -np.inf
    x[5, 0] = np.nan
    y, gradients = rows.softmax(x, axis=-1)
    dy, reference = draw(x.shape, dtype, 1), primitives.softmax.reference  # type: ignore[attr-defined]
    with np.errstate(invalid="ignore"):
        truth, true_gradients = reference(x, axis=-1)
    np.testing.assert_allclose(y, truth, rtol=1e-5)
    np.testing.assert_allclose(gradients(dy)[0], true_gradients(dy)[0], rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.isnan(y).any(axis=1), np.isnan(y).all(axis=1))


def test_softmax_along_the_innermost_axis_in_memory(dtype: str, guards: Guards) -> None:
    x = draw((40, 5, 6), dtype).transpose(1, 2, 0)
    assert rows.softmax(x, axis=2) is NotImplemented
    x = guards.copy(draw((5, 6, 40), dtype)).transpose(2, 0, 1)
    y, gradients = rows.softmax(x, axis=0)
    assert y.strides == x.strides
    expected, expected_gradients = rows.softmax(guards.copy(x.transpose(1, 2, 0)), axis=-1)
    assert np.array_equal(y.transpose(1, 2, 0), expected)
    dy = draw(x.shape, dtype, 1)
    (dx,) = gradients(dy)
    assert np.array_equal(dx.transpose(1, 2, 0), expected_gradients(dy.transpose(1, 2, 0))[0])
    assert gradients(dy, False) == (None,)
    for wrong in (dy[:-1], dy[0]):
        with pytest.raises(InputError, match="shape"):
            gradients(wrong)


# --- normalization ---


def definition(x: Real, w: Real | None, b: Real | None, dy: Real, eps: float, centre: bool) -> Any:
    """y, ∂L/∂x, ∂L/∂w and ∂L/∂b in long double, by the Jacobian's formula."""
    wide = x.astype(np.longdouble)

    def mean(a: Real) -> Any:
        return a.mean(axis=-1, keepdims=True)

    centred = wide - mean(wide) if centre else wide
    r = 1 / np.sqrt(mean(centred**2) + eps)
    normal = centred * r
    g = dy if w is None else w * dy
    dx = r * (g - normal * mean(g * normal) - (mean(g) if centre else 0))
    y = normal if w is None else w * normal
    others = tuple(range(x.ndim - 1))
    return y if b is None else y + b, dx, np.sum(dy * normal, axis=others), np.sum(dy, axis=others)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("learned", ["w and b", "w", "nothing"])
def test_normalize(shape: tuple[int, ...], centre: bool, learned: str, dtype: str) -> None:
    x, dy = draw(shape, dtype), draw(shape, dtype, 1)
    w = draw(shape[-1:], dtype, 2) if learned != "nothing" else None
    b = draw(shape[-1:], dtype, 3) if learned == "w and b" else None
    axes = (len(shape) - 1,)
    y, gradients = rows.normalize(x, w, b, axes=axes, eps=0.1, centre=centre)
    truth, true_dx, true_dw, true_db = definition(x, w, b, dy, 0.1, centre)
    # √terms roundings in a sum of random terms of order 1, with a factor for the worst entry
    row, column = (20 * math.sqrt(n) for n in (shape[-1], x.size // shape[-1]))
    assert_close(y, truth, row)
    dx, dw, db = gradients(dy)
    assert_close(dx, true_dx, row)
    for result, parameter, expected in ((dw, w, true_dw), (db, b, true_db)):
        assert (result is None) == (parameter is None)
        if result is not None:
            assert_close(result, expected, 10 * column)
    again = gradients(dy, False)
    assert again[0] is None
    assert all(a is b or np.array_equal(a, b) for a, b in zip(again[1:], (dw, db), strict=True))


def test_normalization_over_several_axes(dtype: str) -> None:
    x, dy = draw((3, 4, 5, 6), dtype), draw((3, 4, 5, 6), dtype, 1)
    w, b = draw((5, 6), dtype, 2), draw((5, 6), dtype, 3)
    y, gradients = rows.normalize(x.transpose(1, 0, 2, 3), w, b, axes=(2, 3), eps=1e-5)
    flat, flat_gradients = rows.normalize(
        x.transpose(1, 0, 2, 3).reshape(12, 30), w.ravel(), b.ravel(), axes=(1,), eps=1e-5
    )
    assert np.array_equal(y.reshape(12, 30), flat)
    dy = dy.transpose(1, 0, 2, 3)
    for array, other in zip(gradients(dy), flat_gradients(dy.reshape(12, 30)), strict=True):
        assert np.array_equal(array.ravel(), other.ravel())
    assert gradients(dy)[1].shape == (5, 6)


def test_far_from_zero_no_digits_of_the_deviations_are_lost(dtype: str) -> None:
    """As in the reference: the first mean's rounding error is subtracted, too."""
    offset = 1e6 if dtype == "float32" else 1e14
    steps = np.arange(40) % 3 - 1.0
    x = np.empty((2, 40), dtype)
    x[0], x[1] = offset + steps, offset + 1 / 3
    y = rows.normalize(x, None, None, axes=(1,), eps=1e-5)[0]
    centred = steps - steps.mean()
    assert_close(y[0], centred / np.sqrt(np.mean(centred**2) + 1e-5), 100)
    assert np.all(y[1] == 0)
    x[...] = -(np.finfo(dtype).max ** 0.75)  # the square of a rounding error overflows
    y, gradients = rows.normalize(x, None, None, axes=(1,), eps=1e-5)
    assert np.all(y == 0) and np.all(np.isfinite(gradients(draw(x.shape, dtype))[0]))


def test_normalization_of_what_is_not_finite_as_in_the_reference(dtype: str) -> None:
    x = draw((6, 37), dtype)
    x[0], x[1, 5], x[2, 36], x[3, 3] = -np.inf, np.inf, np.nan, -np.inf
    w, reference = draw(37, dtype, 1), primitives.normalize.reference  # type: ignore[attr-defined]
    for centre in (True, False):
        options = {"axes": (1,), "eps": 1e-5, "centre": centre}
        y, gradients = rows.normalize(x, w, w, **options)
        results = (y, *gradients(np.cos(w) * np.ones_like(x)))
        with np.errstate(invalid="ignore"):
            y, gradients = reference(x, w, w, **options)
            truths = (y, *gradients(np.cos(w) * np.ones_like(x)))
        for result, truth in zip(results, truths, strict=True):
            np.testing.assert_allclose(result, truth, rtol=1e-4, atol=1e-5)


# --- threads, and what is declined ---


def test_threads_change_no_bit(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, dy = draw((1501, 33), dtype), draw((1501, 33), dtype, 1)
    w, expected = draw(33, dtype, 2), []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, gradients = rows.softmax(x, axis=-1)
        z, more = rows.normalize(x, w, w, axes=(1,), eps=1e-5)
        results = [y, *gradients(dy), z, *more(dy)]
        expected = expected or results
        assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_what_is_declined(dtype: str) -> None:
    x, w = draw((40, 50), dtype), draw(50, dtype)
    other = "float64" if dtype == "float32" else "float32"
    lanes = native.lanes(np.dtype(dtype).itemsize)
    for wrong in (x[:, : lanes - 1].copy(), x[:0], x[:, ::2], x.astype("f2"), x.T):
        assert rows.softmax(wrong, axis=-1) is NotImplemented
    assert rows.softmax(x, axis=0) is NotImplemented
    for given, weight, bias, axes in (
        (x, w.astype(other), None, (1,)),
        (x, w, w.astype(other), (1,)),
        (x, w[:1], None, (1,)),
        (x, None, None, (0,)),
        (x, None, None, ()),
        (x[:0], w, w, (1,)),
        (x[:, : lanes - 1], None, None, (1,)),
        (x.astype("f2"), None, None, (1,)),
    ):
        assert rows.normalize(given, weight, bias, axes=axes, eps=1.0) is NotImplemented
    assert rows.normalize(x, w, w, axes=(1,), eps=1.0) is not NotImplemented
    with pytest.raises(InputError, match="shape"):
        rows.normalize(x, w, w, axes=(1,), eps=1.0)[1](x[1:])
