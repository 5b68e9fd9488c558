"""Convolution and maximum pooling, and both in one: what an accelerator can do in one pass.

Each returns its output and its backward, as a layer's forward does; a backward takes ∂L/∂y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive
from xbp.primitives.images import (
    Pair,
    fold_rows,
    images,
    output_size,
    pad2d,
    rows_first,
    unfold_rows,
    unpad2d,
    windows,
)
from xbp.primitives.product import matmul
from xbp.primitives.rectify import rectified

Gradients: TypeAlias = "tuple[Array, Array, Array]"
"""∂L/∂x, or None where it is not wanted, ∂L/∂weight and ∂L/∂bias."""


@primitive
def convolve(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair
) -> tuple[Array, Callable[[Array, bool], Gradients]]:
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    A linear layer for each row of y. `unfold_rows` gives a matrix U with a column for each window
    position along a row of x, image by image; what row r of y sees, of all rows of the kernel, is
    the slice Uᵣ of its rows, which the next one overlaps. With W as a matrix (out, kh·in·kw) and
    δ = ∂L/∂y,

        yᵣ = W Uᵣ + b,   ∂L/∂W = Σᵣ δᵣ Uᵣᵀ,   ∂L/∂b = Σ δ,   ∂L/∂Uᵣ = Wᵀ δᵣ,

    and ∂L/∂U adds up where slices overlap (Chellapilla et al. 2006; Cho & Brand 2017; Goodfellow
    et al. 2016, section 9.5).

    Parameters
    ----------
    x : array (N, in, H, W)
    weight : array (out, in, kh, kw)
    bias : array (out,) or None
    stride, padding : (int, int)

    Returns
    -------
    y : array (N, out, OH, OW)
    backward : callable
        From ∂L/∂y, and whether ∂L/∂x is wanted (True), to (∂L/∂x, ∂L/∂weight, ∂L/∂bias).
    """
    xp = array_namespace(x)
    out, channels, kh, kw = weight.shape
    window = ((kh, kw), stride, padding)
    unfolded = unfold_rows(x, *window)  # (H + 2p, in, kw, OW, N)
    height, columns = channels * kw, unfolded.shape[3] * unfolded.shape[4]
    U = xp.reshape(unfolded, (unfolded.shape[0] * height, columns))
    W = xp.reshape(xp.permute_dims(weight, (0, 2, 1, 3)), (out, kh * height))
    oh, ow = output_size(x.shape[2:], *window)
    tops = range(0, oh * stride[0] * height, stride[0] * height)
    seen = [slice(top, top + kh * height) for top in tops]
    y = xp.empty((oh, out, columns), dtype=x.dtype, device=x.device)
    for r, rows in enumerate(seen):
        y[r, ...] = matmul(W, U[rows, :])
    if bias is not None:
        y += xp.reshape(bias, (-1, 1))

    def backward(dy: Array, wants_dx: bool = True) -> Gradients:
        delta = xp.reshape(rows_first(dy), y.shape)
        # U δᵀ in place of δ Uᵀ: the same product, twice as fast with few output channels.
        dW = sum(matmul(U[rows, :], delta[r, ...].T) for r, rows in enumerate(seen)).T
        dW = xp.permute_dims(xp.reshape(dW, (out, kh, channels, kw)), (0, 2, 1, 3))
        dx = None
        if wants_dx:
            dU = xp.zeros_like(U)
            for r, rows in enumerate(seen):
                dU[rows, :] += matmul(W.T, delta[r, ...])
            dx = fold_rows(xp.reshape(dU, unfolded.shape), x.shape, *window)
        return dx, dW, xp.sum(delta, axis=(0, 2))

    return images(xp.reshape(y, (oh, out, ow, -1))), backward


