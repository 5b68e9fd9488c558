"""Classification losses besides cross-entropy: negative log-likelihood and margins."""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import number
from xbp.backend import Array, on_host
from xbp.errors import InputError
from xbp.nn.classes import ClassLoss, as_before, by_rows, target_rows
from xbp.nn.losses import Loss
from xbp.primitives.cross_entropy import one_hot


class NLLLoss(ClassLoss):
    """Negative log-likelihood ℓ_n = -y_n,label of log-probabilities y, as `LogSoftmax` makes them.

    ∂ℓ_n/∂y_nc is -1 at the label, 0 elsewhere. `LogSoftmax` and this loss are `CrossEntropyLoss`,
    which takes fewer passes.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the labels.
    weight, ignore_index
        See `ClassLoss`.

    Notes
    -----
    `prediction` holds log-probabilities (N, C) or (N, C, d1, …), `target` integer labels (N,) or
    (N, d1, …); labels out of range and weights of samples are as in `CrossEntropyLoss`.

    Raises
    ------
    InputError
        For shapes that do not fit, labels out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.NLLLoss()(np.array([[-1.0, -2.0]]), np.array([1]))
    >>> float(value), gradient.tolist()
    (2.0, [[0.0, -1.0]])
    """

    outputs = "log-probabilities"

    def __init__(
        self, reduction: str = "mean", *, weight: Any = None, ignore_index: int | None = None
    ) -> None:
        super().__init__(reduction, weight=weight, ignore_index=ignore_index)

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        xp = self.namespace(prediction, target)
        self.check_shapes(prediction, target)
        y, labels = by_rows(prediction), target_rows(prediction, target)
        s = None if weight is None else self.by_label(prediction, weight)
        t, _ = self.shares(y, labels, s)  # of labels, with the divisor
        value = -xp.sum(t * xp.where(t == 0, 0.0, y))  # y may be -∞ where t = 0
        if on_host(value) and math.isnan(value):
            self.refuse_wrong_labels(prediction, target)
        return value, as_before(0.0 - t, prediction.shape)


class MultiMarginLoss(ClassLoss):
    """Margin between the label's output and all others: ℓ_n = w_label/C Σ_c≠label max(0, h_nc)^p.

    h_nc = margin - y_n,label + y_nc (Crammer & Singer 2001, summed over the classes, as in
    PyTorch). ∂ℓ_n/∂y_nc = w_label/C · p max(0, h_nc)^(p-1) for the others, 0 at the kink h_nc = 0,
    and minus their sum for the label.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        "mean" divides by the number of labels, with weights too, as in PyTorch.
    p : {1, 2}, default 1
    margin : float, default 1
    weight : C numbers of at least 0, optional
        w, for each class; see `ClassLoss`.

    Notes
    -----
    `prediction` holds outputs (N, C) or (N, C, d1, …), `target` integer labels (N,) or
    (N, d1, …); labels out of range and weights of samples are as in `CrossEntropyLoss`.

    Raises
    ------
    InputError
        For shapes that do not fit, labels out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.MultiMarginLoss()(np.array([[2.0, 1.5]]), np.array([0]))
    >>> float(value), gradient.tolist()
    (0.25, [[-0.5, 0.5]])
    """

    def __init__(
        self,
        reduction: str = "mean",
        *,
        p: int = 1,
        margin: float = 1.0,
        weight: Any = None,
    ) -> None:
        super().__init__(reduction, weight=weight, ignore_index=None)
        if p not in (1, 2) or isinstance(p, bool):
            msg = f"p must be 1 or 2, got {p!r}"
            raise InputError(msg)
        self.p, self.margin = int(p), number("margin", margin)

    denominator = Loss.denominator

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        xp = self.namespace(prediction, target)
        self.check_shapes(prediction, target)
        y, labels = by_rows(prediction), target_rows(prediction, target)
        rows, classes = y.shape
        hot = one_hot(xp, labels, classes, y.dtype)
        own = xp.sum(xp.where(hot == 0, 0.0, y), axis=1, keepdims=True)
        h = xp.where(hot == 0, xp.maximum(self.margin - own + y, 0.0), 0.0)
        slopes = xp.astype(h > 0, y.dtype) if self.p == 1 else 2 * h
        s = self.taken(y, labels, None if weight is None else self.by_label(prediction, weight))
        total: Any = rows
        if weight is not None:
            total = xp.sum(s)
            total = xp.where(total > 0, total, 1.0)
        scale = self.counts(y, labels, s) / (total if self.reduction == "mean" else 1.0)
        scale = xp.reshape(scale / classes, (-1, 1))
        value = xp.sum(scale * (h if self.p == 1 else h * h))
        if on_host(value) and math.isnan(value):
            self.refuse_wrong_labels(prediction, target)
        gradient = scale * (slopes - hot * xp.sum(slopes, axis=1, keepdims=True))
        return value, as_before(gradient, prediction.shape)
