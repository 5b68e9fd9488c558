"""Losses: ``value, gradient = loss(prediction, target)``, both on the prediction's device.

The value is a 0-d array that nobody has looked at yet, the gradient is ∂value/∂prediction: what
a model's backward takes.
"""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import choice, number
from xbp.backend import (
    Array,
    Namespace,
    array_namespace,
    dtype_name,
    on_host,
    to_numpy,
    whereabouts,
)
from xbp.errors import BackendError, InputError


class Loss:
    """Base of all losses. A subclass defines ``__call__(prediction, target)``, and may `check`."""

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """The value of the loss, 0-d, and its gradient with respect to `prediction`."""
        msg = f"{type(self).__name__} has no __call__(self, prediction, target); define it"
        raise NotImplementedError(msg)

    def check(self, prediction: Array, target: Array) -> None:
        """Refuse a whole set of targets that do not fit such predictions, at the door, once.

        Parameters
        ----------
        prediction : array
            For one or more samples; only its shape and dtype count.
        target : array
            All targets. Looking at their values may wait for the device.

        Raises
        ------
        InputError
        """

    def namespace(self, prediction: Array, target: Array) -> Namespace:
        """The common Array API namespace of both; mixing libraries or devices is an error."""
        xp = array_namespace(prediction)
        if array_namespace(target) is not xp or target.device != prediction.device:
            msg = (
                f"{self} got a prediction on {whereabouts(prediction)} and a target on "
                f"{whereabouts(target)}; move one of them with xbp.asarray(…)"
            )
            raise BackendError(msg)
        if prediction.ndim == 0 or prediction.shape[0] == 0:
            msg = f"{self} needs at least one sample, got shape {tuple(prediction.shape)}"
            raise InputError(msg)
        if not xp.isdtype(prediction.dtype, "real floating"):
            msg = f"{self} needs floating-point predictions, got {dtype_name(prediction.dtype)}"
            raise InputError(msg)
        return xp

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class RegressionLoss(Loss):
    """factor · reduction of ℓ(y - t) over all entries; a subclass is one `formula` for ℓ.

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean"}, default "mean"
        "mean" divides the sum by the number of entries (as in PyTorch), "batchmean" by the number
        of samples N, that is the length of the first axis.
    factor : float, default 1

    Notes
    -----
    `prediction` and `target` have the same shape; a target of another dtype is converted. The
    gradient is factor · ℓ′(y - t) / count, with the same count as the reduction.

    Raises
    ------
    InputError
        For an unknown reduction, and in a call where the shapes differ: they are not broadcast.
    """

    def __init__(self, reduction: str = "mean", *, factor: float = 1.0) -> None:
        self.reduction = choice("reduction", reduction, ("mean", "sum", "batchmean"))
        self.factor = number("factor", factor)

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        """ℓ and ℓ′ for each entry of y - t."""
        msg = f"{type(self).__name__} has no formula; define formula(self, xp, difference)"
        raise NotImplementedError(msg)

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = self.namespace(prediction, target)
        if prediction.shape != target.shape:
            msg = (
                f"{self} needs a target of the prediction's shape {tuple(prediction.shape)}, "
                f"got {tuple(target.shape)}"
            )
            raise InputError(msg)
        values, slopes = self.formula(xp, prediction - xp.astype(target, prediction.dtype))
        count = {"mean": math.prod(values.shape), "sum": 1, "batchmean": values.shape[0]}
        scale = self.factor / count[self.reduction]
        return scale * xp.sum(values), scale * slopes

    def check(self, prediction: Array, target: Array) -> None:
        if prediction.shape[1:] != target.shape[1:]:
            expected = ("N", *prediction.shape[1:])
            msg = (
                f"{self} needs targets of shape ({', '.join(map(str, expected))}), like the "
                f"model's output, got {tuple(target.shape)}"
            )
            raise InputError(msg)


class MSELoss(RegressionLoss):
    """Squared error ℓ = (y - t)², ℓ′ = 2 (y - t).

    ==================================  ========================================
    ``MSELoss()``                       mean over all entries, as in PyTorch
    ``MSELoss("sum", factor=0.5)``      ½ Σ (y - t)²
    ``MSELoss("batchmean")``            1/N Σ_n ‖y_n - t_n‖²
    ``MSELoss("batchmean", factor=½)``  1/2N Σ_n ‖y_n - t_n‖²
    ==================================  ========================================

    See `RegressionLoss` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.MSELoss("sum", factor=0.5)(np.array([3.0]), np.array([1.0]))
    >>> float(value), gradient.tolist()
    (2.0, [2.0])
    """

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        return difference * difference, 2 * difference


