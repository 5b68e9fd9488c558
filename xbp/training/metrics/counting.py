"""The base of metrics, and of those that count."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xbp.backend import (
    Array,
    array_namespace,
    check_beside,
    dtype_name,
    joined,
    on_device_of,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nn.classes import by_rows
from xbp.nn.losses import advice
from xbp.primitives import bincount

HELD = 2**16
"""The number of keys that wait on the device before they are counted."""


class Metric:
    """A quantity measured over many batches, without a wait for the device until it is computed.

    A subclass has a ``name`` and defines `reset`, `update` and `compute`; also `state_dict` and
    `load_state_dict`, if a run is to be resumed in the middle of an epoch.

    A `Trainer` measures each epoch and each `evaluate` by a copy, whose state it hands back: after
    ``trainer.evaluate(x, y)``, ``metric.compute()`` is the value for those data.

    By hand:

    >>> import numpy as np
    >>> from xbp.training import Accuracy
    >>> metric = Accuracy()
    >>> for _ in range(3):
    ...     metric.update(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    >>> metric.compute()
    0.5
    """

    name: str

    def check(self, prediction: Array, target: Array) -> None:
        """Refuse targets that do not fit such predictions, once, before training.

        Parameters
        ----------
        prediction : array
            For one or more samples; only its shape and dtype matter.
        target : array
            All targets. Reading their values may wait for the device.

        Raises
        ------
        InputError
        """

    def names(self, prediction: Array) -> list[str]:
        """The names in `numbers` for such predictions, known before the first step."""
        return [self.name]

    def reset(self) -> None:
        """Forget all batches, by new state, as a copy may share the old one."""
        raise NotImplementedError(_missing(self, "reset(self)"))

    def update(self, prediction: Array, target: Array) -> None:
        """Add a batch, without waiting for the device."""
        raise NotImplementedError(_missing(self, "update(self, prediction, target)"))

    def compute(self) -> Any:
        """The value over all batches since `reset`, on the host."""
        raise NotImplementedError(_missing(self, "compute(self)"))

    def numbers(self) -> dict[str, float]:
        """The value as numbers for a record, by their names."""
        return {self.name: self.compute()}

    def addends(self) -> NDArray[np.float64]:
        """What it has counted since `reset` or `take_sums`, as numbers (n,), for several processes.

        Where processes each see a share of every batch, these are added up and given to `take_sums`
        of all, once an epoch. A metric that does not define the two is given whole batches, which
        then travel in each step. Of no new batch there are no numbers: n = 0.
        """
        raise NotImplementedError(_missing(self, "addends(self) and take_sums(self, sums)"))

    def take_sums(self, sums: NDArray[np.float64]) -> None:
        """Put the sums over all processes in the place of the own `addends`."""
        raise NotImplementedError(_missing(self, "addends(self) and take_sums(self, sums)"))

    def fresh(self) -> Self:
        """A copy that has seen no batch."""
        twin = copy.copy(self)
        twin.reset()
        return twin

    def state_dict(self) -> dict[str, Any]:
        """The state as numpy arrays by their names, for `load_state_dict`."""
        raise NotImplementedError(_missing(self, "state_dict(self) and load_state_dict(self, d)"))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError(_missing(self, "state_dict(self) and load_state_dict(self, d)"))


def adds_up(metric: Metric) -> bool:
    """Whether `Metric.addends` tells all that `update` keeps: no later class overrides that."""
    ancestors = type(metric).__mro__
    told, kept = (
        next(i for i, kind in enumerate(ancestors) if name in vars(kind))
        for name in ("addends", "update")
    )
    return told <= kept and ancestors[told] is not Metric


def _missing(metric: Metric, what: str) -> str:
    return f"{type(metric).__name__} lacks a method; define {what}"


class CountingMetric(Metric):
    """A metric computed from exact counts of keys.

    A subclass says which keys a batch has, and how many different keys there are. Keys wait on the
    device until there are as many as counters (or 65,536). So the cost per sample does not depend
    on the number of classes, and memory stays within a small multiple of the counters.
    """

    keys_each = 1
    """How many keys a sample has."""

    ignore_index: int | None = None
    """The label that does not count."""

    def __init__(self, name: str, num_classes: int | None = None) -> None:
        self.name = name
        self.num_classes = num_classes
        self.reset()

    def keys(self, prediction: Array, target: Array) -> Array:
        """The keys of a batch, int64 (n,), from 0 to ``size() - 1`` or -1. Sets `classes`."""
        raise NotImplementedError(_missing(self, "keys(self, prediction, target)"))

    def true_labels(self, prediction: Array, target: Array) -> Array | None:
        """All true labels, int64, where classes are 0 to ``classes - 1``; None if unknown."""
        return None

    def check(self, prediction: Array, target: Array) -> None:
        twin = self.fresh()
        twin.update(prediction[:1, ...], target[:1, ...])
        labels = twin.true_labels(prediction, target)
        if labels is None:
            return
        twin.samples = len_of(labels)
        known = to_numpy(within(labels, twin.classes))
        if self.ignore_index is not None:
            known = known | (to_numpy(labels) == self.ignore_index)
        twin.check_all_counted(int(known.sum()))
        one_each = target.ndim == prediction.ndim == 2 and target.shape[1] > 1
        if one_each and not _are_codes(to_numpy(target)):
            msg = (
                f"{self.name} needs labels (N,), or rows of probabilities or with one place marked;"
                f" these targets {tuple(target.shape)} are neither"
            )
            raise InputError(msg)

    def size(self) -> int:
        """The number of keys, known after the first call of `keys` at the latest."""
        raise NotImplementedError(_missing(self, "size(self)"))

    def reset(self) -> None:
        self.samples = 0
        self.classes = self.num_classes or 0  # 0: the number of outputs in the first batch
        self._earlier: Any = 0  # counts from before a resume, or of all processes
        self._earlier_samples = 0
        self._counted: Array = 0
        self._waiting: tuple[Array, ...] = ()
        self._held = 0

    def update(self, prediction: Array, target: Array) -> None:
        check_beside(self.name, "a prediction", prediction, "the target is", target)
        with on_device_of(prediction):
            self.add(self.keys(prediction, target))

    def add(self, keys: Array) -> None:
        """Add the keys of some samples."""
        before = self._waiting[0] if self._waiting else self._counted
        if not isinstance(before, int):
            check_beside(self.name, "a batch", keys, "the one before is", before)
        self.samples += len_of(keys) // self.keys_each
        self._waiting += (keys,)
        self._held += len_of(keys)
        if self._held >= max(HELD, self.size()):
            self._count()

    def _count(self) -> None:
        xp = array_namespace(self._waiting[0])
        with on_device_of(self._waiting[0]):
            self._counted = self._counted + bincount(joined(xp, self._waiting), self.size())
        self._waiting, self._held = (), 0

    def counts(self) -> NDArray[np.int64]:
        """The count of each key, on the host.

        Raises
        ------
        InputError
            There were no samples.
        """
        if not self.samples:
            msg = f"{self.name} has seen no samples; call update(prediction, target) first"
            raise InputError(msg)
        if self._waiting:
            self._count()
        counted: NDArray[np.int64] = to_numpy(self._counted) + self._earlier
        return counted

    def addends(self) -> NDArray[np.float64]:
        if self._waiting:
            self._count()
        if isinstance(self._counted, int):  # no batch
            return np.zeros(0)
        new = np.asarray([self.samples - self._earlier_samples])
        return np.concatenate([new, to_numpy(self._counted)]).astype(np.float64)

    def take_sums(self, sums: NDArray[np.float64]) -> None:
        samples, *counts = sums.astype(np.int64).tolist()
        self._earlier_samples += samples
        self._earlier = self._earlier + np.asarray(counts, np.int64)
        self.samples, self._counted = self._earlier_samples, 0

    def state_dict(self) -> dict[str, Any]:
        if not self.samples:
            return {}
        numbers = {"samples": self.samples, "classes": self.classes, "counts": self.counts()}
        return {name: np.asarray(value, np.int64) for name, value in numbers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`.

        Raises
        ------
        InputError
            It comes from another metric.
        """
        self.reset()
        if state:
            state = {name: to_numpy(value) for name, value in state.items()}
            if any(value.dtype.kind not in "iu" for value in state.values()):
                msg = f"the state does not fit {self.name}: its counts are no integers"
                raise InputError(msg)
            self.samples, self.classes = int(state["samples"]), int(state["classes"])
            self._earlier_samples = self.samples
            self._earlier = state["counts"].astype(np.int64)
            if self._earlier.shape != (self.size(),):
                msg = f"the state does not fit {self.name}: its counts have another shape"
                raise InputError(msg)

    def check_all_counted(self, counted: int) -> None:
        """Refuse labels that are no class, and were replaced by -1 on the device."""
        if counted != self.samples:
            msg = (
                f"{self.name} needs labels from 0 to {self.classes - 1} for {self.classes} classes;"
                f" {self.samples - counted} of {self.samples} samples have another one"
            )
            raise InputError(msg)


def _are_codes(target: NDArray[Any]) -> bool:
    """Whether rows (N, C) encode labels, unlike targets of a regression or of several labels.

    Such rows are probabilities, or have one value at the label and another one elsewhere.
    """
    target = target.astype(np.float64)
    if (target >= 0).all() and (np.abs(target.sum(axis=1) - 1) <= 1e-3).all():
        return True
    low, high = target.min(), target.max()
    marked = (target == high).sum(axis=1)
    return bool((marked == 1).all() and ((target == low) | (target == high)).all())


def labels_of(
    name: str, prediction: Array, target: Array, single: str, *, same_length: bool = True
) -> Array:
    """The target's labels, int64 (N · d1 · …,), checked to fit outputs (N, C, d1, …).

    Parameters
    ----------
    name : str
        The metric's, for messages.
    prediction : array (N, C, d1, …), C ≥ 2
    target : array (N, d1, …) of integers, or of the prediction's shape
        Labels; or probabilities, whose largest gives the label.
    single : str
        Advice for a single output.
    same_length : bool, default True
        Whether there must be as many outputs as targets.

    Raises
    ------
    InputError
        The arrays are of another kind.
    """
    xp = array_namespace(prediction)
    if prediction.ndim == 1 or (prediction.ndim == 2 and prediction.shape[1] == 1):
        msg = f"{name} needs outputs for two classes or more; for a single one {single}"
        raise InputError(msg)
    one_each = prediction.shape[2:]
    fits = prediction.ndim >= 2 and target.shape[1:] in (one_each, prediction.shape[1:])
    if not fits or target.ndim == 0 or (same_length and len_of(target) != len_of(prediction)):
        msg = (
            f"{name} needs outputs (N, C) and labels (N,) or probabilities (N, C), or as many more "
            f"axes behind these, got shapes "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            f"{advice(('N',), tuple(target.shape))}"
        )
        raise InputError(msg)
    labels = target
    if target.ndim == prediction.ndim:
        known = xp.all(target == target, axis=1)
        labels = xp.where(known, xp.argmax(target, axis=1), -1)  # nan marks no place
    if not xp.isdtype(labels.dtype, "integral"):
        msg = f"{name} needs integer labels, got {dtype_name(labels.dtype)}"
        raise InputError(msg)
    labels = xp.astype(labels, xp.int64, copy=False)
    return labels if labels.ndim == 1 else xp.reshape(labels, (-1,))


def guesses(prediction: Array) -> tuple[Array, Array]:
    """Of outputs (N, C, …) the first largest one, int64 (N · …,), and whether no rival is nan.

    A row with nan predicts no class. (argmax gives the place of a nan.)
    """
    xp = array_namespace(prediction)
    rows = by_rows(prediction)
    return xp.argmax(rows, axis=1), xp.all(rows == rows, axis=1)


def within(labels: Array, classes: int) -> Array:
    """Whether each label is a class."""
    return (labels >= 0) & (labels < classes)


def len_of(array: Array) -> int:
    """The length of the first axis, which is the number of samples."""
    return int(array.shape[0])
