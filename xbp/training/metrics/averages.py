"""Averages over an epoch, without a wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import (
    Array,
    Fetch,
    array_namespace,
    check_beside,
    fetch,
    joined,
    on_device_of,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nested import first_of
from xbp.training.metrics.counting import Metric, adds_up, len_of
from xbp.training.results import CheckedLoss, check_distinct, counted, numbers_of, value_of
from xbp.training.share import WHOLE, Whole

MOST_WAITING = 256
"""The most blocks of values that are kept before they are joined: each is memory of its own."""


class Mean(Metric):
    """The mean over all samples of a value of each batch, left on the device until it is read.

    Parameters
    ----------
    name : str
    function : callable ``(prediction, target) -> number or 0-d array``, optional
        The value of a batch, as the mean over its samples. Without it, use `add`.
    summed : bool, default False
        Whether the value of a batch is a sum, and so is the result.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Array, Array], Array] | None = None,
        *,
        summed: bool = False,
    ) -> None:
        self.name, self.function, self.summed = name, function, summed
        self.known: type | None = None  # the checked type of the function's values
        self.reset()

    def reset(self) -> None:
        self.sizes: list[float] = []
        self.values: list[float] = []  # on the host, of the first batches
        self.fetched: Fetch | None = None  # in transfer
        self.waiting: list[Array] = []  # still on the device
        self.waiting_sizes: list[Array] = []  # likewise, where sizes are computed there
        self.checked = 0  # how many values `first_not_finite` has seen
        self.joined = 0  # how many values are those of whole batches

    def update(self, prediction: Array, target: Array) -> None:
        first = first_of(prediction)
        check_beside(self.name, "a prediction", first, "the target is", target)
        with on_device_of(first):
            self.add(len_of(target), self.measure(prediction, target))

    def measure(self, prediction: Array, target: Array) -> Array:
        """The function's value for a batch, checked whenever its type changes.

        Raises
        ------
        InputError
            It is neither a number nor a 0-d array.
        """
        assert self.function is not None
        if not len_of(first_of(target)):  # a share without samples, of which there is no mean
            return value_of(self.name, 0.0, first_of(prediction))
        given = self.function(prediction, target)
        if type(given) is self.known:
            return given
        value = value_of(f"the metric {self.name}", given, first_of(prediction))
        if value is given:
            self.known = type(given)
        return value

    def add(self, size: int | Array, value: Array) -> None:
        """Add the value of one batch, with its weight: a number of samples, or a 0-d array."""
        if isinstance(size, int):
            self.sizes.append(size)
        else:
            self.waiting_sizes.append(size)
        self.waiting.append(value)
        if len(self.waiting) >= MOST_WAITING:
            self._join()

    def add_all(self, sizes: Sequence[int] | Array, values: Array) -> None:
        """Add the values (n,) of n batches, with their weights: a list, or an array."""
        if isinstance(sizes, list):
            self.sizes += sizes
        else:
            self.waiting_sizes.append(sizes)
        self.waiting.append(values)

    def _join(self) -> None:
        """Put the values that wait into one array, and likewise their sizes, on the device."""
        for blocks in (self.waiting, self.waiting_sizes):
            if blocks:
                xp = array_namespace(blocks[0])
                with on_device_of(blocks[0]):
                    blocks[:] = [joined(xp, [xp.reshape(block, (-1,)) for block in blocks])]

    def look(self, *, wait: bool = True) -> None:
        """Transfer values to the host, at once; without `wait`, take those that have arrived."""
        if self.fetched and (wait or self.fetched.done()):
            found = np.atleast_1d(self.fetched.values()).tolist()
            known = len(self.values)
            if len(self.sizes) == known:  # weights on the device follow the values
                found, sizes = found[: len(found) // 2], found[len(found) // 2 :]
                self.sizes += sizes
            self.values += found
            self.fetched = None
        if self.waiting and not self.fetched:
            if len(self.waiting) + len(self.waiting_sizes) > 1:
                self._join()
            values, *sizes = *self.waiting, *self.waiting_sizes
            if sizes:
                with on_device_of(values):
                    values = array_namespace(values).concat([values, *sizes])
            self.waiting.clear()
            self.waiting_sizes.clear()
            self.fetched = fetch(values)
            self.look(wait=wait)

    def first_not_finite(self, *, wait: bool = True) -> int | None:
        """The index of the first unchecked batch whose value is infinite or nan, or None.

        Without `wait`, only values that have arrived on the host are checked.
        """
        self.look(wait=wait)
        start, self.checked = self.checked, len(self.values)
        new = self.values[start:]
        return next((start + i for i, value in enumerate(new) if not math.isfinite(value)), None)

    def compute(self) -> float:
        self.look()
        if not self.values:
            msg = f"{self.name} has seen no samples; call update(prediction, target) first"
            raise InputError(msg)
        if self.summed:
            return math.fsum(self.values)
        weighted = (n * v for n, v in zip(self.sizes, self.values, strict=True))
        return math.fsum(weighted) / (math.fsum(self.sizes) or 1.0)  # 0 if all weights are 0

    def addends(self) -> NDArray[np.float64]:
        self.look()
        sizes, values = (np.asarray(new[self.joined :]) for new in (self.sizes, self.values))
        weighted = values if self.summed else np.where(sizes > 0, sizes * values, 0.0)
        return np.concatenate([weighted, sizes]).astype(np.float64)

    def take_sums(self, sums: NDArray[np.float64]) -> None:
        values, sizes = np.split(sums, 2)
        if not self.summed:
            values = values / np.where(sizes > 0, sizes, 1.0)
        whole = all(isinstance(size, int) for size in self.sizes)
        self.sizes[self.joined :] = (sizes.astype(np.int64) if whole else sizes).tolist()
        self.values[self.joined :] = values.tolist()
        self.joined = len(self.values)

    def state_dict(self) -> dict[str, Any]:
        self.look()
        whole = all(isinstance(size, int) for size in self.sizes)
        sizes = np.array(self.sizes, np.int64 if whole else np.float64)
        return {"sizes": sizes, "values": np.array(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        sizes, values = to_numpy(state["sizes"]), to_numpy(state["values"])
        if sizes.ndim != 1 or sizes.shape != values.shape:
            msg = f"the state does not fit {self.name}: it needs a value for each batch"
            raise InputError(msg)
        self.sizes, self.values = sizes.tolist(), values.tolist()
        self.joined = len(self.values)


class Averages:
    """The loss and all metrics over one epoch, or one set.

    Parameters
    ----------
    loss : the loss
        If its ``reduction`` is "sum", losses are added up; otherwise averaged over the samples.
    metrics : mapping of names to Metric
        Unchanged until `result`, which hands each of them its state.
    share : Whole, optional
        The share of each batch that this process sees.
    """

    def __init__(self, loss: Any, metrics: Mapping[str, Metric], share: Whole = WHOLE) -> None:
        self.of, self.share = loss, share
        self.loss = Mean("loss", summed=getattr(loss, "reduction", "mean") == "sum")
        self.given = metrics
        self.metrics = {name: metric.fresh() for name, metric in metrics.items()}
        self.adding = {name for name, metric in self.metrics.items() if adds_up(metric)}
        self.shared_loss = False  # whether its values are those of shares

    def add(self, loss: Array, prediction: Array, target: Array) -> None:
        """Add the batch of a step: the value of its loss, and the own rows for the metrics."""
        self.loss.add(self.share.counted(self.of, prediction, target), loss)
        self.measure(prediction, target)

    def add_share(self, loss: CheckedLoss, prediction: Array, target: Array) -> None:
        """Add the own rows of a batch, for loss and metrics."""
        self.shared_loss = True
        if len_of(first_of(target)):
            value = loss(prediction, target)[0]
        else:
            value = value_of("the loss", 0.0, first_of(prediction))
        self.loss.add(counted(self.of, prediction, target), value)
        self.measure(prediction, target)

    def measure(self, prediction: Array, target: Array) -> None:
        """Give the own rows of a batch to all metrics."""
        for name in self.metrics:
            self.give(name, prediction, target)

    def give(self, name: str, prediction: Array, target: Array) -> None:
        """Give a metric the own rows of a batch, or the whole batch if its states do not add up."""
        if name not in self.adding:
            prediction, target = self.share.gathered((prediction, target))
        self.metrics[name].update(prediction, target)

    def join(self) -> None:
        """Make all states those of whole batches. All processes call it, or none."""
        metrics = [metric for name, metric in self.metrics.items() if name in self.adding]
        self.share.join([self.loss, *metrics] if self.shared_loss else metrics)

    def result(self) -> dict[str, float]:
        """Loss and metrics over all batches so far, as numbers."""
        self.join()
        numbers = self.loss.numbers()
        for name, metric in self.metrics.items():
            more = numbers_of(f"the metric {name}", metric.numbers())
            check_distinct(["epoch", "lr", *numbers, *more])
            numbers |= more
            vars(self.given[name]).update(vars(metric))
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """The state so far as numpy arrays: ``"loss.sizes"``, ``"loss.values"``, …"""
        self.join()
        parts = {"loss": self.loss, **self.metrics}
        return {f"{a}.{b}": v for a, part in parts.items() for b, v in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name, part in {"loss": self.loss, **self.metrics}.items():
            start = f"{name}."
            part.load_state_dict(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