class L1Loss(RegressionLoss):
    """Absolute error ℓ = |y - t|, ℓ′ = sign(y - t), which is 0 at the kink y = t, as in PyTorch.

    See `RegressionLoss` for the parameters.
    """

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        return xp.abs(difference), xp.sign(difference)


class CrossEntropyLoss(Loss):
    """Softmax and cross-entropy in one: L_n = -Σ_c t_nc log p_nc with p = softmax(z).

    For integer labels t is one-hot, so L_n = -log p_n,label. The gradient is
    ∂L_n/∂z_n = p_n Σ_c t_nc - t_n, that is p - t (Bishop 2006, eq. 4.109). log p is computed as
    z - max z - log Σ e^(z - max z), which is finite and accurate for any finite logits.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the samples.

    Notes
    -----
    `prediction` holds logits (N, C); `target` holds integer labels (N,) from 0 to C - 1, or
    probabilities (N, C). A label out of range is an error where values can be read without waiting
    for a device; on a device it makes the loss nan, and `check` is the door that refuses it.

    Raises
    ------
    InputError
        For shapes that do not fit, labels out of range, or an unknown reduction.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.CrossEntropyLoss()(np.zeros((1, 4)), np.array([1]))
    >>> round(float(value), 6), gradient.tolist()
    (1.386294, [[0.25, -0.75, 0.25, 0.25]])
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = choice("reduction", reduction, ("mean", "sum"))

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = self.namespace(prediction, target)
        self._check_shapes(prediction, target)
        if target.ndim == 1:
            if on_host(target):
                self._check_labels(prediction, target)
            target = one_hot(xp, target, prediction.shape[1], prediction.dtype)
        else:
            target = xp.astype(target, prediction.dtype)
        shifted = prediction - xp.max(prediction, axis=1, keepdims=True)
        log_p = shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
        scale = 1 / prediction.shape[0] if self.reduction == "mean" else 1.0
        value = -scale * xp.sum(target * log_p)
        return value, scale * (xp.exp(log_p) * xp.sum(target, axis=1, keepdims=True) - target)

    def check(self, prediction: Array, target: Array) -> None:
        self._check_shapes(prediction, target, same_length=False)
        if target.ndim == 1:
            self._check_labels(prediction, target)
            return
        xp = array_namespace(target)
        sums = xp.sum(xp.astype(target, xp.float64), axis=1)
        wrong = xp.any(target < 0) | xp.any(xp.abs(sums - 1) > 1e-3)
        if bool(to_numpy(wrong)):
            msg = f"{self} needs probabilities: no entry below 0, each row summing to 1"
            raise InputError(msg)

    def _check_shapes(self, prediction: Array, target: Array, *, same_length: bool = True) -> None:
        if prediction.ndim != 2:
            msg = f"{self} needs logits of shape (N, C), got {tuple(prediction.shape)}"
            raise InputError(msg)
        integer = array_namespace(target).isdtype(target.dtype, "integral")
        fits = integer if target.ndim == 1 else target.shape[1:] == prediction.shape[1:]
        if not fits or (same_length and target.shape[0] != prediction.shape[0]):
            n, c = prediction.shape if same_length else ("N", prediction.shape[1])
            msg = (
                f"{self} needs integer labels of shape ({n},) or probabilities of shape "
                f"({n}, {c}), got shape {tuple(target.shape)} and dtype {dtype_name(target.dtype)}"
            )
            raise InputError(msg)

    def _check_labels(self, prediction: Array, labels: Array) -> None:
        xp, classes = array_namespace(labels), prediction.shape[1]
        low, high = int(to_numpy(xp.min(labels))), int(to_numpy(xp.max(labels)))
        if low < 0 or high >= classes:
            msg = (
                f"{self} needs labels from 0 to {classes - 1} for {classes} classes, "
                f"got {low if low < 0 else high}"
            )
            raise InputError(msg)


def one_hot(xp: Namespace, labels: Array, classes: int, dtype: Any) -> Array:
    """Integer labels (N,) → (N, classes), 1 at the label; a row of nan where it is out of range."""
    labels = xp.reshape(xp.astype(labels, xp.int64), (-1, 1))
    hot = xp.astype(labels == xp.arange(classes, device=labels.device), dtype)
    return xp.where((labels >= 0) & (labels < classes), hot, float("nan"))
