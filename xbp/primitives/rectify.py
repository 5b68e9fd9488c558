"""max(x, 0) and its backward."""

from __future__ import annotations

from collections.abc import Callable

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def rectify(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """max(x, 0) for each entry; slope 0 for x ≤ 0, else 1. A nan stays nan, with slope 1.

    All of it as in PyTorch.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    backward : callable
        From ∂L/∂y to ∂L/∂x, of the dtype of y.
    """
    xp = array_namespace(x)
    y = xp.maximum(x, 0.0)
    return y, lambda dy: rectified(dy, y)


def rectified(dy: Array, y: Array) -> Array:
    """∂L/∂x of y = max(x, 0): ∂L/∂y where x > 0, and an exact 0 beside it, whatever ∂L/∂y is there.

    Parameters
    ----------
    dy, y : arrays of one shape
    """
    xp = array_namespace(y)
    return xp.where(y <= 0, 0.0, xp.astype(dy, y.dtype, copy=False))
