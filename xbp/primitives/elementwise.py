"""Elementwise functions: a sum, the rectifier, tanh, the logistic function, SiLU, GELU."""

from __future__ import annotations

import math

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive
from xbp.primitives.special import erfc, sigmoid


@primitive
def add(x: Array, other: Array) -> Array:
    """x + other, such as a layer's output and the shortcut past it.

    Libraries disagree about the sum's order in memory: numpy keeps that of `x`, CuPy does not.

    Parameters
    ----------
    x, other : arrays of one shape and dtype
    """
    return x + other


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


@primitive
def logistic(x: Array) -> tuple[Array, Gradients]:
    """σ(x) = 1 / (1 + e⁻ˣ) for each entry, with slope σ (1 - σ): `sigmoid` as an operation.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    y = sigmoid(x)
    return y, of_input(lambda dy: y * (1 - y) * dy)


@primitive
def silu(x: Array) -> tuple[Array, Gradients]:
    """x σ(x) for each entry, with slope σ + x σ′ and σ′ = σ (1 - σ).

    The limits at -∞, 0 for value and slope, are products ∞ · 0 and come out as nan, as in PyTorch;
    so does the slope at ∞.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    g = sigmoid(x)
    return x * g, of_input(lambda dy: (g + x * (g * (1 - g))) * dy)


@primitive
def gelu(x: Array, *, approximate: str = "none") -> tuple[Array, Gradients]:
    """x Φ(x) for each entry, with slope Φ + x Φ′, or an approximation of Φ (`xbp.nn.GELU`).

    Φ(x) = ½ erfc(-x/√2) and Φ′(x) = e^(-x²/2) / √2π. The approximation is σ(v), with
    v = √(8/π) (x + 0.044715 x³). At ±∞ as `silu`.

    Parameters
    ----------
    x : array of floating-point numbers
    approximate : {"none", "tanh"}

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    xp = array_namespace(x)
    if approximate == "none":
        g = 0.5 * erfc(-math.sqrt(0.5) * x)

        def slope() -> Array:
            return xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    else:
        twice, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
        g = sigmoid(twice * (x + cubic * x * x * x))

        def slope() -> Array:
            return g * (1 - g) * (twice * (1 + 3 * cubic * x * x))

    return x * g, of_input(lambda dy: (g + x * slope()) * dy)
