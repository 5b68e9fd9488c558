"""Shared parts of classification losses: the axis of classes, class weights, the ignored label."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

from xbp.arguments import choice
from xbp.backend import (
    Array,
    array_namespace,
    as_numbers,
    backend_of,
    dtype_name,
    is_kind,
    to_numpy,
)
from xbp.errors import InputError, on_one_line
from xbp.nn.losses import Loss, advice
from xbp.primitives.cross_entropy import one_hot


def by_rows(array: Array) -> Array:
    """(N, C, d1, …) → (N · d1 · …, C): one row for each label."""
    if array.ndim == 2:
        return array
    xp = array_namespace(array)
    axes = (0, *range(2, array.ndim), 1)
    return xp.reshape(xp.permute_dims(array, axes), (-1, array.shape[1]))


def target_rows(prediction: Array, target: Array) -> Array:
    """Labels (N, d1, …) → (N · d1 · …,), or probabilities by `by_rows`."""
    if target.ndim == prediction.ndim:
        return by_rows(target)
    return target if target.ndim == 1 else array_namespace(target).reshape(target, (-1,))


def as_before(rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `by_rows`: rows → an array of `shape`."""
    if len(shape) == 2:
        return rows
    xp = array_namespace(rows)
    moved = xp.reshape(rows, (shape[0], *shape[2:], shape[1]))
    return xp.permute_dims(moved, (0, len(shape) - 1, *range(1, len(shape) - 1)))


