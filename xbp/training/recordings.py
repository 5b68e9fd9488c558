"""Recordings of steps: a device records a step once and replays it, one launch for hundreds.

Values that differ between steps are read from arrays on the device (`rows`), at the position of a
counter on the device: the order of the samples, the start of the batch, the words of the random
counter, and the coefficients of the optimizer. Parameters, optimizer state and the counter change
in place. Each step writes its loss and the values that metrics count into a row of its own, and the
host reads rows in blocks. So the results equal those of eager steps, bit for bit, wherever the
device's functions are reproducible. For numpy the device is the host itself, and a launch a loop
over recorded calls, which ends before its changes if the loss is not finite; an eager step follows.

There is one recording for each batch size, in one of four states::

              first step            second step
    WARM_UP ──────────────► RECORD ─────────────► REPLAY ──┐ all later steps
       ▲                      │                    │  ▲    │
       │ a new recording      │  something frozen  │  └────┘
       │                      ▼  has changed       ▼
       └──────────────────  STALE  ◄───────────────┘
"""

from __future__ import annotations

import operator
import weakref
from contextlib import AbstractContextManager
from enum import Enum
from functools import partial
from itertools import repeat
from typing import Any

from xbp.backend import (
    Array,
    NotMadeError,
    array_namespace,
    backend_of,
    graph_for,
    on_device_of,
)
from xbp.errors import InputError
from xbp.nested import tree_map
from xbp.nn.parameter import note_changes
from xbp.primitives import appending
from xbp.training.callbacks.base import Training
from xbp.training.frozen import Frozen, same
from xbp.training.lending import lent
from xbp.training.metrics.averages import Mean
from xbp.training.metrics.counting import CountingMetric, Metric
from xbp.training.own import is_own
from xbp.training.results import CheckedLoss
from xbp.training.rows import Rows
from xbp.training.scaling import expecting_overflow
from xbp.training.state import Pair
from xbp.training.steps import update

CHANCES = 5
"""Give up capturing after more than this many consecutive recordings went stale unused."""

_grad = operator.attrgetter("grad")


