"""Definitions of losses with many options, or of several inputs, as plainly as they are written.

Names, reductions and options are PyTorch's; rows are looped over, one number at a time.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

F64: TypeAlias = NDArray[np.float64]


def _class_weight(c: int, weight: list[float] | None) -> float:
    return 1.0 if weight is None else float(weight[c])


def _rows_of(x: F64, target: NDArray[Any]) -> tuple[F64, NDArray[Any]]:
    """(N, C, d...) as (N d..., C), and its labels or probabilities likewise."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    if target.ndim == x.ndim:
        return rows, np.moveaxis(target, 1, -1).reshape(-1, x.shape[1])
    return rows, target.reshape(-1)


def class_cross_entropy(
    logits: F64,
    target: NDArray[Any],
    reduction: str = "mean",
    *,
    weight: list[float] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> float:
    """Cross-entropy of logits (N, C, d...) with all options   (PyTorch, nn.CrossEntropyLoss)

    row loss = -sum_c w_c ((1 - e) t_c + e/C) log softmax(z)_c; the mean divides the sum over rows
    by the sum of w_label over those whose label is not ignored; for probabilities by their number
    """
    rows, given = _rows_of(logits, target)
    classes, losses, counts = logits.shape[1], [], []
    for z, t in zip(rows, given, strict=True):
        if given.ndim == 1 and int(t) == ignore_index:
            continue
        shares = [float(c == int(t)) for c in range(classes)] if given.ndim == 1 else list(t)
        peak = max(map(float, z))
        log_total = math.log(math.fsum(math.exp(float(value) - peak) for value in z))
        smooth = [(1 - label_smoothing) * s + label_smoothing / classes for s in shares]
        terms = [
            _class_weight(c, weight) * smooth[c] * (log_total - (float(z[c]) - peak))
            for c in range(classes)
            if smooth[c] > 0
        ]
        losses.append(math.fsum(terms))
        counts.append(_class_weight(int(t), weight) if given.ndim == 1 else 1.0)
    divisor = {"mean": math.fsum(counts) or 1.0, "sum": 1.0}[reduction]
    return math.fsum(losses) / divisor


def nll_loss(
    log_p: F64,
    labels: NDArray[np.integer],
    reduction: str = "mean",
    *,
    weight: list[float] | None = None,
    ignore_index: int | None = None,
) -> float:
    """Negative log-likelihood: sum of -w_label log_p[label] over sum of w_label   (PyTorch)"""
    rows, given = _rows_of(log_p, labels)
    kept = [(row, int(y)) for row, y in zip(rows, given, strict=True) if int(y) != ignore_index]
    losses = [-_class_weight(y, weight) * float(row[y]) for row, y in kept]
    counts = [_class_weight(y, weight) for _, y in kept]
    divisor = {"mean": math.fsum(counts) or 1.0, "sum": 1.0}[reduction]
    return math.fsum(losses) / divisor


def multi_margin_loss(
    y: F64,
    labels: NDArray[np.integer],
    reduction: str = "mean",
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: list[float] | None = None,
) -> float:
    """Row loss = w_label/C sum over c != label of max(0, margin - y[label] + y[c])**p   (PyTorch)

    "mean" divides by the number of rows
    """
    rows, given = _rows_of(y, labels)
    losses = []
    for row, label in zip(rows, given, strict=True):
        gaps = [margin - row[label] + row[c] for c in range(len(row)) if c != label]
        own = math.fsum(max(0.0, float(gap)) ** p for gap in gaps) / len(row)
        losses.append(_class_weight(int(label), weight) * own)
    return math.fsum(losses) / {"mean": len(losses), "sum": 1}[reduction]


def kl_divergence(
    y: F64, target: F64, reduction: str = "mean", *, factor: float = 1.0, log_target: bool = False
) -> float:
    """Sum of p (log p - y) over all entries, 0 where p is 0   (PyTorch, nn.KLDivLoss)"""
    terms = []
    for log_q, t in zip(y.ravel(), target.ravel(), strict=True):
        p = math.exp(t) if log_target else float(t)
        terms.append(p * (math.log(p) - float(log_q)) if p > 0 else 0.0)
    divisors = {"mean": y.size, "sum": 1, "batchmean": y.shape[0]}
    return float(factor * math.fsum(terms) / divisors[reduction])


def smooth_l1_loss(
    y: F64, target: F64, reduction: str = "mean", *, factor: float = 1.0, beta: float = 1.0
) -> float:
    """Sum of d**2 / (2 beta) where d = |y - t| < beta, else d - beta/2   (PyTorch)"""
    terms = []
    for value, t in zip(y.ravel(), target.ravel(), strict=True):
        d = abs(float(value) - float(t))
        terms.append(d * d / (2 * beta) if d < beta else d - beta / 2)
    divisors = {"mean": y.size, "sum": 1, "batchmean": y.shape[0]}
    return float(factor * math.fsum(terms) / divisors[reduction])


def cosine_embedding_loss(
    u: F64, v: F64, target: F64, reduction: str = "mean", *, margin: float = 0.0
) -> float:
    """1 - cos(u, v) for a target of 1, max(0, cos(u, v) - margin) for -1   (PyTorch)

    1e-12 is added to both squares of lengths
    """
    losses = []
    for row in np.ndindex(u.shape[:-1]):
        dot, uu, vv = (
            math.fsum(float(a) * float(b) for a, b in zip(x[row], y[row], strict=True))
            for x, y in ((u, v), (u, u), (v, v))
        )
        cosine = dot / (math.sqrt(uu + 1e-12) * math.sqrt(vv + 1e-12))
        losses.append(1 - cosine if target[row] == 1 else max(0.0, cosine - margin))
    return math.fsum(losses) / {"mean": len(losses), "sum": 1}[reduction]


def triplet_margin_loss(
    anchor: F64,
    positive: F64,
    negative: F64,
    reduction: str = "mean",
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
) -> float:
    """max(0, d(a, p) - d(a, n) + margin), d(x, y) the p-norm of x - y + eps   (PyTorch)

    with swap, d(a, n) is min(d(a, n), d(p, n))
    """

    def distance(x: F64, y: F64) -> float:
        size = math.fsum(abs(float(a) - float(b) + eps) ** p for a, b in zip(x, y, strict=True))
        return float(size ** (1 / p))

    losses = []
    for row in np.ndindex(anchor.shape[:-1]):
        a, b, c = anchor[row], positive[row], negative[row]
        far = min(distance(a, c), distance(b, c)) if swap else distance(a, c)
        losses.append(max(0.0, distance(a, b) - far + margin))
    return math.fsum(losses) / {"mean": len(losses), "sum": 1}[reduction]
