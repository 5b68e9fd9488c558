"""Inputs of cases: reproducible numbers from seeds."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace

Host: TypeAlias = NDArray[Any]


def normal(*shape: int, seed: int = 1) -> Host:
    return np.random.default_rng(seed).normal(size=shape)


def sparse(*shape: int) -> Host:
    """Half of the entries are 0, exactly on kinks, with ties of maxima."""
    return normal(*shape) * np.random.default_rng(2).integers(0, 2, shape)


def away_from_zero(*shape: int) -> Host:
    """Entries of ±[0.1, 2]: kinks at 0 are far from every difference quotient."""
    rng = np.random.default_rng(1)
    return np.asarray(rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape))


def distinct(*shape: int) -> Host:
    """All entries differ by at least 0.1: a maximum does not change under a difference quotient."""
    size = int(np.prod(shape))
    order = np.random.default_rng(1).permutation(size)
    return np.reshape(0.1 * order - 3.05, shape)


def wide(*shape: int) -> Host:
    """Entries up to some hundreds, where a naive exponential overflows."""
    return 100 * normal(*shape)


def ends(*shape: int) -> Host:
    """Infinities and nan among normal numbers, and samples of -∞ alone.

    nan is in the last samples, so that a batch of one has an infinity with a finite neighbour.
    """
    x = normal(*shape)
    flat = x.reshape(-1)
    flat[1 : -(x.size // 3) : 7] = -np.inf
    flat[4 : -(x.size // 3) : 13] = np.inf
    flat[-2] = np.nan
    x[1] = -np.inf
    return x


def masked(n: int, classes: int) -> Host:
    """Logits of -∞, that is excluded classes, except for the labels 0, 1, …, n - 1."""
    z = normal(n, classes)
    z[np.arange(n), (np.arange(n) + 1) % classes] = -np.inf
    return z


def words(*shape: int) -> Host:
    """32-bit words, as int64."""
    return np.random.default_rng(1).integers(0, 2**32, shape)


def scattered(x: Array) -> Array:
    """The same numbers with a memory layout of reversed axes and gaps."""
    xp = array_namespace(x)
    axes = tuple(reversed(range(x.ndim)))
    doubled = xp.repeat(xp.permute_dims(x, axes), 2, axis=x.ndim - 1)
    return xp.permute_dims(doubled[..., ::2], axes)
