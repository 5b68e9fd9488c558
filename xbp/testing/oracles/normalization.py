"""Normalizations, with a loop over the sets of entries that share moments."""

from __future__ import annotations

import math

import numpy as np

from xbp.testing.oracles.types import F64


def _standardized(x: F64, w: F64, b: F64, eps: float, mean: float, variance: float) -> F64:
    """w (x - mean) / sqrt(variance + eps) + b."""
    return w * (x - mean) / math.sqrt(variance + eps) + b


def _moments(x: F64) -> tuple[float, float]:
    """Mean and variance: sum x / n, and sum (x - mean)² / n."""
    mean = float(np.sum(x)) / x.size
    return mean, float(np.sum((x - mean) ** 2)) / x.size


def _affine(s: dict[str, F64], shape: tuple[int, ...]) -> tuple[F64, F64]:
    """w and b of a state, by default 1 and 0."""
    return s.get("weight", np.ones(shape)), s.get("bias", np.zeros(shape))


def batch_norm(s: dict[str, F64], x: F64, eps: float = 1e-5, training: bool = True) -> F64:
    """Batch normalization, x (N, C, ...), of each channel   (Ioffe & Szegedy 2015, algorithm 1).

    By the moments of the batch; in inference by the running moments, if the state has them.
    """
    y = np.empty_like(x)
    w, b = _affine(s, (x.shape[1],))
    for c in range(x.shape[1]):
        moments = _moments(x[:, c])
        if not training and "running_mean" in s:
            moments = float(s["running_mean"][c]), float(s["running_var"][c])
        y[:, c] = _standardized(x[:, c], w[c], b[c], eps, *moments)
    return y


def layer_norm(s: dict[str, F64], x: F64, shape: tuple[int, ...], eps: float = 1e-5) -> F64:
    """Layer normalization over the last axes, which have this shape (Ba, Kiros & Hinton 2016)."""
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[: x.ndim - len(shape)]):
        y[i] = _standardized(x[i], *_affine(s, shape), eps, *_moments(x[i]))
    return y


def rms_norm(s: dict[str, F64], x: F64, shape: tuple[int, ...], eps: float) -> F64:
    """Division by the root mean square over the last axes (Zhang & Sennrich 2019, eq. 4)."""
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[: x.ndim - len(shape)]):
        square = float(np.sum(x[i] ** 2)) / x[i].size
        y[i] = _affine(s, shape)[0] * x[i] / math.sqrt(square + eps)
    return y


def group_norm(s: dict[str, F64], x: F64, groups: int, eps: float = 1e-5) -> F64:
    """Group normalization, x (N, C, ...): C/groups neighbouring channels a group (Wu & He 2018)."""
    y, size = np.empty_like(x), x.shape[1] // groups
    w, b = _affine(s, (x.shape[1],))
    for n, c in np.ndindex(x.shape[:2]):
        first = c // size * size
        moments = _moments(x[n, first : first + size])
        y[n, c] = _standardized(x[n, c], w[c], b[c], eps, *moments)
    return y
