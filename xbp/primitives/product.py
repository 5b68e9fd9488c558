"""The product of two matrices."""

from __future__ import annotations

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


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
