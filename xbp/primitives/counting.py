"""Counting without a scatter-add."""

from __future__ import annotations

from xbp.backend import Array, array_namespace


def bincount(x: Array, length: int) -> Array:
    """The number of times that each of 0, 1, …, length - 1 occurs in x; other values do not count.

    In sorted x the number of values below i is a position, found by bisection, and differences of
    these positions are the counts. No array is larger than x and the result, no shape depends on
    values, and the result is exact.

    Parameters
    ----------
    x : array (N,) of integers, of a dtype that holds `length`
    length : int

    Returns
    -------
    counts : array (length,) of int64

    Examples
    --------
    >>> import numpy as np
    >>> bincount(np.array([3, 0, 3, -1, 7]), 4).tolist()
    [1, 0, 0, 2]
    """
    xp = array_namespace(x)
    edges = xp.arange(length + 1, dtype=x.dtype, device=x.device)
    below = xp.searchsorted(xp.sort(x), edges)
    return below[1:] - below[:-1]
