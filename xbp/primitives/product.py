"""The product of two matrices, and the linear layer made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive
from xbp.primitives.rectify import rectify

AffineGradients: TypeAlias = "tuple[Array, Array, Array | None]"
"""∂L/∂x, or None where it is not wanted, ∂L/∂W, and ∂L/∂b, or None where there is no b."""


@primitive
def matmul(a: Array, b: Array) -> Array:
    """Σ_k a_ik b_kj, the standard's `matmul`.

    Parameters
    ----------
    a : array (…, M, K)
    b : array (…, K, N)

    Returns
    -------
    array (…, M, N)
    """
    return array_namespace(a).matmul(a, b)


@primitive
def affine(
    x: Array, weight: Array, bias: Array | None, *, relu: bool = False
) -> tuple[Array, Callable[[Array, bool], AffineGradients]]:
    """y = x Wᵀ + b, or max(x Wᵀ + b, 0).

    With δ = ∂L/∂y and sums over all rows of x:  ∂L/∂W = δᵀ x,  ∂L/∂b = Σ δ,  ∂L/∂x = δ W
    (Goodfellow et al. 2016, algorithm 6.4).

    Parameters
    ----------
    x : array (…, in)
    weight : array (out, in)
    bias : array (out,) or None
    relu : bool, default False
        Whether `rectify` follows; its slope is then part of δ.

    Returns
    -------
    y : array (…, out)
    backward : callable
        From ∂L/∂y, and whether ∂L/∂x is wanted (True), to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    xp = array_namespace(x)
    out, features = weight.shape
    y = matmul(x, weight.T)
    if bias is not None:
        y += bias
    if relu:
        y, rectify_backward = rectify(y)

    def backward(dy: Array, wants_dx: bool = True) -> AffineGradients:
        dy = rectify_backward(dy) if relu else dy
        rows = xp.reshape(dy, (-1, out))
        dweight = matmul(rows.T, xp.reshape(x, (-1, features)))
        dbias = None if bias is None else xp.sum(rows, axis=0)
        return matmul(dy, weight) if wants_dx else None, dweight, dbias

    return y, backward
