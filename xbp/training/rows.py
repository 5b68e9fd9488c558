"""Values that differ between steps, in arrays on the device with a row for each step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace, backend_of, dtype_name
from xbp.optim import Optimizer
from xbp.primitives import take_step
from xbp.random import words_of
from xbp.training.metrics.counting import len_of
from xbp.training.state import Pair

ROWS = 50
"""Steps per transfer: coefficients go to the device, and losses return, in blocks of this many."""


class Rows:
    """A block of rows, one for each step: start of the batch, random counter, coefficients.

    The coefficients of the update rule are computed on the host in float64, as in eager steps, and
    converted to the dtype of each parameter.

    Parameters
    ----------
    optimizer : Optimizer
    x : array
        The data, whose device holds the rows.
    batch_size : int

    Attributes
    ----------
    order : array (N,) of int64
        Which rows of the data the batches of this epoch are, one after the other.
    slot : array (1,) of int64
        The row of the next step, on the device; each captured step adds 1.
    row : int
        The host's copy of `slot`.
    """

    def __init__(self, optimizer: Optimizer, x: Array, batch_size: int) -> None:
        self.optimizer, self.batch_size = optimizer, batch_size
        self.count = ROWS
        self.xp = xp = array_namespace(x)
        self.here = {"dtype": xp.int64, "device": x.device}
        self.order = xp.zeros(len_of(x), **self.here)
        self.slot = xp.zeros(1, **self.here)
        self.row = 0
        # start of the batch, and both words of the random counter
        self.places = xp.zeros((self.count, 3), **self.here)
        self.coefficients: dict[str, Array] = {}  # by dtype: (ROWS, parameters, coefficients)
        self.lengths: list[int] = []  # how many coefficients each parameter has; the rest are 0
        self.rates: list[list[float]] = []  # learning rates of the rows, one for each group
        self.next: list[int] = []  # step, steps and counts for which the next row is valid

    def begin(self, order: Array) -> None:
        self.next = []
        self.order[...] = order

    def forget(self) -> None:
        """Invalidate the remaining rows, as options of the optimizer have changed."""
        self.next = []

    def ready(self, step: int, rates: list[float]) -> bool:
        """Whether the next row is valid for this step at these learning rates."""
        return (
            self.row < len(self.rates)
            and rates == self.rates[self.row]
            and self.next == self._place(step)
        )

    def advance(self, step: int) -> None:
        """Go on to the row after that of step `step`."""
        self.row += 1
        self.next = self._place(step + 1)

    def _place(self, step: int) -> list[int]:
        return [step, self.optimizer.steps, *self.optimizer.counts]

    def move(self, step: int, left: int) -> None:
        """Fill the rows for the steps from `step` on, and begin with row 0.

        Parameters
        ----------
        step : int
        left : int
            How many steps are left in the epoch, this one included.
        """
        optimizer, first = self.optimizer, self.optimizer.steps
        rows = range(min(left, self.count))
        self.rates = [optimizer.rates_at(first + i) for i in rows]
        host, self.lengths = _coefficients(optimizer, self.rates)
        size, period = self.batch_size, len_of(self.order)
        places = [((step - 1 + i) * size % period, *words_of(first + i)) for i in rows]
        _fill(self.places, places)
        shape = (self.count, *host.shape[1:])
        for parameter in optimizer.parameters:
            name = dtype_name(parameter.data.dtype)
            if name not in self.coefficients or self.coefficients[name].shape != shape:
                dtype = parameter.data.dtype
                self.coefficients[name] = self.xp.zeros(
                    shape, dtype=dtype, device=self.here["device"]
                )
        for array in self.coefficients.values():
            _fill(array, host)
        self.slot[...] = 0
        self.row, self.next = 0, self._place(step)

    # --- read by a captured step ---

    def take(
        self, span: range, data: Pair
    ) -> tuple[Pair, tuple[Array, Array], list[tuple[Array, ...]]]:
        """What the step needs: its samples, the random counter's words, coefficients.

        The samples are those at the positions `span` of the batch. The coefficients are those of
        each parameter, as `Optimizer.step` takes them.
        """
        tables = (self.places, *self.coefficients.values())
        positions = (span.start, span.stop, span.step)
        (place, *rows), (x, y) = take_step(self.slot, self.order, positions, tables, data)
        row = dict(zip(self.coefficients, rows, strict=True))
        found = []
        for index, parameter in enumerate(self.optimizer.parameters):
            own = row[dtype_name(parameter.data.dtype)]
            found.append(tuple(own[index, j] for j in range(self.lengths[index])))
        return (x, y), (place[1], place[2]), found


def _coefficients(
    optimizer: Optimizer, rates: list[list[float]]
) -> tuple[NDArray[np.float64], list[int]]:
    """Those of the next steps, (steps, parameters, coefficients), and their number by parameter.

    Parameters
    ----------
    optimizer : Optimizer
    rates : list of lists of float
        The learning rate of each group, for each step.
    """
    counts = optimizer.counts
    columns: list[NDArray[np.float64]] = []
    for group, (rule, indices) in enumerate(optimizer.rules()):
        known: dict[int, NDArray[np.float64]] = {}  # alike for parameters updated equally often
        for index in indices:
            t = counts[index]
            if t not in known:
                steps = enumerate(rates, t + 1)
                known[t] = np.asarray([rule.all_coefficients(lr[group], n) for n, lr in steps])
            columns.append(known[t])
    lengths = [column.shape[1] for column in columns]
    table = np.zeros((len(rates), len(columns), max(lengths)))
    for index, column in enumerate(columns):
        table[:, index, : lengths[index]] = column
    return table, lengths


def _fill(array: Array, values: Any) -> None:
    host: NDArray[Any] = np.zeros(tuple(array.shape), dtype_name(array.dtype))
    host[: len(values)] = values
    array[...] = backend_of(array).asarray(host)
