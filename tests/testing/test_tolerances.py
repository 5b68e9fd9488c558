"""The bounds cover real rounding errors and each kind of operation, and are not much larger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xbp.backend import array_namespace
from xbp.testing.tolerances import LAMBDA, Rounded, _rounded, bounds, roundoff

A, B = np.random.default_rng(0).normal(size=(2, 30, 40))
U = roundoff("float32")


def bound(function: Callable[..., Any], *arrays: Any, dtype: str = "float32") -> float:
    arrays = tuple(np.asarray(a).astype(dtype).astype(float) for a in arrays)

    def run(rounded: Any) -> dict[str, Any]:
        given = [rounded(array.copy()) for array in arrays]
        return {"y": np.asarray(function(array_namespace(given[0]), *given))}

    return bounds(run, run(np.asarray), dtype)["y"]


def in_place(xp: Any, a: Any, b: Any) -> Any:
    c = xp.zeros(a.shape, dtype=a.dtype)
    c += a
    c[1:, :] *= b[1:, :]
    return c


def born(xp: Any, a: Any, b: Any) -> Any:
    """Arrays made by the function are rounded like its arguments."""
    columns = xp.empty((2, *a.shape), dtype=a.dtype)
    columns[0, ...] = a
    columns[1, ...] = b
    return columns[0, ...] + columns[1, ...]


ROUNDING: dict[str, Callable[..., Any]] = {
    "sum": lambda xp, a, b: a + b,
    "born": born,
    "in place": in_place,
    "ratio": lambda xp, a, b: a / (2 + abs(b)),
    "exp": lambda xp, a, b: xp.exp(a),
    "tanh": lambda xp, a, b: xp.tanh(a),
    "matmul": lambda xp, a, b: a @ b.T,
    "einsum": lambda xp, a, b: np.einsum("ij,kj->ik", a, b),
    "tensordot": lambda xp, a, b: xp.tensordot(a, b, axes=((0,), (0,))),
    "vecdot": lambda xp, a, b: xp.vecdot(a, b),
    "dot": lambda xp, a, b: np.dot(a, b.T),
    "reduction": lambda xp, a, b: xp.sum(a, axis=0),
    "total": lambda xp, a, b: xp.sum(a),
    "mean": lambda xp, a, b: xp.mean(a, axis=(0, 1)),
    "variance": lambda xp, a, b: xp.var(a, axis=1),
    "product": lambda xp, a, b: xp.prod(1 + a / 30, axis=1),
    "running sum": lambda xp, a, b: xp.cumulative_sum(a, axis=1),
    "constant": lambda xp, a, b: 0.1 * a,
    "where": lambda xp, a, b: xp.where(a > 0, 0.1, b),
    "concat": lambda xp, a, b: xp.concat([a * b, b]) - 1,
    "softmax": lambda xp, a, b: xp.exp(a) / xp.sum(xp.exp(a), axis=1, keepdims=True),
    "cancelling": lambda xp, a, b: (a + 1e4) - 1e4,
    "out": lambda xp, a, b: np.multiply(a, b, out=a),
}


@pytest.mark.parametrize("name", ROUNDING)
def test_the_bound_is_above_the_error_but_not_far(name: str) -> None:
    function = ROUNDING[name]
    a, b = A.astype("float32"), B.astype("float32")
    truth = np.asarray(function(np, a.astype(float), b.astype(float)))
    error = np.max(np.abs(np.asarray(function(np, a.copy(), b.copy())) - truth))
    found = bound(function, A, B)
    assert error <= found / 4  # a margin for another library's order and functions
    # λ = 8, at most 8u for a function, and √n for the sum of at most 1200 numbers.
    terms = np.max(np.abs(np.asarray(function(np, abs(a), abs(b)))))
    longest = {"cancelling": 1e4 / terms}.get(name, np.sqrt(1200))
    assert found <= 8 * 8 * U * max(longest, 1) * terms


def test_cancellation_is_seen() -> None:
    assert bound(ROUNDING["cancelling"], A, B) > 1e4 * U > 100 * bound(ROUNDING["sum"], A, B) / 8


EXACT: dict[str, Callable[..., Any]] = {
    "flip": lambda xp, a: xp.flip(a, axis=1),
    "reshape": lambda xp, a: xp.permute_dims(xp.reshape(a, (3, 10, 40)), (2, 0, 1)),
    "maximum": lambda xp, a: xp.maximum(a, 0.0),
    "max": lambda xp, a: xp.max(a, axis=1),
    "abs": lambda xp, a: -abs(a),
    "where": lambda xp, a: xp.where(a > 0, a, 0.5),
    "take": lambda xp, a: xp.take(a, xp.asarray([1, 2]), axis=1),
    "stack": lambda xp, a: xp.stack([a, a]),
    "sum of one": lambda xp, a: xp.sum(a[:, :1], axis=1),
    "slices": lambda xp, a: a[::2, 1:],
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_does_not_round_is_to_be_exact(name: str, dtype: str) -> None:
    assert bound(EXACT[name], A, dtype=dtype) <= np.finfo(dtype).tiny


def test_the_bound_of_one_rounding() -> None:
    """λu|y|, and twice that in float64, where the truth has been rounded, too."""
    for dtype, factor in (("float32", 1), ("float64", 2)):
        found = bound(lambda xp, a: a * a, np.ones(100) * 1.5, dtype=dtype)
        assert found == pytest.approx(factor * LAMBDA * roundoff(dtype) * 2.25, rel=1e-3, abs=0)


def test_the_bound_grows_with_the_root_of_a_sums_length() -> None:
    short, long = (bound(lambda xp, a: xp.sum(a), np.ones(n)) / n for n in (101, 10_001))
    # 8 samples of one number: their root mean square is always u √(n-1) Σ|terms|.
    assert long / short == pytest.approx(10, rel=1e-2)
    assert short == pytest.approx(LAMBDA * U * 10, rel=1e-2)


def test_errors_that_repeat_add_up() -> None:
    """A constant has the same rounding each time: n uses of 0.9 err by n roundings, not √n."""

    def decay(xp: Any, a: Any) -> Any:
        for _ in range(1000):
            a = a * 0.999
        return a

    systematic = 1000 * abs(float(np.float32(0.999)) / 0.999 - 1) * 0.999**1000
    assert bound(decay, np.ones(3)) > LAMBDA * systematic


def test_bounds_are_reproducible_and_leave_the_arrays_alone() -> None:
    a = A.copy()
    assert bound(ROUNDING["out"], a, B) == bound(ROUNDING["out"], a, B)
    assert np.array_equal(a, A)


def test_infinities_are_no_excuse() -> None:
    """-inf, as padding of a maximum or as a logit, makes no bound infinite, nan or 0."""

    def softmax(xp: Any, a: Any) -> Any:
        e = xp.exp(a - xp.max(a, axis=1, keepdims=True))
        return e / xp.sum(e, axis=1, keepdims=True)

    assert U < bound(softmax, np.array([[0.0, *[-np.inf] * 20, 1.0]])) < 1e-4


def test_the_condition_of_a_matrix_counts() -> None:
    def solve(xp: Any, a: Any, b: Any) -> Any:
        return xp.linalg.solve(a, b)

    for condition in (1e1, 1e4):
        q, _ = np.linalg.qr(A[:30, :30])
        a = (q * np.geomspace(1, 1 / condition, 30)) @ q.T
        low, rhs = a.astype("float32"), B[:30, :5].astype("float32")
        truth = np.linalg.solve(low.astype(float), rhs.astype(float))
        error, found = np.max(np.abs(np.linalg.solve(low, rhs) - truth)), bound(solve, a, rhs)
        assert error <= found <= 8 * 30 * 30 * U * condition * np.max(np.abs(truth))


def test_results_are_arrays_of_the_same_kind() -> None:
    a = _rounded(A.copy())
    Rounded.rng = np.random.default_rng(0)
    for array in (a + 1, np.sum(a), a[0], np.concat([a, a]), np.split(a, 2)[1], a.T, a > 0):
        assert type(array) is Rounded
    assert np.linalg.svd(a @ a.T).S.shape == (30,)
    np.add.at(a, 0, 1.0)
    assert a[0, 0] == A[0, 0] + 1
