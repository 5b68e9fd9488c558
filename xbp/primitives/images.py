"""Windows of an image: how convolution and pooling look at their input.

Images are NCHW to everyone outside. In memory their rows come first and the batch innermost
(H, C, W, N): every slice below then copies or adds long contiguous runs, and a convolution is one
matrix product a row. Elementwise functions keep that order, so it survives from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive

Pair: TypeAlias = "tuple[int, int]"


def rows_first(x: Array) -> Array:
    """(N, C, H, W) → (H, C, W, N), as a view."""
    return array_namespace(x).permute_dims(x, (2, 1, 3, 0))


def images(rows: Array) -> Array:
    """(H, C, W, N) → (N, C, H, W), as a view: the inverse of `rows_first`."""
    return array_namespace(rows).permute_dims(rows, (3, 1, 0, 2))


@primitive
def flatten(x: Array) -> Array:
    """(N, a, b, …) → (N, a·b·…), in row-major order, whatever the order of x in memory.

    Parameters
    ----------
    x : array of at least one axis
    """
    return array_namespace(x).reshape(x, (-1, math.prod(x.shape[1:])))


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """How many windows fit along height and width: ⌊(size + 2·padding - kernel) / stride⌋ + 1."""
    height, width = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    )
    return height, width


def windows(kernel: Pair, stride: Pair, output: Pair) -> Iterator[tuple[int, int, slice, slice]]:
    """For each place (i, j) in a window, the rows and columns that all windows have there."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i, i + stride[0] * (output[0] - 1) + 1, stride[0])
            columns = slice(j, j + stride[1] * (output[1] - 1) + 1, stride[1])
            yield i, j, rows, columns


def pad2d(x: Array, padding: Pair, value: float = 0.0) -> Array:
    """(N, C, H, W) → (N, C, H + 2p, W + 2q), framed by `value`; `x` itself where p = q = 0."""
    if padding == (0, 0):
        return x
    xp = array_namespace(x)
    n, c, h, w = x.shape
    p, q = padding
    padded = xp.full((h + 2 * p, c, w + 2 * q, n), value, dtype=x.dtype, device=x.device)
    padded[p : p + h, :, q : q + w, :] = rows_first(x)
    return images(padded)


def unpad2d(x: Array, padding: Pair) -> Array:
    """The transpose of `pad2d`: the inner part of `x`, as a view."""
    p, q = padding
    return x[:, :, p : x.shape[2] - p, q : x.shape[3] - q]


def im2col(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Every window of every image, as a column: the input of a convolution as a matrix product.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel, stride, padding : (int, int)

    Returns
    -------
    array (OH, C·kh·kw, OW·N)
        One matrix a row of the output. Column ``(ow, n)`` of matrix ``oh`` is the window of image
        n at (oh, ow), its entries in the order of a weight's (C, kh, kw).
    """
    xp = array_namespace(x)
    n, c, h, w = x.shape
    oh, ow = output_size((h, w), kernel, stride, padding)
    padded = rows_first(pad2d(x, padding))
    columns = xp.empty((oh, c, *kernel, ow, n), dtype=x.dtype, device=x.device)
    for i, j, rows, cols in windows(kernel, stride, (oh, ow)):
        columns[:, :, i, j, :, :] = padded[rows, :, cols, :]
    return xp.reshape(columns, (oh, c * kernel[0] * kernel[1], ow * n))


def col2im(
    columns: Array, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair
) -> Array:
    """The transpose of `im2col` (its adjoint, not its inverse): windows add up where they overlap.

    Parameters
    ----------
    columns : array (OH, C·kh·kw, OW·N)
    shape : (N, C, H, W)
        The shape of the image to return.

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_namespace(columns)
    n, c, h, w = shape
    p, q = padding
    oh, ow = output_size((h, w), kernel, stride, padding)
    columns = xp.reshape(columns, (oh, c, *kernel, ow, n))
    padded = xp.zeros((h + 2 * p, c, w + 2 * q, n), dtype=columns.dtype, device=columns.device)
    for i, j, rows, cols in windows(kernel, stride, (oh, ow)):
        padded[rows, :, cols, :] += columns[:, :, i, j, :, :]
    return unpad2d(images(padded), padding)