@primitive
def max_pool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[Array, Callable[[Array], Array]]:
    """y[n, c, r, s] = max_ij x[n, c, r·stride + i, s·stride + j], framed by -∞.

    ∂L/∂x sums ∂L/∂y of all windows in which that entry is the largest, among equals the first in
    row-major order. A window that holds a nan gives nan, and the last nan takes its gradient. The
    frame is never chosen, even where all else is -∞. (All of it as in PyTorch.)

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel, stride, padding : (int, int)
        Padding is at most half of the kernel.

    Returns
    -------
    y : array (N, C, OH, OW)
    backward : callable
        From ∂L/∂y to ∂L/∂x.
    """
    xp = array_namespace(x)
    size = output_size(x.shape[2:], kernel, stride, padding)
    padded = pad2d(x, padding, -math.inf)
    places = [place for _, _, *place in windows(kernel, stride, size)]
    y = reduce(xp.maximum, (padded[:, :, rows, columns] for rows, columns in places))

    def backward(dy: Array) -> Array:
        dx = xp.zeros_like(padded)
        chosen = chosen_places(padded, y, kernel, stride, padding)
        for k, (rows, columns) in enumerate(places):
            share = xp.where(chosen == k, dy, 0.0)
            if stride == kernel:  # windows side by side: each entry has one share
                dx[:, :, rows, columns] = share
            else:
                dx[:, :, rows, columns] += share
        return unpad2d(dx, padding)

    return y, backward


def chosen_places(padded: Array, y: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Which place of its window, counted in row-major order, each maximum in `y` comes from.

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
    # To begin with, the first place that is no frame.
    chosen = xp.zeros_like(y, dtype=xp.int32)
    for r in range(min(y.shape[2], -(-padding[0] // stride[0]))):
        chosen[:, :, r, :] += (padding[0] - r * stride[0]) * kernel[1]
    for s in range(min(y.shape[3], -(-padding[1] // stride[1]))):
        chosen[:, :, :, s] += padding[1] - s * stride[1]
    best = xp.full_like(y, -math.inf)
    for k, (_, _, rows, columns) in enumerate(windows(kernel, stride, y.shape[2:])):
        v = padded[:, :, rows, columns]
        better = (v > best) | (v != v)  # or a nan
        best, chosen = xp.where(better, v, best), xp.where(better, k, chosen)
    return chosen


@primitive
def average_pool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[Array, Callable[[Array], Array]]:
    """y[n, c, r, s] = 1/(kh·kw) Σ_ij x[n, c, r·stride + i, s·stride + j], framed by zeros.

    So each entry of x takes 1/(kh·kw) of ∂L/∂y of every window that holds it.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel, stride, padding : (int, int)

    Returns
    -------
    y : array (N, C, OH, OW)
    backward : callable
        From ∂L/∂y to ∂L/∂x.
    """
    xp = array_namespace(x)
    size = output_size(x.shape[2:], kernel, stride, padding)
    padded = pad2d(x, padding)
    places = [place for _, _, *place in windows(kernel, stride, size)]
    share = 1 / math.prod(kernel)
    y = share * sum(padded[:, :, rows, columns] for rows, columns in places)

    def backward(dy: Array) -> Array:
        dx = xp.zeros_like(padded)
        for rows, columns in places:
            dx[:, :, rows, columns] += share * dy
        return unpad2d(dx, padding)

    return y, backward


@primitive
def convolve_rectify_pool(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Pair,
    *,
    relu: bool,
    pool: Pair,
) -> tuple[Array, Callable[[Array, bool], Gradients]]:
    """A convolution, max(·, 0) if `relu`, and the maximum of `pool` windows side by side.

    In one call, because the image between them, the largest array of a convolutional network, then
    need not go to memory and back. ReLU's slope at 0 is 0, and the maximum is that of `max_pool`.

    An x that is not finite makes ∂L/∂weight nan even where no gradient comes through (0 · ∞), as in
    PyTorch. The CUDA kernel alone leaves those products out, and their nan.

    Parameters
    ----------
    x, weight, bias, stride, padding
        As for `convolve`.
    relu : bool
    pool : (int, int)
        (1, 1) is no pooling.

    Returns
    -------
    y : array (N, out, OH // ph, OW // pw)
    backward : callable
        From ∂L/∂y, and whether ∂L/∂x is wanted (True), to (∂L/∂x, ∂L/∂weight, ∂L/∂bias).
    """
    xp = array_namespace(x)
    y, convolve_backward = convolve.reference(x, weight, bias, stride, padding)  # type: ignore[attr-defined]
    if pool != (1, 1):
        y, pool_backward = max_pool.reference(y, pool, pool, (0, 0))  # type: ignore[attr-defined]
    if relu:  # max(max(a, b), 0) = max(max(a, 0), max(b, 0)), and there is less of it
        y = xp.maximum(y, 0.0)

    def backward(dy: Array, wants_dx: bool = True) -> Gradients:
        delta = rectified(dy, y) if relu else dy
        if pool != (1, 1):
            delta = pool_backward(delta)
        return convolve_backward(delta, wants_dx)  # type: ignore[no-any-return]

    return y, backward
