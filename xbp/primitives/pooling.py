"""Max and average pooling."""

from __future__ import annotations

import math
from functools import reduce

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive
from xbp.primitives.images import Pair, output_size, pad2d, unpad2d, windows


@primitive
def max_pool(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> tuple[Array, Gradients]:
    """y[n, c, r, s] = max_ij x[n, c, r·stride + i, s·stride + j], framed by -∞.

    ∂L/∂x sums ∂L/∂y over the windows in which the entry is the largest, of equal ones the first in
    row-major order. A window with a nan gives nan, and its last nan takes the gradient. The frame
    is never chosen, even if all entries are -∞. (All as in PyTorch.)

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel_size, stride, padding : (int, int)
        Padding is at most half the window.

    Returns
    -------
    y : array (N, C, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    xp = array_namespace(x)
    size = output_size(x.shape[2:], kernel_size, stride, padding)
    padded = pad2d(x, padding, -math.inf)
    places = [place for _, _, *place in windows(kernel_size, stride, size)]
    y = reduce(xp.maximum, (padded[:, :, rows, columns] for rows, columns in places))

    def input_gradient(dy: Array) -> Array:
        dx = xp.zeros_like(padded)
        chosen = chosen_places(padded, y, kernel_size, stride, padding)
        for k, (rows, columns) in enumerate(places):
            share = xp.where(chosen == k, dy, 0.0)
            if stride == kernel_size:  # windows do not overlap
                dx[:, :, rows, columns] = share
            else:
                dx[:, :, rows, columns] += share
        return unpad2d(dx, padding)

    return y, of_input(input_gradient)


def chosen_places(padded: Array, y: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """The position of each maximum in its window, in row-major order.

    Parameters
    ----------
    padded : array (N, C, H + 2p, W + 2q)
        The image, framed by -∞.
    y : array (N, C, OH, OW)
    kernel, stride, padding : (int, int)

    Returns
    -------
    array (N, C, OH, OW) of int32
    """
    xp = array_namespace(padded)
    # Initially the first position inside the image.
    chosen = xp.zeros_like(y, dtype=xp.int32)
    for r in range(min(y.shape[2], -(-padding[0] // stride[0]))):
        chosen[:, :, r, :] += (padding[0] - r * stride[0]) * kernel[1]
    for s in range(min(y.shape[3], -(-padding[1] // stride[1]))):
        chosen[:, :, :, s] += padding[1] - s * stride[1]
    best = xp.full_like(y, -math.inf)
    for k, (_, _, rows, columns) in enumerate(windows(kernel, stride, y.shape[2:])):
        v = padded[:, :, rows, columns]
        better = (v > best) | (v != v)  # larger or nan
        best, chosen = xp.where(better, v, best), xp.where(better, k, chosen)
    return chosen


@primitive
def average_pool(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> tuple[Array, Gradients]:
    """y[n, c, r, s] = 1/(kh·kw) Σ_ij x[n, c, r·stride + i, s·stride + j], framed by zeros.

    ∂L/∂x is 1/(kh·kw) of the sum of ∂L/∂y over the windows that contain the entry.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel_size, stride, padding : (int, int)

    Returns
    -------
    y : array (N, C, OH, OW)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    xp = array_namespace(x)
    size = output_size(x.shape[2:], kernel_size, stride, padding)
    padded = pad2d(x, padding)
    places = [place for _, _, *place in windows(kernel_size, stride, size)]
    share = 1 / math.prod(kernel_size)
    y = share * sum(padded[:, :, rows, columns] for rows, columns in places)

    def input_gradient(dy: Array) -> Array:
        dx = xp.zeros_like(padded)
        for rows, columns in places:
            dx[:, :, rows, columns] += share * dy
        return unpad2d(dx, padding)

    return y, of_input(input_gradient)
