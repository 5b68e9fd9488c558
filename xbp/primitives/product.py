"""The matrix product and the linear layer."""

from __future__ import annotations

from xbp.backend import Array, Namespace, array_namespace
from xbp.primitives.dispatch import Gradients, primitive


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
def affine(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Gradients]:
    """y = x Wᵀ + b.

    With δ = ∂L/∂y and sums over all rows of x:  ∂L/∂W = δᵀ x,  ∂L/∂b = Σ δ,  ∂L/∂x = δ W
    (Goodfellow et al. 2016, algorithm 6.4).

    Parameters
    ----------
    x : array (…, in)
    weight : array (out, in)
    bias : array (out,) or None

    Returns
    -------
    y : array (…, out)
    gradients : callable
        From ∂L/∂y to (∂L/∂x, ∂L/∂W, ∂L/∂b).
    """
    xp = array_namespace(x)
    rows = rows_of(xp, x)
    y = matmul(rows, weight.T)
    if bias is not None:
        y += bias

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        delta = rows_of(xp, dy)
        dx = xp.reshape(matmul(delta, weight), x.shape) if wants_dx else None
        dbias = None if bias is None else xp.sum(delta, axis=0)
        return dx, matmul(delta.T, rows), dbias

    if x.ndim != 2:
        leading = [-1 if size is None else size for size in x.shape[:-1]]  # None while tracing
        y = xp.reshape(y, (*leading, weight.shape[0]))
    return y, gradients


def rows_of(xp: Namespace, x: Array) -> Array:
    """(…, features) → (rows, features), for one product instead of one for each sample."""
    return x if x.ndim == 2 else xp.reshape(x, (-1, x.shape[-1]))