class ClassLoss(Loss):
    """Base of the losses whose target is a class: outputs (N, C, d1, …), labels (N, d1, …).

    Classes lie along axis 1, as in PyTorch. Each label n has a loss ℓ_n and a weight

        c_n = s_n w_label, and 0 where the label is `ignore_index`,

    with the weight w of its class and s of its sample, both 1 unless given. "sum" is Σ c_n ℓ_n,
    "mean" Σ c_n ℓ_n / Σ c_n. If all c_n are 0, both are 0, and so is the gradient. (PyTorch's mean
    is nan there, its gradient 0.) A `Trainer` weights batches by their `denominator` Σ c_n, so that
    its mean is that over the whole set.

    Parameters
    ----------
    reduction : {"mean", "sum"}, default "mean"
    weight : C numbers of at least 0, optional
        A weight for each class: a sequence, or an array of any library. It is copied, and moved
        once to the device of the outputs.
    ignore_index : int, optional
        The label that does not count. None, the default, ignores none (PyTorch's default is -100).
    """

    # Class attributes: only an option that is given enters the loss's repr and its record in files,
    # which therefore are those of versions without the option.
    weight: tuple[float, ...] | None = None
    ignore_index: int | None = None
    _placed: tuple[Any, Array] = (None, None)  # (weights, their array on a device)

    def __init__(self, reduction: str, *, weight: Any, ignore_index: int | None) -> None:
        self.reduction = choice("reduction", reduction, ("mean", "sum"))
        if weight is not None:
            self.weight = class_weights(weight)
        if ignore_index is not None:
            self.ignore_index = label("ignore_index", ignore_index)

    def weights_beside(self, x: Array) -> Array:
        """The class weights (C,) on the device and in the dtype of `x`; cached."""
        weight, array = self._placed
        if (
            weight is not self.weight
            or type(array) is not type(x)
            or array.dtype != x.dtype
            or array.device != x.device
        ):
            array = backend_of(x).asarray(self.weight, dtype=x.dtype)
            self._placed = (self.weight, array)
        return array

    def taken(self, x: Array, labels: Array, s: Array | None = None) -> Array:
        """s_n (R,) of labels (R,) for rows x (R, C): 0 if ignored, nan if out of range."""
        xp = array_namespace(x)
        labels = xp.astype(labels, xp.int64)
        if s is None:
            s = xp.ones(labels.shape, dtype=x.dtype, device=x.device)
        s = xp.where((labels >= 0) & (labels < x.shape[1]), s, float("nan"))
        return s if self.ignore_index is None else xp.where(labels == self.ignore_index, 0.0, s)

    def counts(self, x: Array, labels: Array, taken: Array) -> Array:
        """c_n (R,) of labels (R,), from their s_n (`taken`)."""
        if self.weight is None:
            return taken
        xp = array_namespace(x)
        # Any class in place of an unknown one: its `taken` is 0 or nan.
        labels = xp.where((labels >= 0) & (labels < x.shape[1]), labels, 0)
        return taken * xp.take(self.weights_beside(x), xp.astype(labels, xp.int64), axis=0)

    def shares(
        self, x: Array, target: Array, s: Array | None, smoothing: float = 0.0
    ) -> tuple[Array, float]:
        """t (R, C) with weights and smoothing applied, and the divisor of the reduction.

        Parameters
        ----------
        x : array (R, C)
        target : array (R,) of labels, or (R, C) of probabilities
        s : array (R,), optional
            The weight of each row.
        smoothing : float
            ε of `CrossEntropyLoss`.
        """
        xp, (rows, classes) = array_namespace(x), x.shape
        if target.ndim == 1:
            labels = xp.astype(target, xp.int64)
            s = self.taken(x, labels, s)
            total = xp.sum(self.counts(x, labels, s))
            if self.ignore_index is not None:
                labels = xp.where(labels == self.ignore_index, 0, labels)  # any class: s_n is 0
            t = one_hot(xp, labels, classes, x.dtype)
        else:
            t, total = xp.astype(target, x.dtype), None if s is None else xp.sum(s)
        if smoothing:
            t = (1 - smoothing) * t + smoothing / classes
        if self.weight is not None:
            t = t * self.weights_beside(x)
        if self.reduction == "mean" and s is not None:
            s = s / xp.where(total > 0, total, 1.0)
        if s is not None:
            return t * xp.reshape(s, (-1, 1)), 1.0
        return t, 1 / rows if self.reduction == "mean" else 1.0

    def by_label(self, prediction: Array, weight: Array) -> Array:
        """Weights of samples (N,) → weights of labels (N · d1 · …,), in the output's dtype."""
        xp = self.namespace(prediction, weight, "weight")
        shape = (prediction.shape[0], *prediction.shape[2:])
        self.check_weight(prediction, weight)
        weight = xp.reshape(xp.astype(weight, prediction.dtype), (-1, *[1] * (len(shape) - 1)))
        return xp.reshape(xp.broadcast_to(weight, shape), (-1,))

    def denominator(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> Array | None:
        counted = self.weight is not None or self.ignore_index is not None
        if not counted or target.ndim == prediction.ndim or self.reduction == "sum":
            return super().denominator(prediction, target, weight)
        xp = self.namespace(prediction, target)
        s = None if weight is None else self.by_label(prediction, weight)
        x, labels = by_rows(prediction), target_rows(prediction, target)
        return xp.sum(self.counts(x, labels, self.taken(x, labels, s)))

    # --- at the door ---

    shares_too = False
    """Whether targets may be probabilities, of the outputs' shape."""

    def check(self, prediction: Array, target: Array) -> None:
        self.check_shapes(prediction, target, same_length=False)
        if self.weight is not None:
            self.weights_beside(prediction)
        if target.ndim < prediction.ndim:
            self.check_labels(prediction, target)

    def check_shapes(self, prediction: Array, target: Array, *, same_length: bool = True) -> None:
        """Refuse outputs and targets that do not fit each other.

        Raises
        ------
        InputError
        """
        shape = tuple(prediction.shape)
        if len(shape) < 2:
            msg = f"{self} needs {self.outputs} of shape (N, C) or (N, C, …), got shape {shape}"
            raise InputError(msg)
        got = tuple(target.shape)
        labelled = len(got) == len(shape) - 1 or not self.shares_too
        wanted = shape[:1] + shape[2:] if labelled else shape
        integer = is_kind(target, "integral")
        fits = got[1:] == wanted[1:] and len(got) == len(wanted) and (integer or not labelled)
        if not fits or (same_length and got[0] != shape[0]):
            n = shape[0] if same_length else "N"
            labels = (n, *shape[2:])
            msg = f"{self} needs integer labels of shape {written(labels)}"
            if self.shares_too:
                msg += f" or probabilities of shape {written((n, *shape[1:]))}"
            msg += f", got shape {got} and dtype {dtype_name(target.dtype)}{advice(labels, got)}"
            if labelled and dtype_name(target.dtype) in ("bool", "float32", "float64"):
                msg += "; if they are labels, convert them with xbp.asarray(y).astype('int64')"
            elif len(shape) > 2 and got[1:] == shape[1:-1]:
                axes = ", ".join(map(str, (0, len(shape) - 1, *range(1, len(shape) - 1))))
                msg += f"; classes lie along axis 1: let the model end with Permute({axes})"
            raise InputError(msg)
        if self.weight is not None and len(self.weight) != shape[1]:
            given = len(self.weight)
            msg = f"{self} has {given} weights, where the outputs have {shape[1]} classes"
            raise InputError(msg)
        if not labelled and self.ignore_index is not None:
            msg = f"{self} leaves out a label, and cannot be given probabilities as targets"
            raise InputError(msg)

    outputs = "outputs"
    """What a prediction holds, for messages."""

    def check_labels(self, prediction: Array, labels: Array) -> None:
        """Refuse labels that are no class; a host wait.

        Raises
        ------
        InputError
            A label is out of range, or all are ignored.
        """
        classes, host = prediction.shape[1], to_numpy(labels)
        if self.ignore_index is not None:
            host = host[host != self.ignore_index]
            if not host.size:
                msg = f"{self} has nothing to learn from: all labels are {self.ignore_index}"
                raise InputError(msg)
        low, high = int(host.min()), int(host.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            msg = f"{self} needs labels from 0 to {classes - 1} for {classes} classes, got {wrong}"
            if classes == 1:
                msg += "; for a model with a single output take BCEWithLogitsLoss"
            elif self.ignore_index is None and wrong < 0:
                msg += f"; if it marks what does not count, give ignore_index={wrong}"
            raise InputError(msg)

    def refuse_wrong_labels(self, prediction: Array, target: Array) -> None:
        """Name wrong labels as the cause of a loss that is nan.

        Raises
        ------
        InputError
        """
        if target.ndim < prediction.ndim:
            if self.ignore_index is None or (to_numpy(target) != self.ignore_index).any():
                self.check_labels(prediction, target)


def label(name: str, value: Any) -> int:
    """`value`, an integer that need not be a class.

    Raises
    ------
    InputError
        It is no integer.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    msg = f"{name} must be an integer, got {value!r}"
    raise InputError(msg)


def class_weights(weight: Any) -> tuple[float, ...]:
    """Weights of classes, copied to the host.

    Raises
    ------
    InputError
        They are no sequence of finite numbers of at least 0, or all of them are 0.
    """
    host = as_numbers(weight)
    if host.ndim == 1 and host.dtype.kind in "biuf" and host.size:
        found = tuple(map(float, host.tolist()))
        if all(math.isfinite(w) and w >= 0 for w in found) and any(found):
            return found
    msg = (
        "weight must hold a finite number of at least 0 for each class, and not only zeros, "
        f"got {on_one_line(repr(weight), 60)}"
    )
    raise InputError(msg)


def written(shape: tuple[Any, ...]) -> str:
    """A shape with named sizes, as text.

    >>> written(("N",)), written(("N", 3))
    ('(N,)', '(N, 3)')
    """
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