class Recordings:
    """The recordings of a trainer's steps with one set of data and one batch size.

    Before each step, the values frozen in its recording are compared with the current ones
    (`Frozen`). The learning rate and other values that change in each step are not frozen (`Rows`).

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    given, data : (x, y)
        As in `stepper_for`.
    on_host : bool
        Whether the host records; see `Graph.on_host`.
    """

    def __init__(self, trainer: Training, given: Pair, data: Pair, on_host: bool = False) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no reference cycle
        self.arguments = _arguments(trainer)
        self.batch_size, self.given, self.data = trainer.batch_size, given, data
        self.xp = array_namespace(data[0])
        self.optimizer = trainer.optimizer
        self.rows = Rows(trainer.optimizer, data[0], trainer.batch_size)
        self.frozen = Frozen(self.trainer)
        self.on_host = on_host
        self.by_size: dict[int, Recording] = {}
        self.used: Recording | None = None  # by the last step
        self.unflushed: list[int] = []  # batch sizes of steps whose results are not yet flushed
        self.unused = 0  # consecutive recordings that went stale before a replay

    def fit_again(self, trainer: Training, given: Pair, data: Pair) -> bool:
        """Whether they serve another `fit`; if so, its data are copied into their arrays."""
        if not same(_arguments(trainer), self.arguments):
            return False
        if self.on_host:  # where what is placed may be in the user's own memory
            return all(map(operator.is_, data, self.data))
        copies = []
        for now, before, new, old in zip(given, self.given, data, self.data, strict=True):
            if type(now) is type(old) and now is before and now.dtype == old.dtype:
                continue  # the user's own array on the device
            placed_here = type(now) is not type(new) and type(before) is not type(old)
            if not placed_here or backend_of(old) != backend_of(new):
                return False
            if old.shape != new.shape or old.dtype != new.dtype:
                return False
            copies.append((old, new))
        for old, new in copies:
            old[...] = new
        return True

    def bytes_of_data(self) -> int:
        """The size of the data that the recordings keep alive, on the host."""
        return sum(int(array.nbytes) for array in self.data)

    # --- a step ---

    def begin(self, order: Array) -> None:
        """Begin an epoch, with this order of the samples."""
        self.unflushed = []
        self.rows.begin(order)

    def step(self, k: int, size: int, rates: list[float]) -> bool:
        """Make step k = 1, 2, … of the epoch; returns False if it must be an eager step.

        Raises
        ------
        Exception
            The step cannot be captured; nothing has changed.
        """
        if any(map(operator.is_not, map(_grad, self.frozen.parameters), repeat(None))):
            return False  # the user accumulates gradients
        recording = self._recording(size)
        if not self.rows.ready(k, rates):
            self.flush()
            # Of an epoch whose end is not known, no schedule is asked for more than this step.
            self.rows.move(k, max(1, self.trainer.steps_per_epoch - k + 1))
        try:
            if recording.phase is Phase.WARM_UP:
                recording.warm_up()
            else:
                if recording.phase is Phase.RECORD:
                    recording.record()
                recording.replay()
                self.unused = 0
        except NotMadeError:
            self.flush()
            return False
        state = self.trainer.state
        state.loss = None  # kept in a row
        self.rows.advance(k)
        self.unflushed.append(size)
        for name, metric in state.averages.metrics.items():
            if not self.captured(metric):  # it gets copies, as the next step overwrites the arrays
                copies = tree_map(partial(self.xp.asarray, copy=True), recording.outputs)
                state.averages.give(name, *copies)
        return True

    def _recording(self, size: int) -> Recording:
        """The recording for batches of this size; a new one if there is none, or it is stale."""
        recording = self.by_size.get(size)
        if recording is not None:
            unused = recording.phase is Phase.RECORD
            recording.compare()
            if recording.phase is Phase.STALE:
                self.unused += unused
                if self.unused > CHANCES:
                    msg = f"{self.frozen.changed(recording.frozen)} changes from step to step"
                    raise InputError(msg)
                recording = None
        if recording is None:
            if self.trainer.scaling is not None:
                self.trainer.scaling.place(self.data[0])
            self.frozen.collect()
            recording = self.by_size[size] = Recording(self, size)
            self.rows.forget()  # the coefficients may depend on the options that changed
        if recording is not self.used:
            self.flush()
            self.used = recording
        return recording

    def scaling(self) -> tuple[Array, ...]:
        """The arrays of a scaled loss."""
        scaling = self.trainer.scaling
        return () if scaling is None else scaling.arrays()

    def captured(self, metric: Metric) -> bool:
        """Whether a captured step computes what the metric needs, for `flush` to pass on later."""
        known = type(metric).update in (Mean.update, CountingMetric.update)
        return known and (not self.on_host or is_own(metric))

    # --- results of the steps ---

    def flush(self) -> None:
        """Pass the rows since the last call to the averages of the epoch, without a wait."""
        if not self.unflushed or self.used is None:
            return
        sizes, self.unflushed = self.unflushed, []
        end = self.rows.row
        first, averages = end - len(sizes), self.trainer.state.averages
        own = self.used.read("counted", first, end) if "counted" in self.used.rows else sizes
        averages.loss.add_all(own, self.used.read("loss", first, end))
        sizes = [len(self.trainer.share.span(size)) for size in sizes]
        for name, metric in averages.metrics.items():
            if name in self.used.learned:
                vars(metric).update(self.used.learned[name])
                values = self.used.read(f"metric {name}", first, end)
                if isinstance(metric, Mean):
                    metric.add_all(sizes, values)
                elif isinstance(metric, CountingMetric):
                    metric.add(self.xp.reshape(values, (-1,)))

    def last_loss(self) -> Array:
        """The loss of the last step, copied; None before the first step."""
        if self.used is None:
            return None
        return self.used.read("loss", self.rows.row - 1, self.rows.row)[0, ...]


class Phase(Enum):
    """What the next step does with a recording."""

    WARM_UP = "warm up"
    """Run once on the capture stream, so that compilation and allocation happen now."""
    RECORD = "record"
    """Capture the graph, then launch it."""
    REPLAY = "replay"
    """Launch the graph."""
    STALE = "stale"
    """Replace the recording, as a frozen value has changed."""


