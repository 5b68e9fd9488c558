"""Softmax along one axis."""

from __future__ import annotations

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive


@primitive
def softmax(x: Array, *, axis: int) -> tuple[Array, Gradients]:
    """y_i = e^{x_i} / Σ_j e^{x_j} along one axis, with ∂L/∂x = y ∘ (∂L/∂y - Σ_j y_j ∂L/∂y_j).

    The largest x is subtracted first, which changes nothing but keeps the exponentials finite. A
    nan or ∞ along the axis makes all of it nan, as does -∞ alone; beside finite numbers -∞ gives 0.

    Parameters
    ----------
    x : array of floating-point numbers
    axis : int
        May have no entries.

    Returns
    -------
    y : array
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    xp = array_namespace(x)
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True) if x.shape[axis] != 0 else x)
    y = e / xp.sum(e, axis=axis, keepdims=True)
    return y, of_input(lambda dy: y * (dy - xp.sum(y * dy, axis=axis, keepdims=True)))
