"""Cross-entropy losses: with a softmax over classes, with a sigmoid for each entry."""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import number
from xbp.backend import Array, array_namespace, is_kind, on_host, to_numpy
from xbp.errors import InputError
from xbp.nn.classes import ClassLoss, as_before, by_rows, target_rows
from xbp.nn.losses import EntrywiseLoss
from xbp.primitives import cross_entropy, sigmoid


class CrossEntropyLoss(ClassLoss):
    """Softmax and cross-entropy in one: ℓ_n = -Σ_c t_nc log p_nc with p = softmax(z).

    For integer labels t is one-hot, so ℓ_n = -log p_n,label. The gradient is
    ∂ℓ_n/∂z_n = p_n Σ_c t_nc - t_n, that is p - t (Bishop 2006, eq. 4.109). log p is computed as
    z - max z - log Σ e^(z - max z), which is finite and accurate for any finite logits.

    With `label_smoothing` ε, t is (1 - ε) t + ε/C (Szegedy et al. 2016, section 7). With `weight`
    w, each t_nc is multiplied by w_c; the mean divides by Σ_n w_label for labels and by the number
    of samples for probabilities, as in PyTorch.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the labels.
    weight, ignore_index
        See `ClassLoss`.
    label_smoothing : float, default 0
        From 0 to 1.

    Notes
    -----
    `prediction` holds logits (N, C) or (N, C, d1, …); `target` holds integer labels (N,) or
    (N, d1, …) from 0 to C - 1, or probabilities of the logits' shape. A label out of range is an
    error on the host; on a device, where reading it would wait, it makes the loss nan, and `check`
    refuses it beforehand. A third argument (N,) may give each sample a weight of at least 0: see
    `Loss.relative`.

    Raises
    ------
    InputError
        For shapes that do not fit, labels out of range, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.CrossEntropyLoss()(np.zeros((1, 4)), np.array([1]))
    >>> round(float(value), 6), gradient.tolist()
    (1.386294, [[0.25, -0.75, 0.25, 0.25]])
    """

    shares_too = True
    outputs = "logits"
    label_smoothing = 0.0

    def __init__(
        self,
        reduction: str = "mean",
        *,
        weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction, weight=weight, ignore_index=ignore_index)
        if label_smoothing != 0:
            self.label_smoothing = number("label_smoothing", label_smoothing, least=0, most=1)

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        self.namespace(prediction, target)  # refuses mixed libraries and devices
        self.check_shapes(prediction, target)
        z, t = prediction, target
        if z.ndim > 2:
            z, t = by_rows(prediction), target_rows(prediction, target)
        if self.weight is weight is self.ignore_index is None and not self.label_smoothing:
            scale = 1 / z.shape[0] if self.reduction == "mean" else 1.0
        else:
            s = None if weight is None else self.by_label(prediction, weight)
            t, scale = self.shares(z, t, s, self.label_smoothing)
        value, gradient = self.compute(z, t, scale)
        if on_host(value) and math.isnan(value):
            self.refuse_wrong_labels(prediction, target)
        return value, gradient if prediction.ndim == 2 else as_before(gradient, prediction.shape)

    def operation(self, shape: tuple[int, ...], target: Array) -> Any:
        if type(self) is not CrossEntropyLoss or "compute" in vars(self):
            return None  # a subclass may compute something else
        if self.weight is not None or self.ignore_index is not None or self.label_smoothing:
            return None
        if len(shape) != 2 or target.shape != shape[:1] or not shape[0]:
            return None
        if not is_kind(target, "integral"):
            return None
        scale = 1 / shape[0] if self.reduction == "mean" else 1.0
        return cross_entropy, (("scale", scale),)

    def compute(self, logits: Array, target: Array, scale: float) -> tuple[Array, Array]:
        """`scale` times the sum over the rows, and its gradient, of checked arguments.

        A label out of range makes the value nan.
        """
        return cross_entropy(logits, target, scale)

    def check(self, prediction: Array, target: Array) -> None:
        super().check(prediction, target)
        if target.ndim < prediction.ndim:
            return
        xp = array_namespace(target)
        shares = xp.astype(target, xp.float64)
        right = (xp.min(shares, axis=1) >= 0) & (xp.abs(xp.sum(shares, axis=1) - 1) <= 1e-3)
        if not bool(to_numpy(xp.all(right))):  # also refuses nan
            msg = f"{self} needs probabilities: no entry below 0, each row summing to 1"
            if prediction.shape[1] == 1:
                msg += "; for a model with a single output take BCEWithLogitsLoss"
            raise InputError(msg)


