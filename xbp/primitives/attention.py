"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from xbp.backend import Array, Namespace, array_namespace
from xbp.primitives.dispatch import primitive
from xbp.primitives.product import matmul

AttentionGradients: TypeAlias = "tuple[Array | None, Array, Array]"
"""∂L/∂q, or None where it is not wanted, ∂L/∂k and ∂L/∂v."""


@primitive
def attention(
    q: Array,
    k: Array,
    v: Array,
    ignored: Array | None = None,
    mask: Array | None = None,
    *,
    causal: bool = False,
) -> tuple[Array, Callable[..., AttentionGradients]]:
    """y = (m ∘ P) v with P = softmax(q kᵀ / √d): each query's average of the values.

    Vaswani et al. 2017, eq. 1; m is the mask of dropout. The score of an ignored key, or with
    `causal` of a key after its query, is -∞. With the scores s, E = e^(s - max s) and r = Σ_j E_j,
    y = (m ∘ E) v / r, and with δ = ∂L/∂y / r

        ∂L/∂v = (m ∘ E)ᵀ δ,
        ∂L/∂s = E ∘ (m ∘ (δ vᵀ) - Σ δ ∘ y),      Σ over the features,
        ∂L/∂q = ∂L/∂s k / √d,    ∂L/∂k = ∂L/∂sᵀ q / √d.

    (The softmax's Jacobian needs Σ_j P_j ∂L/∂P_j, which is Σ ∂L/∂y ∘ y: Dao et al. 2022,
    appendix B.) A query whose scores are all -∞, masked or computed, gets y = 0 and passes on no
    gradient, as in PyTorch's `scaled_dot_product_attention`.

    Parameters
    ----------
    q : array (N, H, T, d)
        Queries, for each sample and head.
    k : array (N, H, S, d)
        Keys.
    v : array (N, H, S, e)
        Values.
    ignored : array (N, S) of bool, optional
        True for keys to ignore, such as padding.
    mask : array (N, H, T, S), optional
        m, with entries 0 or 1/(1 - p); 1 by default.
    causal : bool, default False
        Whether query i attends to the keys 0, 1, …, i alone.

    Returns
    -------
    y : array (N, H, T, e)
    backward : callable
        From ∂L/∂y, and whether ∂L/∂q is wanted (True), to (∂L/∂q, ∂L/∂k, ∂L/∂v).
    """
    xp, scale = array_namespace(q), 1 / math.sqrt(q.shape[-1])
    q = scale * q
    scores = matmul(q, xp.matrix_transpose(k))
    hidden = hidden_keys(xp, scores, ignored, causal)
    if hidden is not None:
        scores = xp.where(hidden, -math.inf, scores)
    peak = xp.max(scores, axis=-1, keepdims=True)
    scores -= xp.where(peak == -math.inf, 0.0, peak)
    powers = xp.exp(scores)
    total = xp.sum(powers, axis=-1, keepdims=True)
    total = xp.where(total == 0, 1.0, total)
    weights = powers if mask is None else mask * powers
    y = matmul(weights, v)
    y /= total

    def backward(dy: Array, wants_dx: bool = True) -> AttentionGradients:
        delta = dy / total
        dv = matmul(xp.matrix_transpose(weights), delta)
        ds = matmul(delta, xp.matrix_transpose(v))
        if mask is not None:
            ds *= mask
        ds -= xp.sum(delta * y, axis=-1, keepdims=True)
        ds *= powers
        dk = matmul(xp.matrix_transpose(ds), q)
        return scale * matmul(ds, k) if wants_dx else None, dk, dv

    return y, backward


def hidden_keys(xp: Namespace, scores: Array, ignored: Array | None, causal: bool) -> Array | None:
    """A mask of the scores that are -∞, which broadcasts against them; None without such scores."""
    hidden = None if ignored is None else ignored[:, None, None, :]
    if causal:
        queries, keys = (xp.arange(size, device=scores.device) for size in scores.shape[-2:])
        later = keys > xp.expand_dims(queries, axis=1)
        hidden = later if hidden is None else hidden | later
    return hidden
