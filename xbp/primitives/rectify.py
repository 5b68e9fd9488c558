"""max(x, 0) and its backward."""

from __future__ import annotations

from collections.abc import Callable

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def rectify(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """max(x, 0) for each entry; slope 1 for x > 0, else 0. A nan stays nan and has slope 0.

    Parameters
    ----------
    x : array of floating-point numbers

    Returns
    -------
    y : array
    backward : callable
        From ∂L/∂y to ∂L/∂x.
    """
    xp = array_namespace(x)
    y = xp.maximum(x, 0.0)
    return y, lambda dy: xp.astype(y > 0, dy.dtype) * dy
