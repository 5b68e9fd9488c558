"""What optimizers do to arrays in place: one pass over memory each, for who can do it in one.

The first argument is changed, and decides; nothing is returned.
"""

from __future__ import annotations

import math

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def add_scaled(p: Array, factor: float, g: Array) -> None:
    """P ← p + factor · g.

    Parameters
    ----------
    p, g : arrays of one shape and dtype
    factor : float
    """
    p += factor * g


@primitive
def average(mean: Array, beta: float, *factors: Array) -> None:
    """An exponential average: mean ← β · mean + (1 - β) · product of the factors.

    Parameters
    ----------
    mean : array
    beta : float
    *factors : arrays of its shape and dtype
    """
    mean *= beta
    mean += math.prod(factors, start=1 - beta)


@primitive
def normalized_step(p: Array, rate: float, m: Array, scale: float, v: Array, eps: float) -> None:
    """P ← p - rate · m / (scale · √v + eps).

    Parameters
    ----------
    p, m, v : arrays of one shape and dtype
    rate, scale, eps : float
    """
    p -= rate * m / (scale * array_namespace(v).sqrt(v) + eps)
