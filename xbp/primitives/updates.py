"""In-place updates of optimizers; an accelerator may do each in one pass over memory.

The first argument is changed (but by `plus_scaled`) and decides the library; nothing is returned.
Arrays may be lists of arrays: each array of the first list is changed by its counterparts.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import composed_update, each, update

Scalar: TypeAlias = "float | Array"
"""A number; in a step that a device has recorded and repeats, a 0-d array."""


@update
def add_scaled(p: Array, factor: Scalar, g: Array) -> None:
    """p ← p + factor · g.

    Parameters
    ----------
    p, g : arrays of one shape and dtype
    factor : float, or 0-d array of that dtype
    """
    p += factor * g


@each
def plus_scaled(g: Array, factor: Scalar, p: Array) -> Array:
    """g + factor · p, in new memory: the gradient of a rule that must not change the given one.

    Parameters
    ----------
    g, p : arrays of one shape and dtype
    factor : float, or 0-d array of that dtype
    """
    return g + factor * p


@update
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


@update
def accumulate(total: Array, beta: Scalar, g: Array, share: Scalar = 1.0) -> None:
    """A decaying sum: total ← β · total + share · g.

    Parameters
    ----------
    total, g : arrays of one shape and dtype
    beta, share : float, or 0-d array of that dtype
    """
    total *= beta
    total += g if isinstance(share, float) and share == 1 else share * g


@update
def rescale(p: Array, factor: Scalar) -> None:
    """p ← factor · p.

    Parameters
    ----------
    p : array
    factor : float, or 0-d array of its dtype
    """
    p *= factor


@update
def normalized_step(p: Array, rate: Scalar, m: Array, scale: Scalar, v: Array, eps: Scalar) -> None:
    """p ← p - rate · m / (scale · √v + eps).

    Parameters
    ----------
    p, m, v : arrays of one shape and dtype
    rate, scale, eps : float, or 0-d array of that dtype
    """
    p -= rate * m / (scale * array_namespace(v).sqrt(v) + eps)


@composed_update
def adaptive_step(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    beta1: float,
    beta2: float,
    rate: Scalar,
    scale: Scalar,
    eps: Scalar,
) -> None:
    """A step of Adam: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², and `normalized_step`.

    Parameters
    ----------
    p, m, v, g : arrays of one shape and dtype
        m and v are changed, too.
    beta1, beta2 : float
    rate, scale, eps : float, or 0-d array of that dtype
    """
    average(m, beta1, g)
    average(v, beta2, g, g)
    normalized_step(p, rate, m, scale, v, eps)
