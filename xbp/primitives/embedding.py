"""Rows of a table by index, and the sum of rows that share an index."""

from __future__ import annotations

from collections.abc import Callable

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def embedding(
    tokens: Array, weight: Array, padding: int | None = None
) -> tuple[Array, Callable[..., tuple[None, Array]]]:
    """y_i = W[t_i, :], so ∂L/∂W[k, :] = Σ_{i: t_i = k} ∂L/∂y_i.

    Parameters
    ----------
    tokens : array (…) of integers
        t. A token out of range gives a row of nan and no gradient, since libraries disagree (CuPy
        would wrap it around) and a check would be a host wait.
    weight : array (V, D)
    padding : int, optional
        A row that gets no gradient.

    Returns
    -------
    y : array (…, D)
    backward : callable
        From ∂L/∂y to (None, ∂L/∂W), as integers have no gradient.
    """
    xp = array_namespace(weight)
    length, width = weight.shape
    index = xp.reshape(xp.astype(tokens, xp.int64, copy=False), (-1,))
    rows = xp.take(weight, xp.minimum(xp.maximum(index, 0), length - 1), axis=0)
    known = (index >= 0) & (index < length)
    rows = xp.where(xp.expand_dims(known, axis=1), rows, float("nan"))

    def backward(dy: Array, wants_dx: bool = True) -> tuple[None, Array]:
        kept = index if padding is None else xp.where(index == padding, -1, index)
        return None, scatter_add(xp.reshape(dy, (-1, width)), kept, length)

    return xp.reshape(rows, (*_leading(tokens), width)), backward


def _leading(tokens: Array) -> tuple[int, ...]:
    """The shape of `tokens`, while tracing with -1 for an unknown size."""
    return tuple(-1 if size is None else size for size in tokens.shape)


@primitive
def scatter_add(values: Array, index: Array, length: int) -> Array:
    """S[k, :] = Σ_{i: index_i = k} values[i, :], added in an order that depends on `index` alone.

    Sorted by index, the rows of one sum are neighbours. For d = 1, 2, 4, … each row adds the row d
    before it if that has the same index. Then each row holds the sum of the rows of its index up to
    itself (a segmented scan: Hillis & Steele 1986; Blelloch 1990), and the last of them S[k, :].
    The additions form a tree, whose rounding error grows with log N; no shape depends on values.

    Parameters
    ----------
    values : array (N, D)
    index : array (N,) of int64
        Rows with an index outside 0, 1, …, length - 1 are left out.
    length : int

    Returns
    -------
    array (length, D)

    Examples
    --------
    >>> import numpy as np
    >>> scatter_add(np.array([[1.0], [2.0], [4.0], [8.0]]), np.array([2, 0, 2, -1]), 3).tolist()
    [[2.0], [0.0], [5.0]]
    """
    xp = array_namespace(values)
    n, width = values.shape
    if n == 0:
        return xp.zeros((length, width), dtype=values.dtype, device=values.device)
    order = xp.argsort(index, stable=True)
    sums, label = xp.take(values, order, axis=0), xp.take(index, order)
    distance = 1
    while distance < n:
        same = xp.expand_dims(label[distance:] == label[:-distance], axis=1)
        sums[distance:, ...] += xp.where(same, sums[:-distance, ...], 0.0)
        distance *= 2
    edges = xp.searchsorted(label, xp.arange(length + 1, dtype=xp.int64, device=values.device))
    last = xp.take(sums, xp.maximum(edges[1:] - 1, 0), axis=0)
    return xp.where(xp.expand_dims(edges[1:] > edges[:-1], axis=1), last, 0.0)
