"""Padding, windows and memory layout of images, for convolution and pooling.

The shape of images is (N, C, H, W). In memory the order of their axes is (H, C, W, N), with rows
outermost and the batch innermost. So slices are copied and added in long contiguous pieces, and a
convolution is one matrix product for each row. Elementwise functions keep this order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import Gradients, of_input, primitive

Pair: TypeAlias = "tuple[int, int]"
Padding: TypeAlias = "tuple[int | Pair, int | Pair]"
"""(p, q): rows above and below, columns left and right; or (top, bottom) and (left, right)."""


def rows_first(x: Array) -> Array:
    """(N, C, H, W) → (H, C, W, N), as a view."""
    return array_namespace(x).permute_dims(x, (2, 1, 3, 0))


def as_nchw(rows: Array) -> Array:
    """(H, C, W, N) → (N, C, H, W), as a view: the inverse of `rows_first`."""
    return array_namespace(rows).permute_dims(rows, (3, 1, 0, 2))


@primitive
def flatten(x: Array) -> tuple[Array, Gradients]:
    """(N, a, b, …) → (N, a·b·…), in row-major order, whatever the order of x in memory.

    Parameters
    ----------
    x : array of at least one axis

    Returns
    -------
    y : array (N, a·b·…)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    xp, shape = array_namespace(x), x.shape
    y = xp.reshape(x, (-1, math.prod(shape[1:])))
    return y, of_input(lambda dy: xp.reshape(dy, shape))


def sides(padding: Padding) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right))."""
    p, q = padding
    return ((p, p) if isinstance(p, int) else p), ((q, q) if isinstance(q, int) else q)


def output_size(
    size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Pair:
    """The number of windows along height and width.

    ⌊(size + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1.
    """
    p, q = padding
    height = size[0] + (2 * p if isinstance(p, int) else sum(p))
    width = size[1] + (2 * q if isinstance(q, int) else sum(q))
    return (
        (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
    )


def windows(
    kernel: Pair, stride: Pair, output: Pair, dilation: Pair = (1, 1)
) -> Iterator[tuple[int, int, slice, slice]]:
    """For each offset (i, j) in a window: i, j, and the rows and columns of all windows there."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + stride[0] * (output[0] - 1) + 1, stride[0])
            columns = slice(left, left + stride[1] * (output[1] - 1) + 1, stride[1])
            yield i, j, rows, columns


def pad2d(x: Array, padding: Padding, value: float = 0.0) -> Array:
    """(N, C, H, W) → (N, C, H + 2p, W + 2q), padded with `value`; negative padding crops.

    The result is a view if nothing is added.
    """
    if padding == (0, 0):
        return x
    (top, bottom), (left, right) = sides(padding)
    x = x[:, :, max(-top, 0) : x.shape[2] - max(-bottom, 0), :]
    x = x[:, :, :, max(-left, 0) : x.shape[3] - max(-right, 0)]
    top, bottom, left, right = (max(side, 0) for side in (top, bottom, left, right))
    if not (top or bottom or left or right):
        return x
    xp = array_namespace(x)
    n, c, h, w = x.shape
    framed = (top + h + bottom, c, left + w + right, n)
    padded = xp.full(framed, value, dtype=x.dtype, device=x.device)
    padded[top : top + h, :, left : left + w, :] = rows_first(x)
    return as_nchw(padded)


def unpad2d(x: Array, padding: Padding) -> Array:
    """The transpose of `pad2d` with zeros: the padding is cropped, and what was cropped is 0."""
    (top, bottom), (left, right) = sides(padding)
    return pad2d(x, ((-top, -bottom), (-left, -right)))


@primitive
def zero_pad(x: Array, *, padding: Padding) -> tuple[Array, Gradients]:
    """Images padded with zeros, or cropped: `pad2d` as an operation.

    Parameters
    ----------
    x : array (N, C, H, W)
    padding : (int, int) or ((top, bottom), (left, right))

    Returns
    -------
    y : array (N, C, H + top + bottom, W + left + right)
    gradients : callable
        From ∂L/∂y to (∂L/∂x,).
    """
    return pad2d(x, padding), of_input(lambda dy: unpad2d(dy, padding))


def unfold_rows(
    x: Array, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Array:
    """The overlapping windows of each row of each image, side by side.

    Only the width of the kernel is unfolded. Rows are outermost, so that the rows of a window are a
    slice of the result, and overlaps of rows need no copy. (Cho & Brand 2017, "MEC:
    Memory-efficient Convolution for Deep Neural Network".)

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel, stride, padding, dilation : (int, int)

    Returns
    -------
    array (H + 2p, C, kw, OW, N)
        Entry (h, c, j, s, n) is x[n, c, h - p, s·stride + j·dilation - q], or 0 outside the image.
    """
    xp = array_namespace(x)
    n, c, h, w = x.shape
    size = output_size((h, w), kernel, stride, padding, dilation)
    padded = rows_first(pad2d(x, padding))
    shape = (padded.shape[0], c, kernel[1], size[1], n)
    unfolded = xp.empty(shape, dtype=x.dtype, device=x.device)
    for _, j, _, columns in windows((1, kernel[1]), stride, size, dilation):
        unfolded[:, :, j, :, :] = padded[:, :, columns, :]
    return unfolded


def fold_rows(
    unfolded: Array,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
) -> Array:
    """The transpose of `unfold_rows` (not its inverse): overlapping windows add up in the image.

    Parameters
    ----------
    unfolded : array (H + 2p, C, kw, OW, N)
    shape : (N, C, H, W)
        The shape of the image to return.

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_namespace(unfolded)
    n, c, h, w = shape
    size = output_size((h, w), kernel, stride, padding, dilation)
    framed = (unfolded.shape[0], c, w + sum(sides(padding)[1]), n)
    padded = xp.zeros(framed, dtype=unfolded.dtype, device=unfolded.device)
    for _, j, _, columns in windows((1, kernel[1]), stride, size, dilation):
        padded[:, :, columns, :] += unfolded[:, :, j, :, :]
    return unpad2d(as_nchw(padded), padding)
