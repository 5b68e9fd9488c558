"""Elementwise functions: the rectifier and the hyperbolic tangent."""

from __future__ import annotations

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive


@primitive
def rectify(x: Array) -> tuple[Array, Gradients]:
    """max(x, 0) for each entry; slope 0 for x ≤ 0, else 1. A nan stays nan, with slope 1.

    ∂L/∂x is ∂L/∂y for x > 0, and an exact 0 for x ≤ 0, for any ∂L/∂y, as in PyTorch.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,), of the dtype of y.
    """
    xp = array_namespace(x)
    y = xp.maximum(x, 0.0)
    return y, of_input(lambda dy: xp.where(y <= 0, 0.0, xp.astype(dy, y.dtype, copy=False)))


@primitive
def tanh(x: Array) -> tuple[Array, Gradients]:
    """tanh x = (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ) for each entry, with slope 1 - tanh² x.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    y = array_namespace(x).tanh(x)
    return y, of_input(lambda dy: (1 - y * y) * dy)
