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

Gradients: TypeAlias = "tuple[Array, Array, Array]"
"""∂L/∂x, or None where it is not wanted, ∂L/∂weight and ∂L/∂bias."""


@primitive
def convolve(
    x: Array, weight: Array, bias: Array | None, stride: Pair, padding: Pair
) -> tuple[Array, Callable[[Array, bool], Gradients]]:
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    A linear layer for each row of y. With the windows of x that make row r as the columns of a
    matrix Xᵣ, W as a matrix (out, kh·in·kw) and δ = ∂L/∂y:

        yᵣ = W Xᵣ + b,   ∂L/∂W = Σᵣ δᵣ Xᵣᵀ,   ∂L/∂b = Σ δ,   ∂L/∂Xᵣ = Wᵀ δᵣ,

    and ∂L/∂x adds up what the windows have in common (Chellapilla et al. 2006; Goodfellow et al.
    2016, section 9.5). Xᵣ is never made: it is a slice of `unfold_rows`, which the next one
    overlaps.

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
    oh, ow = output_size(x.shape[2:], *window)
    unfolded = unfold_rows(x, *window)  # (H + 2p, in, kw, OW, N)
    W = xp.reshape(xp.permute_dims(weight, (0, 2, 1, 3)), (out, -1))  # (out, kh·in·kw)
    seen = [slice(top, top + kh) for top in range(0, oh * stride[0], stride[0])]
    X = [xp.reshape(unfolded[rows, ...], (W.shape[1], -1)) for rows in seen]  # views: (…, OW·N)
    y = xp.empty((oh, out, X[0].shape[1]), dtype=x.dtype, device=x.device)
    for r in range(oh):
        y[r, ...] = matmul(W, X[r])
    if bias is not None:
        y += xp.reshape(bias, (-1, 1))

    def backward(dy: Array, wants_dx: bool = True) -> Gradients:
        delta = xp.reshape(rows_first(dy), y.shape)
        # X δᵀ in place of δ Xᵀ: the same product, twice as fast with few output channels.
        dW = sum(matmul(X[r], delta[r, ...].T) for r in range(oh)).T
        dW = xp.permute_dims(xp.reshape(dW, (out, kh, channels, kw)), (0, 2, 1, 3))
        if not wants_dx:
            return None, dW, xp.sum(delta, axis=(0, 2))
        dunfolded = xp.zeros_like(unfolded)
        for r, rows in enumerate(seen):
            dX = matmul(W.T, delta[r, ...])
            dunfolded[rows, ...] += xp.reshape(dX, (kh, *unfolded.shape[1:]))
        return fold_rows(dunfolded, x.shape, *window), dW, xp.sum(delta, axis=(0, 2))

    return images(xp.reshape(y, (oh, out, ow, -1))), backward


@primitive
def max_pool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair
) -> tuple[Array, Callable[[Array], Array]]:
    """y[n, c, r, s] = max_ij x[n, c, r·stride + i, s·stride + j], framed by -∞.

    ∂L/∂x sums ∂L/∂y of all windows in which that entry is the largest, among equals the first in
    row-major order. A window that holds a nan gives nan, and passes no gradient on.

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
        unclaimed = xp.ones_like(y, dtype=xp.bool)
        for rows, columns in places:
            first = unclaimed & (padded[:, :, rows, columns] == y)
            share = dy * xp.astype(first, dy.dtype)
            if stride == kernel:  # windows side by side: each entry has one share
                dx[:, :, rows, columns] = share
            else:
                dx[:, :, rows, columns] += share
            unclaimed = unclaimed ^ first
        return unpad2d(dx, padding)

    return y, backward


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
        delta = xp.astype(y > 0, dy.dtype) * dy if relu else dy
        if pool != (1, 1):
            delta = pool_backward(delta)
        return convolve_backward(delta, wants_dx)  # type: ignore[no-any-return]

    return y, backward
