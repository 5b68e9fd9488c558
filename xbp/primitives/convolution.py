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
    col2im,
    im2col,
    images,
    output_size,
    pad2d,
    rows_first,
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

    With each window of x as a column of a matrix X (`im2col`), W as a matrix (out, in·kh·kw) and
    δ = ∂L/∂y, it is a linear layer, and so are its gradients:

        y = W X + b,   ∂L/∂W = δ Xᵀ,   ∂L/∂b = Σ δ,   ∂L/∂X = Wᵀ δ,

    and ∂L/∂x adds the columns of ∂L/∂X up where their windows overlap (`col2im`). There is one
    such matrix for each row of the output, so that the product's operands stay in cache.
    (Chellapilla et al. 2006; Goodfellow et al. 2016, section 9.5.)

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
    out, _, *kernel = weight.shape
    window = ((kernel[0], kernel[1]), stride, padding)
    oh, ow = output_size(x.shape[2:], *window)
    X = im2col(x, *window)  # (OH, in·kh·kw, OW·N)
    W = xp.reshape(weight, (out, -1))
    y = matmul(W, X)  # (OH, out, OW·N)
    if bias is not None:
        y += xp.reshape(bias, (-1, 1))

    def backward(dy: Array, wants_dx: bool = True) -> Gradients:
        delta = xp.reshape(rows_first(dy), (oh, out, -1))
        # X δᵀ in place of δ Xᵀ: the same product, twice as fast with few output channels.
        dW = xp.sum(matmul(X, xp.matrix_transpose(delta)), axis=0).T
        dx = col2im(matmul(W.T, delta), x.shape, *window) if wants_dx else None
        return dx, xp.reshape(dW, weight.shape), xp.sum(delta, axis=(0, 2))

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
