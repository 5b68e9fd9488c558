"""Losses that compare embeddings: pairs by their angle, triplets by their distances.

They take a tuple of arrays (N, …, D) and return a tuple of gradients.
"""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import choice, described, number, positive
from xbp.backend import Array, Namespace, check_beside, on_host, to_numpy
from xbp.errors import InputError
from xbp.nn.classes import written
from xbp.nn.losses import Loss

COSINE_EPS = 1e-12
"""What PyTorch adds to the square of a length."""


class EmbeddingLoss(Loss):
    """Base of losses of several embeddings: arrays of one shape, and a reduction.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
    """

    names: tuple[str, ...] = ()
    """What the inputs are, in their order."""

    def __init__(self, reduction: str) -> None:
        self.reduction = choice("reduction", reduction, ("mean", "sum"))

    def together(self, prediction: Any) -> Namespace:
        """The common namespace of the inputs.

        Raises
        ------
        BackendError, InputError
            There are too few or too many arrays, or they differ in shape, dtype, library or device.
        """
        wanted = ", ".join(self.names)
        if not isinstance(prediction, tuple | list) or len(prediction) != len(self.names):
            msg = f"{self} takes a tuple ({wanted}), got {described(prediction)}"
            raise InputError(msg)
        first, *others = prediction
        xp = self.namespace(first, others[0], self.names[1])
        for name, other in zip(self.names[1:], others, strict=True):
            check_beside(self, f"a {self.names[0]}", first, f"the {name} is", other)
            if other.shape != first.shape or other.dtype != first.dtype:
                shapes = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in prediction)
                msg = f"{self} needs inputs of one shape and dtype, got {shapes}"
                raise InputError(msg)
        if first.ndim < 2:
            msg = f"{self} needs inputs of shape (N, …, D), got {tuple(first.shape)}"
            raise InputError(msg)
        return xp

    def reduced(
        self, xp: Namespace, losses: Array, slopes: tuple[Array, ...], weight: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """The value and gradients of losses (N, …) with these slopes (N, …, D)."""
        scale = 1 / math.prod(losses.shape) if self.reduction == "mean" else 1.0
        if weight is not None:
            r = self.relative(losses, weight)
            losses = r * losses
            slopes = tuple(xp.expand_dims(r, axis=-1) * slope for slope in slopes)
        return scale * xp.sum(losses), tuple(scale * slope for slope in slopes)


class CosineEmbeddingLoss(EmbeddingLoss):
    """A loss of similar (t = 1) and dissimilar (t = -1) pairs. With c = u·v / (‖u‖ ‖v‖)

        ℓ = 1 - c for t = 1,   ℓ = max(0, c - margin) for t = -1   (as in PyTorch).

    ∂c/∂u = v/(‖u‖ ‖v‖) - c u/‖u‖², and likewise for v. 10⁻¹² is added to each ‖·‖², as in PyTorch,
    so that c of a zero vector is 0. At the kink c = margin the slope is 1.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the pairs.
    margin : float, default 0
        From -1 to 1; 0 to 0.5 is usual.

    Notes
    -----
    `prediction` is a tuple (u, v) of arrays (N, …, D), `target` holds 1 and -1 and has the shape
    (N, …). Any other number is an error on the host and makes the loss nan on a device. A third
    argument may give weights of samples: see `Loss.relative`.

    Raises
    ------
    InputError
        For shapes that do not fit, targets that are neither 1 nor -1, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> u, v = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]])
    >>> value, gradients = nn.CosineEmbeddingLoss()((u, v), np.array([1]))
    >>> round(float(value), 6), [g.round(6).tolist() for g in gradients]
    (1.0, [[[0.0, -0.5]], [[-1.0, 0.0]]])
    """

    names = ("first input", "second input")

    def __init__(self, reduction: str = "mean", *, margin: float = 0.0) -> None:
        super().__init__(reduction)
        self.margin = number("margin", margin, least=-1, most=1)

    def __call__(
        self, prediction: Any, target: Array, weight: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        xp = self.together(prediction)
        u, v = prediction
        self.namespace(u, target)
        self._check_target(u, target)
        uu, vv = (xp.sum(x * x, axis=-1) + COSINE_EPS for x in (u, v))
        length = xp.sqrt(uu * vv)
        c = xp.sum(u * v, axis=-1) / length
        apart = xp.where(target == -1, xp.maximum(c - self.margin, 0.0), float("nan"))
        losses = xp.where(target == 1, 1 - c, apart)
        slope = xp.where(target == 1, -1.0, xp.astype(c >= self.margin, c.dtype))
        slopes = tuple(
            xp.expand_dims(slope / length, axis=-1) * y
            - xp.expand_dims(slope * c / xx, axis=-1) * x
            for x, xx, y in ((u, uu, v), (v, vv, u))
        )
        value, gradients = self.reduced(xp, losses, slopes, weight)
        if on_host(value) and math.isnan(value):
            self._check_signs(target)
        return value, gradients

    def check(self, prediction: Any, target: Array) -> None:
        self.together(prediction)
        self._check_target(prediction[0], target, same_length=False)
        self._check_signs(target)

    def _check_target(self, u: Array, target: Array, *, same_length: bool = True) -> None:
        wanted, got = tuple(u.shape[:-1]), tuple(target.shape)
        if not got or got[1:] != wanted[1:] or (same_length and got != wanted):
            shape = written((wanted[0] if same_length else "N", *wanted[1:]))
            msg = f"{self} needs targets of shape {shape}, one for each pair, got {got}"
            raise InputError(msg)

    def _check_signs(self, target: Array) -> None:
        host = to_numpy(target)
        if not (abs(host.astype(float)) == 1).all():
            msg = f"{self} needs targets that are 1, for a pair that belongs together, or -1"
            raise InputError(msg)


class TripletMarginLoss(EmbeddingLoss):
    """ℓ = max(0, d(a, p) - d(a, n) + margin) for an anchor a, a positive p and a negative n.

    d(x, y) = ‖δ‖_p with δ = x - y + eps (Balntas et al. 2016; as in PyTorch). ∂d/∂x = -∂d/∂y is
    sign δ (|δ|/d)^(p-1), that is δ/d for p = 2, and 0 for d = 0. With `swap`, d(a, n) becomes
    min(d(a, n), d(p, n)), where equal distances share the slope. At the kink ℓ = 0 the slope is
    that of its positive side.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
        Over the triplets.
    margin : float, default 1
        Above 0.
    p : float, default 2
        At least 1.
    eps : float, default 1e-6
    swap : bool, default False

    Notes
    -----
    `prediction` is a tuple (a, p, n) of arrays (N, …, D). A target, such as a `Trainer` gives, is
    ignored. A third argument may give weights of samples: see `Loss.relative`.

    Raises
    ------
    InputError
        For shapes that differ, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> a, p, n = (np.array([[x, 0.0]]) for x in (0.0, 3.0, 2.0))
    >>> value, gradients = nn.TripletMarginLoss(eps=0.0)((a, p, n))
    >>> float(value), [g.tolist() for g in gradients]
    (2.0, [[[0.0, 0.0]], [[1.0, 0.0]], [[-1.0, 0.0]]])
    """

    names = ("anchor", "positive", "negative")

    def __init__(
        self,
        reduction: str = "mean",
        *,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
    ) -> None:
        super().__init__(reduction)
        self.margin = positive("margin", margin)
        self.p = number("p", p, least=1)
        self.eps = number("eps", eps, least=0)
        if swap not in (True, False):
            msg = f"swap must be True or False, got {swap!r}"
            raise InputError(msg)
        self.swap = swap

    def __call__(
        self, prediction: Any, target: Any = None, weight: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        xp = self.together(prediction)
        a, p, n = prediction
        near, to_p = self._distance(xp, a - p)
        far, to_n = self._distance(xp, a - n)
        from_p: Any = 0.0  # ∂ far/∂p
        if self.swap:
            other, between = self._distance(xp, p - n)
            # 1 where d(a, n) < d(p, n), ½ where they are equal, 0 elsewhere.
            own = 0.5 * (xp.astype(far <= other, a.dtype) + xp.astype(far < other, a.dtype))
            own = xp.expand_dims(own, axis=-1)
            to_n, from_p = own * to_n, (1 - own) * between
            far = xp.minimum(far, other)
        losses = near - far + self.margin
        active = xp.expand_dims(xp.astype(losses >= 0, a.dtype), axis=-1)
        slopes = (to_p - to_n, 0.0 - to_p - from_p, to_n + from_p)
        slopes = tuple(active * slope for slope in slopes)
        return self.reduced(xp, xp.maximum(losses, 0.0), slopes, weight)

    def _distance(self, xp: Namespace, difference: Array) -> tuple[Array, Array]:
        """d (N, …) and ∂d/∂x (N, …, D) for x - y."""
        delta = difference + self.eps
        if self.p == 2:
            d = xp.sqrt(xp.sum(delta * delta, axis=-1))
            return d, delta / _nonzero(xp, d)
        size = xp.abs(delta)
        d = xp.sum(size**self.p, axis=-1) ** (1 / self.p)
        sign = xp.where(delta > 0, 1.0, xp.where(delta < 0, -1.0, delta))  # xp.sign waits on CuPy
        return d, sign * (size / _nonzero(xp, d)) ** (self.p - 1)

    def check(self, prediction: Any, target: Array) -> None:
        self.together(prediction)


def _nonzero(xp: Namespace, d: Array) -> Array:
    """d (N, …) → (N, …, 1), with 1 in place of 0."""
    return xp.expand_dims(xp.where(d > 0, d, 1.0), axis=-1)
