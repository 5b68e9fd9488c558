"""Inputs of cases: reproducible arrays from seeds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace

Host: TypeAlias = NDArray[Any]


def normal(*shape: int, seed: int = 1) -> Host:
    return np.random.default_rng(seed).normal(size=shape)


def sparse(*shape: int) -> Host:
    """An array with half of its entries 0: exactly on kinks, and with ties of maxima."""
    return normal(*shape) * np.random.default_rng(2).integers(0, 2, shape)


def away_from_zero(*shape: int) -> Host:
    """An array with entries in ±[0.1, 2], so that difference quotients avoid a kink at 0."""
    rng = np.random.default_rng(1)
    return np.asarray(rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape))


def distinct(*shape: int) -> Host:
    """An array whose entries differ by at least 0.1, so that difference quotients avoid ties."""
    size = int(np.prod(shape))
    order = np.random.default_rng(1).permutation(size)
    return np.reshape(0.1 * order - 3.05, shape)


def wide(*shape: int) -> Host:
    """An array with entries up to some hundreds, where a naive exponential overflows."""
    return 100 * normal(*shape)


def ends(*shape: int) -> Host:
    """An array with infinities and nan among normal numbers, and one sample of -∞ alone.

    The nan is in the last sample; the first has infinities with finite neighbours.
    """
    x = normal(*shape)
    flat = x.reshape(-1)
    flat[1 : -(x.size // 3) : 7] = -np.inf
    flat[4 : -(x.size // 3) : 13] = np.inf
    flat[-2] = np.nan
    x[1] = -np.inf
    return x


def masked(n: int, classes: int) -> Host:
    """Logits with one excluded class (-∞) in each row, which is never the label."""
    z = normal(n, classes)
    z[np.arange(n), (np.arange(n) + 1) % classes] = -np.inf
    return z


def words(*shape: int) -> Host:
    """32-bit words, as int64."""
    return np.random.default_rng(1).integers(0, 2**32, shape)


def scattered(x: Array) -> Array:
    """The same array in memory with reversed axes and with gaps; a single number as it is."""
    if not x.ndim:
        return x
    xp = array_namespace(x)
    axes = tuple(reversed(range(x.ndim)))
    doubled = xp.repeat(xp.permute_dims(x, axes), 2, axis=x.ndim - 1)
    return xp.permute_dims(doubled[..., ::2], axes)
