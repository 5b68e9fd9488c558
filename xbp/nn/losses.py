"""Losses: ``value, gradient = loss(prediction, target)``, both on the prediction's device.

The value is a 0-d array, still on the device; the gradient, ∂value/∂prediction, is the input of a
model's backward.
"""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import choice, number, positive
from xbp.backend import (
    Array,
    Namespace,
    array_namespace,
    check_beside,
    dtype_name,
    is_kind,
    there,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nested import first_of


class Loss:
    """Base of all losses. A subclass defines ``__call__(prediction, target)``, and may `check`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            cls.__call__ = there(cls.__call__)  # type: ignore[method-assign]

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """The value of the loss, 0-d, and its gradient with respect to `prediction`."""
        msg = f"{type(self).__name__} has no __call__(self, prediction, target); define it"
        raise NotImplementedError(msg)

    def check(self, prediction: Array, target: Array) -> None:
        """Check a whole set of targets against a prediction, once before training.

        Parameters
        ----------
        prediction : array
            Of one or more samples; only its shape and dtype count.
        target : array
            All targets. Checking their values may wait for the device.

        Raises
        ------
        InputError
        """

    def operation(self, shape: tuple[int, ...], target: Array) -> Any:
        """The loss as one operation of a prediction of this shape: (primitive, options).

        ``value, gradient = primitive(prediction, target, **options)`` then is what a call returns.
        None, the default, if it is more than one, or if the target does not fit.
        """
        return None

    reduction = "mean"

    def denominator(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> Array | None:
        """The divisor of the mean over this batch, 0-d; None for the number of samples.

        The mean over a set is the average of its batches' means, weighted by this number.
        """
        if weight is None or self.reduction == "sum":
            return None
        first = first_of(prediction)
        xp = self.namespace(first, weight, "weight")
        self.check_weight(first, weight)
        return xp.sum(xp.astype(weight, first.dtype))

    def relative(self, prediction: Array, weight: Array) -> Array:
        """The factor r of each sample's loss, (N, 1, …), in the prediction's dtype.

        For a mean r_n = w_n N / Σ w, which gives Σ w_n ℓ_n / Σ w as in scikit-learn; for a sum
        r_n = w_n. An integer weight thus has the effect of repeating the sample. If all weights are
        0, so is r.

        Raises
        ------
        InputError
            `weight` is not of shape (N,).
        """
        xp = self.namespace(prediction, weight, "weight")
        self.check_weight(prediction, weight)
        weight = xp.astype(weight, prediction.dtype)
        if self.reduction != "sum":
            total = xp.sum(weight)
            weight = weight * (prediction.shape[0] / xp.where(total > 0, total, 1.0))
        return xp.reshape(weight, (-1, *[1] * (prediction.ndim - 1)))

    def check_weight(self, prediction: Array, weight: Array) -> None:
        """Refuse weights that are not one for each sample."""
        n = prediction.shape[0]
        if weight.shape != (n,):
            msg = f"{self} needs weights of shape ({n},), one a sample, got {tuple(weight.shape)}"
            raise InputError(msg)

    def namespace(self, prediction: Array, target: Array, name: str = "target") -> Namespace:
        """The common Array API namespace of both; mixing libraries or devices is an error."""
        xp = array_namespace(prediction)
        check_beside(self, "a prediction", prediction, f"the {name} is", target)
        if prediction.ndim == 0 or prediction.shape[0] == 0:
            msg = f"{self} needs at least one sample, got shape {tuple(prediction.shape)}"
            raise InputError(msg)
        if not is_kind(prediction, "real floating"):
            msg = f"{self} needs floating-point predictions, got {dtype_name(prediction.dtype)}"
            raise InputError(msg)
        return xp

    def __repr__(self) -> str:
        known = vars(self).items()
        options = ", ".join(f"{k}={_shown(v)}" for k, v in known if not k.startswith("_"))
        return f"{type(self).__name__}({options})"


def advice(wanted: tuple[Any, ...], given: tuple[int, ...]) -> str:
    """How to give targets the wanted shape, as the end of an error sentence; empty if unknown.

    >>> advice(("N", 1), (8,)), advice(("N",), (8, 1)), advice(("N", 3), (8, 1))
    ('; give y[:, None]', '; give y[:, 0]', '')
    """
    if len(wanted) == len(given) + 1 and wanted[-1] == 1:
        return "; give y[..., None]" if len(given) > 1 else "; give y[:, None]"
    if len(wanted) == len(given) - 1 and given[-1] == 1:
        return "; give y[..., 0]" if len(wanted) > 1 else "; give y[:, 0]"
    return ""


def _shown(value: Any) -> str:
    """An option's repr, on one line."""
    if isinstance(value, tuple) and len(value) > 10:
        return f"{len(value)} numbers"
    return f"array of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)


class EntrywiseLoss(Loss):
    """factor · reduction of ℓ(y, t) over all entries.

    Parameters
    ----------
    reduction : {"mean", "sum", "batchmean"}, default "mean"
        "mean" divides the sum by the number of entries, as in PyTorch, "batchmean" by the number of
        samples N, the length of the first axis.
    factor : float, default 1

    Notes
    -----
    `prediction` and `target` have the same shape; a target of another dtype is converted. The
    gradient is factor · ∂ℓ/∂y / count, with the same count as the reduction. A third argument (N,)
    may give each sample a weight of at least 0: see `Loss.relative`.

    Raises
    ------
    InputError
        For an unknown reduction, and in a call for different shapes, which are not broadcast.
    """

    def __init__(self, reduction: str = "mean", *, factor: float = 1.0) -> None:
        self.reduction = choice("reduction", reduction, ("mean", "sum", "batchmean"))
        self.factor = number("factor", factor)

    def matched(self, prediction: Array, target: Array) -> tuple[Namespace, Array]:
        """The common namespace, and the target in the prediction's dtype; shapes must agree."""
        xp = self.namespace(prediction, target)
        if prediction.shape != target.shape:
            shape, got = tuple(prediction.shape), tuple(target.shape)
            msg = f"{self} needs a target of the prediction's shape {shape}, got {got}"
            msg += advice(shape, got)
            raise InputError(msg)
        if target.dtype != prediction.dtype and xp.isdtype(target.dtype, "complex floating"):
            msg = f"{self} needs real targets, got {dtype_name(target.dtype)}"
            raise InputError(msg)
        return xp, xp.astype(target, prediction.dtype)

    def scale(self, prediction: Array) -> float:
        """The factor of the sum over all entries: factor / count."""
        shape: tuple[int, ...] = prediction.shape
        count = {"mean": math.prod(shape), "sum": 1, "batchmean": shape[0]}
        return self.factor / count[self.reduction]

    def check(self, prediction: Array, target: Array) -> None:
        if prediction.shape[1:] != target.shape[1:]:
            expected, got = ("N", *prediction.shape[1:]), tuple(target.shape)
            shape = f"({', '.join(map(str, expected))}{',' * (len(expected) == 1)})"
            msg = f"{self} needs targets of shape {shape}, like the model's output, got {got}"
            msg += advice(expected, got)
            if target.ndim == 1 and not msg.endswith("]"):
                msg += "; for labels of classes take CrossEntropyLoss, or make them one-hot"
            raise InputError(msg)


class RegressionLoss(EntrywiseLoss):
    """factor · reduction of ℓ(y - t) over all entries; a subclass is one `formula` for ℓ.

    See `EntrywiseLoss` for the parameters and errors.
    """

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        """ℓ and ℓ′ for each entry of y - t."""
        msg = f"{type(self).__name__} has no formula; define formula(self, xp, difference)"
        raise NotImplementedError(msg)

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        xp, target = self.matched(prediction, target)
        values, slopes = self.formula(xp, prediction - target)
        scale = self.scale(prediction)
        if weight is not None:
            r = self.relative(prediction, weight)
            values, slopes = r * values, r * slopes
        return scale * xp.sum(values), scale * slopes


class MSELoss(RegressionLoss):
    """Squared error ℓ = (y - t)², ℓ′ = 2 (y - t).

    ==================================  ========================================
    ``MSELoss()``                       mean over all entries, as in PyTorch
    ``MSELoss("sum", factor=0.5)``      ½ Σ (y - t)²
    ``MSELoss("batchmean")``            1/N Σ_n ‖y_n - t_n‖²
    ``MSELoss("batchmean", factor=½)``  1/2N Σ_n ‖y_n - t_n‖²
    ==================================  ========================================

    See `EntrywiseLoss` for the parameters.

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

    See `EntrywiseLoss` for the parameters.
    """

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        # xp.sign would be a host wait in CuPy. The third case is 0 or nan.
        below = xp.where(difference < 0, -1.0, difference)
        return xp.abs(difference), xp.where(difference > 0, 1.0, below)


class HuberLoss(RegressionLoss):
    """ℓ = ½ d² for |d| ≤ delta, else delta (|d| - ½ delta), with d = y - t (Huber 1964).

    ℓ′ is d clipped to ±delta, without a jump; in terms of it ℓ = ℓ′ (d - ½ ℓ′).

    ``HuberLoss(delta=b, factor=1/b)`` is ``SmoothL1Loss(beta=b)``.

    Parameters
    ----------
    reduction, factor
        See `EntrywiseLoss`.
    delta : float, default 1
        Above 0.
    """

    def __init__(self, reduction: str = "mean", *, factor: float = 1.0, delta: float = 1.0) -> None:
        super().__init__(reduction, factor=factor)
        self.delta = positive("delta", delta)

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        slope = xp.maximum(xp.minimum(difference, self.delta), -self.delta)
        return slope * (difference - 0.5 * slope), slope


class SmoothL1Loss(RegressionLoss):
    """ℓ = ½ d²/beta for |d| < beta, else |d| - ½ beta, with d = y - t (Girshick 2015, eq. 3).

    ℓ′ is d/beta clipped to ±1, without a jump; in terms of it ℓ = ℓ′ (d - ½ beta ℓ′). With beta = 0
    it is `L1Loss`, as in PyTorch.

    Parameters
    ----------
    reduction, factor
        See `EntrywiseLoss`.
    beta : float, default 1
        At least 0.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> value, gradient = nn.SmoothL1Loss("sum", beta=2.0)(np.array([1.0, 5.0]), np.zeros(2))
    >>> float(value), gradient.tolist()
    (4.25, [0.5, 1.0])
    """

    def __init__(self, reduction: str = "mean", *, factor: float = 1.0, beta: float = 1.0) -> None:
        super().__init__(reduction, factor=factor)
        self.beta = number("beta", beta, least=0)

    def formula(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        if self.beta == 0:
            return L1Loss.formula(self, xp, difference)  # type: ignore[arg-type]
        slope = xp.maximum(xp.minimum(difference / self.beta, 1.0), -1.0)
        return slope * (difference - 0.5 * self.beta * slope), slope


class KLDivLoss(EntrywiseLoss):
    """Kullback-Leibler divergence of q from p, ℓ = p (log p - log q), for y = log q and t = p.

    The gradient is ∂ℓ/∂y = -p. For p = 0, ℓ is 0, its limit, even for q = 0 (PyTorch's is nan
    there). The sum over a distribution is KL(p ‖ q) (Kullback & Leibler 1951); its mean over
    samples is ``KLDivLoss("batchmean")``, since "mean" divides by the number of entries.

    Parameters
    ----------
    reduction, factor
        See `EntrywiseLoss`.
    log_target : bool, default False
        Whether targets are log p instead of p.

    Raises
    ------
    InputError
        As `EntrywiseLoss`; by `check` for targets that are no probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> y = np.log(np.array([[0.5, 0.5]]))
    >>> value, gradient = nn.KLDivLoss("batchmean")(y, np.array([[1.0, 0.0]]))
    >>> round(float(value), 6), gradient.tolist()
    (0.693147, [[-1.0, 0.0]])
    """

    def __init__(
        self, reduction: str = "mean", *, factor: float = 1.0, log_target: bool = False
    ) -> None:
        super().__init__(reduction, factor=factor)
        if log_target not in (True, False):
            msg = f"log_target must be True or False, got {log_target!r}"
            raise InputError(msg)
        self.log_target = log_target

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        xp, target = self.matched(prediction, target)
        p = xp.exp(target) if self.log_target else target
        log_p = target if self.log_target else xp.log(xp.where(p == 0, 1.0, p))
        losses = p * (xp.where(p == 0, 0.0, log_p) - xp.where(p == 0, 0.0, prediction))
        slopes, scale = 0.0 - p, self.scale(prediction)  # no negative zeros
        if weight is not None:
            r = self.relative(prediction, weight)
            losses, slopes = r * losses, r * slopes
        return scale * xp.sum(losses), scale * slopes

    def check(self, prediction: Array, target: Array) -> None:
        super().check(prediction, target)
        xp = array_namespace(target)
        p = xp.astype(target, xp.float64)
        p = xp.exp(p) if self.log_target else p
        if not bool(to_numpy(xp.all((p >= 0) & (p <= 1 + 1e-3)))):
            wanted = "log-probabilities, at most 0" if self.log_target else "probabilities"
            msg = f"{self} needs targets that are {wanted}"
            raise InputError(msg)
