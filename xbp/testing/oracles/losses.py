"""Losses, as loops over rows and entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.testing.oracles.types import F64


def _reduced_loss(
    entry_loss: Callable[[float], float], prediction: F64, target: F64, reduction: str
) -> float:
    # Unequal shapes are a mistake in the test: broadcasting would make a different loss.
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {target.shape}")
    terms = [entry_loss(float(prediction[i] - target[i])) for i in np.ndindex(target.shape)]
    divisors = {"mean": len(terms), "sum": 1, "batchmean": len(target)}
    return math.fsum(terms) / divisors[reduction]


def mse_loss(prediction: F64, target: F64, reduction: str = "mean", factor: float = 1.0) -> float:
    """Squared error, both (N, ...) -> factor * reduced (prediction - target)^2.

    reduction: "mean" divides the sum by the number of elements, "batchmean" by N, "sum" by 1.
    """
    return factor * _reduced_loss(lambda error: error * error, prediction, target, reduction)


def l1_loss(prediction: F64, target: F64, reduction: str = "mean", factor: float = 1.0) -> float:
    """Absolute error, both (N, ...) -> factor * reduced |prediction - target|, as mse_loss."""
    return factor * _reduced_loss(abs, prediction, target, reduction)


def huber_loss(
    prediction: F64, target: F64, delta: float, reduction: str = "mean", factor: float = 1.0
) -> float:
    """Squared error / 2 up to delta, then its tangent, both (N, ...) (Huber 1964; as mse_loss).

    error^2 / 2 where |error| <= delta, else delta (|error| - delta / 2)
    """

    def entry(error: float) -> float:
        small = abs(error) <= delta
        return error * error / 2.0 if small else delta * (abs(error) - delta / 2.0)

    return factor * _reduced_loss(entry, prediction, target, reduction)


def binary_cross_entropy(
    logits: F64, target: F64, pos_weight: float | F64 = 1.0, reduction: str = "mean"
) -> float:
    """-w t log p - (1 - t) log(1 - p) with p = 1 / (1 + exp(-logit)), both (N, ...).

    w is pos_weight, or its entry for the last index   (PyTorch, nn.BCEWithLogitsLoss)
    """
    terms = []
    for index, t in np.ndenumerate(target):
        weight = pos_weight if isinstance(pos_weight, float) else float(pos_weight[index[-1]])
        # -log p is log(1 + exp(-logit)), and -log(1 - p) is log(1 + exp(logit)).
        yes, no = (math.log1p(math.exp(sign * logits[index])) for sign in (-1.0, 1.0))
        terms.append(weight * t * yes + (1.0 - t) * no)
    return math.fsum(terms) / (len(terms) if reduction == "mean" else 1)


def cross_entropy(
    logits: F64, target: NDArray[np.float64 | np.integer], reduction: str = "mean"
) -> float:
    """Cross-entropy of softmax(logits), logits (N, C), labels (N,) or probabilities (N, C).

    row loss = -sum_c target[n, c] log(exp(logits[n, c]) / sum_k exp(logits[n, k])), a label being
    the probability 1 of its class; "mean" divides by N   (PyTorch, nn.CrossEntropyLoss)
    """
    rows, classes = logits.shape
    losses = []
    for n in range(rows):
        line = [float(logits[n, c]) for c in range(classes)]
        peak = max(line)
        log_total = math.log(math.fsum(math.exp(value - peak) for value in line))
        # -log softmax. The peak is subtracted before log_total is added, as with logits of 1e4
        # the other order would round a small log_total away.
        surprise = [log_total - (value - peak) for value in line]
        if target.ndim == 1:
            losses.append(surprise[int(target[n])])
        else:
            losses.append(math.fsum(float(target[n, c]) * surprise[c] for c in range(classes)))
    divisors = {"mean": len(losses), "sum": 1}
    return math.fsum(losses) / divisors[reduction]


def rejecting_cross_entropy(
    logits: F64,
    target: NDArray[np.float64 | np.integer],
    penalty: float,
    reduction: str = "mean",
) -> float:
    """MAP criterion of penalties y = -logits (N, C), labels (N,) (LeCun et al. 1998, eq. 9).

    row loss = y[n, label] + log(exp(-penalty) + sum_i exp(-y[n, i])); for moderate penalties only.
    For probabilities (N, C) a row loss is their mean of the row losses of all labels.
    """
    losses = []
    for n, t in enumerate(target):
        y = [-float(value) for value in logits[n]]
        total = math.exp(-penalty) + math.fsum(math.exp(-value) for value in y)
        shares = [float(i == t) for i in range(len(y))] if target.ndim == 1 else t.tolist()
        losses.append(math.fsum(p * (v + math.log(total)) for p, v in zip(shares, y, strict=True)))
    return math.fsum(losses) / {"mean": len(losses), "sum": 1}[reduction]


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

    row loss = -sum_c w_c ((1 - e) t_c + e/C) log softmax(z)_c; "mean" divides the sum over rows
    whose label is not ignored by the sum of their w_label, or by the number of rows for
    probabilities
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

    1e-12 is added to both squared lengths
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