class Recording:
    """The captured graph of a step with batches of one size, and the values frozen in it.

    Parameters
    ----------
    steps : Recordings
    size : int
    """

    def __init__(self, steps: Recordings, size: int) -> None:
        graph = graph_for(steps.rows.slot)
        assert graph is not None
        self.steps: Recordings = weakref.proxy(steps)  # no reference cycle
        self.size, self.graph = size, graph
        self.scaled = steps.trainer.scaling is not None
        self.phase = Phase.WARM_UP
        self.frozen: list[Any] = []  # from the warm-up on
        self.rows: dict[str, Array] = {}  # results, a row for each step
        self.learned: dict[str, dict[str, Any]] = {}  # attributes that metrics derive from shapes
        self.moved: list[int] = []  # indices of parameters with a gradient
        self.outputs: Pair = (None, None)  # prediction and target of the last step

    # --- its states ---

    def warm_up(self) -> None:
        """Make an eager step with coefficients on the device, and note the values that it froze."""
        frozen = self.steps.frozen
        with frozen.undone_on_error(self.steps.rows.slot, *self.steps.scaling()):
            self.graph.warm_up(self.run)
            self.frozen = frozen.values()
        self.phase = Phase.RECORD

    def record(self) -> None:
        """Capture a step, without computing it.

        Raises
        ------
        InputError
            The step changes a value that would be frozen.
        """
        frozen, optimizer = self.steps.frozen, self.steps.optimizer
        with frozen.undone_on_error(self.steps.rows.slot, *self.steps.scaling()):
            steps, counts = optimizer.steps, list(optimizer.counts)
            self.graph.record(self.run)
            optimizer.steps, optimizer.counts = steps, counts
            if not same(self.frozen, frozen.values()):
                msg = f"{frozen.changed(self.frozen)} changes in each step"
                raise InputError(msg)
        self.phase = Phase.REPLAY

    def replay(self) -> None:
        """Launch the graph, which makes one step, and update the counts on the host."""
        optimizer = self.steps.optimizer
        steps, counts = optimizer.steps, list(optimizer.counts)
        if self.scaled:
            with expecting_overflow():
                self.graph.replay()
        else:
            self.graph.replay()
        for index in self.moved:
            counts[index] += 1
        note_changes(optimizer.parameters[index] for index in self.moved)
        optimizer.steps, optimizer.counts = steps + 1, counts

    def compare(self) -> None:
        """Become stale if a frozen value has changed."""
        if self.phase is not Phase.WARM_UP and not same(self.frozen, self.steps.frozen.values()):
            self.phase = Phase.STALE

    # --- what is captured ---

    def run(self) -> None:
        """Issue one step to the device."""
        with lent(self.graph, self.steps, self):
            self.issue()

    def issue(self) -> None:
        """The same, of arrays that are lent to the graph."""
        steps, trainer, counts = self.steps, self.steps.trainer, self.steps.optimizer.counts
        rows, before = steps.rows, list(counts)
        (x, y), words, coefficients = rows.take(trainer.share.span(self.size), steps.data)
        stream = trainer.state.stream
        stream.advance_to(words)
        checked, part, kept = CheckedLoss(trainer.loss), trainer.part, list[str]()

        def keeping(prediction: Any, loss: Array) -> AbstractContextManager[object]:
            results = self.results(prediction, y, loss)
            kept.extend(results)
            return self.writing(results)

        prediction, loss = update(
            trainer, checked, x, y, stream, coefficients, part=part, around=keeping
        )
        self.moved = [i for i, count in enumerate(counts) if count != before[i]]
        if not kept:  # nothing was updated
            with keeping(prediction, loss):
                pass

    def results(self, prediction: Any, y: Array, loss: Array) -> dict[str, Array]:
        """What the epoch's averages need of the step, by name."""
        steps, trainer = self.steps, self.steps.trainer
        results = {"loss": loss}
        size = trainer.share.counted(trainer.loss, prediction, y)
        if not isinstance(size, int):
            results["counted"] = size
        for name, metric in trainer.metrics.items():
            if steps.captured(metric):
                metric = metric.fresh()
                known = dict(vars(metric))
                results[f"metric {name}"] = _observed(metric, prediction, y)
                now = vars(metric).items()
                self.learned[name] = {k: v for k, v in now if known.get(k, self) is not v}
            else:
                self.outputs = prediction, y
        return results

    def writing(self, results: dict[str, Array]) -> AbstractContextManager[object]:
        """A context in which results are written into the row of this step, and it ends there."""
        steps = self.steps
        for name, value in results.items():
            if name not in self.rows:
                shape = (steps.rows.count, *value.shape)
                zeros = array_namespace(value).zeros
                self.rows[name] = zeros(shape, dtype=value.dtype, device=value.device)
        return appending(steps.rows.slot, *map(self.rows.__getitem__, results), *results.values())

    def read(self, name: str, first: int, end: int) -> Array:
        """A copy of some rows."""
        rows = self.rows[name]
        with on_device_of(rows):
            return self.steps.xp.asarray(rows[first:end, ...], copy=True)


def _arguments(trainer: Training) -> list[Any]:
    metrics = trainer.metrics.values()
    pieces = [trainer.model, trainer.loss, trainer.optimizer, trainer.augment]
    return [*pieces, trainer.batch_size, trainer.part, trainer.precision, *metrics]


def _observed(metric: Metric, prediction: Array, target: Array) -> Array:
    """What such a metric needs of a batch."""
    if isinstance(metric, CountingMetric):
        return metric.keys(prediction, target)
    assert isinstance(metric, Mean)
    return metric.measure(prediction, target)