class BCEWithLogitsLoss(EntrywiseLoss):
    """Sigmoid and binary cross-entropy in one: ℓ = -p t log σ(x) - (1 - t) log(1 - σ(x)).

    x is a logit, t the target, p the weight of the positive class, by default 1.
    The gradient is ∂ℓ/∂x = (1 - t) σ(x) - p t σ(-x), for p = 1 that is σ(x) - t (Bishop 2006,
    eq. 4.91). As -log σ(±x) = max(∓x, 0) + log1p(e^-|x|), ℓ is computed as

        p t max(-x, 0) + (1 - t) max(x, 0) + (p t + 1 - t) log1p(e^-|x|),

    which for p = 1 is max(x, 0) - x t + log1p(e^-|x|). Nothing in it overflows or cancels.

    Parameters
    ----------
    reduction, factor
        See `EntrywiseLoss`.
    pos_weight : float or array (C,), default 1
        p, at least 0; above 1 it favours recall, below 1 precision. An array has one weight for
        each entry of the last axis, on the device of the predictions.

    Notes
    -----
    `prediction` holds logits, `target` numbers from 0 to 1 (or booleans) of the same shape. There
    is no loss for the outputs of a Sigmoid layer: where they have rounded to 0 or 1, the loss is
    infinite and its gradient lost.

    Raises
    ------
    InputError
        For shapes that differ, a bad reduction or weight; by `check` for targets outside 0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> loss = nn.BCEWithLogitsLoss("sum")
    >>> value, gradient = loss(np.array([0.0, 1000.0]), np.array([1.0, 0.0]))
    >>> round(float(value), 6), gradient.tolist()
    (1000.693147, [-0.5, 1.0])
    """

    def __init__(
        self,
        reduction: str = "mean",
        *,
        factor: float = 1.0,
        pos_weight: float | Array = 1.0,
    ) -> None:
        super().__init__(reduction, factor=factor)
        if getattr(pos_weight, "ndim", 0) == 0:
            pos_weight = number("pos_weight", pos_weight, least=0)
        self.pos_weight = pos_weight

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        xp, target = self.matched(prediction, target)
        x, positive, negative = prediction, self._weight(prediction) * target, 1 - target
        losses = (
            positive * xp.maximum(-x, 0.0)
            + negative * xp.maximum(x, 0.0)
            + (positive + negative) * xp.log1p(xp.exp(-xp.abs(x)))
        )
        slopes = negative * sigmoid(x) - positive * sigmoid(-x)
        scale = self.scale(x)
        if weight is not None:
            r = self.relative(x, weight)
            losses, slopes = r * losses, r * slopes
        return scale * xp.sum(losses), scale * slopes

    def check(self, prediction: Array, target: Array) -> None:
        super().check(prediction, target)
        xp = array_namespace(target)
        target = xp.astype(target, xp.float64)
        if not bool(to_numpy(xp.all((target >= 0) & (target <= 1)))):
            msg = f"{self} needs targets from 0 to 1"
            raise InputError(msg)

    def _weight(self, prediction: Array) -> float | Array:
        """p, a float or an array that broadcasts against the prediction."""
        if isinstance(self.pos_weight, float):
            return self.pos_weight
        xp = self.namespace(prediction, self.pos_weight, "pos_weight")
        if self.pos_weight.shape != prediction.shape[-1:]:
            msg = (
                f"{self} needs a pos_weight of shape {tuple(prediction.shape[-1:])}: "
                "one for each entry of the prediction's last axis"
            )
            raise InputError(msg)
        return xp.astype(self.pos_weight, prediction.dtype)
