"""Softmax and cross-entropy in one."""

from __future__ import annotations

from typing import Any

from xbp.backend import Array, Namespace, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def cross_entropy(logits: Array, target: Array, scale: float) -> tuple[Array, Array]:
    """L = -scale · Σ_nc t_nc log p_nc with p = softmax(z), and ∂L/∂z = scale (p Σ_c t_c - t).

    log p is computed as z - max z - log Σ e^(z - max z), finite and accurate for finite logits. A
    logit of -∞ gives p = 0, and 0 log 0 counts as 0. A row of -∞ alone, a logit of +∞ or a nan
    makes the loss nan, as in PyTorch.

    Parameters
    ----------
    logits : array (N, C)
        z.
    target : array (N,) of integer labels, or (N, C) of probabilities
        t, for labels one-hot. A label out of range makes the loss nan.
    scale : float

    Returns
    -------
    L : 0-d array
    gradient : array (N, C)
    """
    xp = array_namespace(logits)
    if target.ndim == 1:
        t, total = one_hot(xp, target, logits.shape[1], logits.dtype), 1.0
    else:
        t = xp.astype(target, logits.dtype)
        total = xp.sum(t, axis=1, keepdims=True)
    peak = xp.max(logits, axis=1, keepdims=True)
    shifted = logits - peak
    powers = xp.exp(shifted)
    norm = xp.sum(powers, axis=1, keepdims=True)
    terms = xp.where(t == 0, 0.0, t * (shifted - xp.log(norm)))
    loss = -scale * xp.sum(terms)
    return loss, scale * (powers / norm * total - t)


def one_hot(xp: Namespace, labels: Array, classes: int, dtype: Any) -> Array:
    """Integer labels (N,) → (N, classes), 1 at the label; a row of nan for one out of range."""
    labels = xp.reshape(xp.astype(labels, xp.int64), (-1, 1))
    hot = xp.astype(labels == xp.arange(classes, device=labels.device), dtype)
    return xp.where((labels >= 0) & (labels < classes), hot, float("nan"))
