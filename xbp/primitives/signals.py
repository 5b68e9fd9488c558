"""Operations on signals (N, C, L), which are views as images of one row."""

from __future__ import annotations

from typing import Any

from xbp.backend import Array, array_namespace
from xbp.primitives.convolution import convolve
from xbp.primitives.dispatch import Gradients, primitive
from xbp.primitives.pooling import average_pool, max_pool


@primitive
def convolve1d(
    x: Array, weight: Array, bias: Array | None = None, **window: Any
) -> tuple[Array, Gradients]:
    """y[n, o, s] = b[o] + Σ_cj W[o, c, j] · x[n, c, s·stride + j·dilation].

    Parameters
    ----------
    x : array (N, in, L)
    weight : array (out, in/groups, k)
    bias : array (out,) or None
    **window
        Options of `convolve`, for images of one row.

    Returns
    -------
    y : array (N, out, OL)
    gradients : callable
        From ∂L/∂y to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    return of_one_row(convolve, x, weight, bias, **window)


@primitive
def max_pool1d(x: Array, **window: Any) -> tuple[Array, Gradients]:
    """y[n, c, s] = max_j x[n, c, s·stride + j]; see `max_pool`.

    Parameters
    ----------
    x : array (N, C, L)
    **window
        Options of `max_pool`, for images of one row.

    Returns
    -------
    y : array (N, C, OL)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    return of_one_row(max_pool, x, **window)


@primitive
def average_pool1d(x: Array, **window: Any) -> tuple[Array, Gradients]:
    """y[n, c, s] = 1/k Σ_j x[n, c, s·stride + j]; see `average_pool`.

    Parameters
    ----------
    x : array (N, C, L)
    **window
        Options of `average_pool`, for images of one row.

    Returns
    -------
    y : array (N, C, OL)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    return of_one_row(average_pool, x, **window)


def of_one_row(operation: Any, *signals: Array | None, **window: Any) -> tuple[Array, Gradients]:
    """An operation on images, and its gradients, of signals and weights of signals."""
    y, gradients = operation(*map(_image, signals), **window)

    def of_signals(dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
        return tuple(_signal(found) for found in gradients(_image(dy), wants_dx))

    return _signal(y), of_signals


def _image(array: Array | None) -> Array | None:
    """A signal, or a weight of signals, as that of images of one row; anything else as it is."""
    if array is None or array.ndim != 3:
        return array
    return array_namespace(array).expand_dims(array, axis=2)


def _signal(array: Array | None) -> Array | None:
    """The inverse of `_image`."""
    return array if array is None or array.ndim != 4 else array[:, :, 0, :]
