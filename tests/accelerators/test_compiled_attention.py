"""Compiled attention against the reference in double precision, at each level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layouts import assert_close, elsewhere, unaligned
from nightly import NIGHTLY
from numpy.typing import NDArray

from xbp import accelerators, primitives
from xbp.accelerators.cpu import attention, native
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level", "guards"),
]

Real = NDArray[Any]

# n, heads, times, s, d, e: vectors full and not, one key, one feature, more queries than keys
SHAPES = [
    *((2, 3, 16, 16, 16, 16), (1, 2, 5, 18, 3, 7), (3, 1, 33, 4, 9, 1), (2, 2, 7, 1, 1, 5)),
    (1, 1, 4, 70, 40, 33),
    # several blocks of queries and keys
    *((1, 2, 50, 50, 8, 8), (1, 1, 20, 53, 4, 5), (1, 1, 53, 20, 4, 5)),
]


def drawn(shape: Any, dtype: str, layout: str = "by time") -> list[Real]:
    """q, k, v and ∂L/∂y."""
    n, heads, times, s, d, e = shape
    rng = np.random.default_rng(0)
    arrays = []
    for steps, features in ((times, d), (s, d), (s, e), (times, e)):
        x = rng.normal(size=(n, steps, heads, features)).astype(dtype).transpose(0, 2, 1, 3)
        if layout != "by time":
            x = np.ascontiguousarray(x)
        if layout == "mirrored":
            x = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
        if layout == "of one matrix":
            x = np.repeat(x, 2, axis=-1)[..., ::2]
        arrays.append(unaligned(x) if layout == "unaligned" else x)
    return arrays


def truth(arrays: list[Real], **options: Any) -> list[Real]:
    *given, dy = [x.astype("f8") for x in arrays]
    with accelerators.disabled():
        reference: Any = primitives.attention
        y, backward = reference.reference(*given, **options)
        return [y, *backward(dy)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", ["by time", "as such", "mirrored", "of one matrix", "unaligned"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(
    shape: Any, layout: str, causal: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LEAST_FOR_THREADS", 1)
    arrays, expected, first = drawn(shape, dtype, layout), None, None
    for threads in (1, 2, 3) if NIGHTLY else (1, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, backward = elsewhere(attention.attention, *arrays[:3], causal=causal)
        found = [y, *elsewhere(backward, arrays[3])]
        expected = expected or truth(arrays, causal=causal)
        for own, other in zip(found, expected, strict=True):
            assert own.dtype == dtype
            assert_close(own, other, sum(shape))
        first = first or found  # the number of threads changes no bit
        assert all(np.array_equal(one, two) for one, two in zip(found, first, strict=True))
        without, *same = elsewhere(backward, arrays[3], False)
        assert without is None
        assert all(np.array_equal(one, two) for one, two in zip(same, found[2:], strict=True))
    for own, other in zip(arrays, drawn(shape, dtype, layout), strict=True):
        assert np.array_equal(own, other)


@pytest.mark.parametrize("causal", [False, True])
def test_numbers_that_are_not_finite(causal: bool, dtype: str) -> None:
    """A head's infinities and nan stay its own; scores that are all -∞ give 0, and no gradient."""
    shape = 2, 4, 6, 19, 5, 4
    arrays = drawn(shape, dtype)
    q, k, v, _ = arrays
    q[0, 0, 2, 1], k[0, 1, 4, 0], v[0, 2, 3, 1], q[0, 3, 1, 2] = np.nan, np.inf, np.inf, -np.inf
    q[1, 0, :, 0], k[1, 0, :, 0] = np.inf, -1.0
    # Scores of one product each: equal keys have equal ones in any order of the sum. A key of 10
    # takes the score beyond the largest number, and leaves rounding in the gradients small.
    k[1, 1] = 0.0
    q[1, 1, 2], k[1, 1, :, 0] = -3e38 if dtype == "float32" else -1e308, 10.0
    with np.errstate(all="ignore"):
        reference: Any = primitives.attention
        with accelerators.disabled():
            y, backward = reference.reference(q, k, v, causal=causal)
            expected = [y, *backward(arrays[3])]
        y, backward = attention.attention(q, k, v, causal=causal)
        found = [y, *backward(arrays[3])]
    assert np.all(found[0][1, :2, 2] == 0)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", range(4))
def test_nothing_is_left_out_beside_numbers_that_are_not_finite(place: int, dtype: str) -> None:
    """0 · ∞ is nan, in products with keys that a query does not see, too."""
    arrays = drawn((1, 1, 40, 40, 4, 4), dtype)
    arrays[place][0, 0, 38, 1] = np.inf
    with np.errstate(all="ignore"):
        expected = truth(arrays, causal=True)
        y, backward = attention.attention(*arrays[:3], causal=True)
        found = [y, *backward(arrays[3])]
    for own, other in zip(found, expected, strict=True):
        assert np.array_equal(np.isnan(own), np.isnan(other))
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)


def test_what_is_declined(dtype: str) -> None:
    other = "float64" if dtype == "float32" else "float32"
    q, k, v, dy = drawn((2, 3, 5, 7, 4, 6), dtype)
    hidden, dropped = np.zeros((2, 7), bool), np.ones((2, 3, 5, 7), dtype)
    for arguments in [
        (q, k, v, hidden),
        (q, k, v, None, dropped),
        (q.astype(other), k, v),
        (q, k.astype(other), v),
        (q, k, v.astype(other)),
        (q.astype("f2"), k.astype("f2"), v.astype("f2")),
        (q[:, :, :3], k, v),
        (q[:1], k, v),
        (q, k[:, :1], v),
        (q, k[..., :3], v),
        (q, k[:, :, :6], v),
        (q, k, v[:, :1]),
        (q[0], k[0], v[0]),
        (q[..., :0], k[..., :0], v),
        (q, k, v[..., :0]),
        (q[:0], k[:0], v[:0]),
    ]:
        assert attention.attention(*arguments) is NotImplemented
    _, backward = attention.attention(q, k, v)
    with pytest.raises(InputError, match="shape"):
        backward(dy[:, :, 1:])
