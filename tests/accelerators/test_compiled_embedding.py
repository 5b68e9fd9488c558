"""Compiled rows of a table, and sums of rows that share an index, at each level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layouts import assert_close, elsewhere, unaligned
from numpy.typing import NDArray

from xbp import primitives
from xbp.accelerators.cpu import embedding, native
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level", "guards"),
]

Real = NDArray[Any]

# tokens, rows of the table, their width: sums longer than a block; one column; vectors full and not
SHAPES = [((5, 7), 3, 19), ((90,), 2, 16), ((4, 1, 3), 40, 1), ((6,), 1, 33), ((), 4, 5)]
LAYOUTS = ["as such", "mirrored", "turned", "unaligned"]


def laid_out(x: Real, layout: str) -> Real:
    if layout == "mirrored" and x.ndim:
        return np.array(x[..., ::-1], order="C")[..., ::-1]
    if layout == "turned":
        return np.array(x.T, order="C").T
    return unaligned(x) if layout == "unaligned" else x


def drawn(shape: Any, length: int, width: int, dtype: str, layout: str) -> tuple[Real, Real, Real]:
    """Tokens, some of them out of range, a table and ∂L/∂y."""
    rng = np.random.default_rng(0)
    tokens = np.asarray(rng.integers(-1, length + 1, shape))
    weight = rng.normal(size=(length, width)).astype(dtype)
    dy = rng.normal(size=(*shape, width)).astype(dtype)
    return laid_out(tokens, layout), laid_out(weight, layout), laid_out(dy, layout)


def sums(values: Real, index: Real, length: int, left_out: int | None = None) -> Real:
    """The sums in double precision, term by term."""
    total = np.zeros((length, values.shape[-1]))
    terms = values.reshape(-1, values.shape[-1]).astype("f8")
    for k, row in zip(index.ravel().tolist(), terms, strict=True):
        if 0 <= k < length and k != left_out:
            total[k] += row
    return total


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "length", "width"), SHAPES, ids=str)
def test_rows_and_their_gradient(
    shape: Any,
    length: int,
    width: int,
    layout: str,
    padding: int | None,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "LEAST_FOR_THREADS", 1)
    tokens, weight, dy = drawn(shape, length, width, dtype, layout)
    known, first = (tokens >= 0) & (tokens < length), None
    for threads in (1, 2, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        y, backward = elsewhere(embedding.embedding, tokens, weight, padding)
        none, gradient = elsewhere(backward, dy)
        assert none is None and y.dtype == gradient.dtype == dtype
        expected = np.where(known[..., None], weight[np.where(known, tokens, 0)], np.nan)
        assert np.array_equal(y, expected, equal_nan=True)
        assert_close(gradient, sums(dy, tokens, length, padding), tokens.size)
        first = gradient if first is None else first  # the number of threads changes no bit
        assert np.array_equal(gradient, first)
    for own, other in zip(
        (tokens, weight, dy), drawn(shape, length, width, dtype, "as such"), strict=True
    ):
        assert np.array_equal(own, other)


@pytest.mark.parametrize("kind", ["i1", "u2", "i4", "u8"])
def test_integers_of_any_dtype(kind: str, dtype: str) -> None:
    _, weight, dy = drawn((9,), 4, 8, dtype, "as such")
    tokens = np.arange(9).astype(kind) % 4
    y, backward = embedding.embedding(tokens, weight)
    assert np.array_equal(y, weight[np.arange(9) % 4])
    assert_close(backward(dy)[1], sums(dy, np.arange(9) % 4, 4), 3)


def test_long_sums_round_like_short_ones() -> None:
    """10⁵ equal terms one after the other lose 1e-5 and more; a tree has 17 roundings at most."""
    values = np.full((10**5, 1), 0.1, "f4")
    total = embedding.sums(values, np.zeros(10**5, np.int64), 1)
    assert abs(float(total[0, 0]) / (10**5 * float(np.float32(0.1))) - 1) < 17 * 2**-24


def test_numbers_that_are_not_finite_stay_in_their_row(dtype: str) -> None:
    _, _, dy = drawn((9,), 3, 7, dtype, "as such")
    dy[4, 2], dy[7, 3] = np.nan, np.inf
    total = embedding.sums(dy, np.arange(9) % 3, 3)
    assert np.isnan(total[1, 2]) and total[1, 3] == np.inf
    assert np.isfinite(total).sum() == total.size - 2


def test_what_is_declined(dtype: str) -> None:
    tokens, weight, dy = drawn((9,), 3, 7, dtype, "as such")
    for arguments in [
        (tokens, weight.astype("f2")),
        (tokens, weight[0]),
        (tokens, weight[:, :0]),
        (tokens[:0], weight),
        (tokens.astype("f4"), weight),
    ]:
        assert embedding.embedding(*arguments) is NotImplemented
    _, backward = embedding.embedding(tokens, weight)
    with pytest.raises(InputError, match="shape"):
        backward(dy[1:])


def test_it_is_what_the_primitive_calls(dtype: str) -> None:
    tokens, weight, dy = drawn((9,), 3, 7, dtype, "as such")
    found = primitives.embedding(tokens, weight)[1](dy)[1]
    assert np.array_equal(found, embedding.embedding(tokens, weight)[1](dy)[1])
