"""Captured steps: a device records a step once and replays it, one launch in place of hundreds.

What differs from step to step lies in arrays on the device (`rows`), in which it finds its way by a
counter of its own: the order of the samples, where in it the batch begins, the words of the random
counter, all numbers of the optimizer. What a step changes (parameters, state, counter) it changes
in place; what it has to say (its loss, what metrics count) it writes into a row of its own, and the
host takes the rows in blocks. So the results are those of eager steps, bit for bit, wherever the
device's functions repeat theirs.

There is one recording for each size of a batch, in one of four states::

              first step            second step
    WARM_UP ──────────────► RECORD ─────────────► REPLAY ──┐ all later steps
       ▲                      │                    │  ▲    │
       │ a new recording      │  something frozen  │  └────┘
       │                      ▼  has changed       ▼
       └──────────────────  STALE  ◄───────────────┘

Whatever fails, nothing has changed, and eager steps go on from there.
"""

from __future__ import annotations

import os
import warnings
import weakref
from enum import Enum
from typing import Any

from xbp.backend import Array, array_namespace, backend_of, brief, graph_for, on_device_of
from xbp.errors import InputError
from xbp.optim import Optimizer
from xbp.primitives import write_row
from xbp.training.callbacks.base import Training
from xbp.training.frozen import Frozen, same
from xbp.training.metrics.averages import Mean
from xbp.training.metrics.counting import CountingMetric, Metric, len_of
from xbp.training.results import CheckedLoss
from xbp.training.rows import Rows
from xbp.training.state import Pair
from xbp.training.steps import EagerSteps, Stepper, update

CHANCES = 5
"""Give up capturing after more than this many consecutive recordings went stale unused."""


def stepper_for(
    trainer: Training,
    given: Pair,
    data: Pair,
    *,
    capture: bool | None,
    before: Stepper | None,
    own_step: bool,
) -> Stepper:
    """Captured steps where a device takes them and they are wanted; else eager ones.

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    given, data : (x, y)
        As the user gave them, and as they were placed where the model lives.
    capture : bool or None
        As `Trainer` has it.
    before : Stepper or None
        That of the last `fit`, whose recordings may be used again.
    own_step : bool
        Whether the trainer is of a class with a step of its own, which would not be called.

    Raises
    ------
    InputError
        With ``capture=True``: there is no GPU, or something cannot be captured.
    """
    eager = EagerSteps(trainer, data)
    wanted = os.environ.get("XBP_CAPTURE", "1") != "0" if capture is None else capture
    if not wanted:
        return eager
    if graph_for(data[0]) is None:
        if capture:
            msg = f"capture=True needs a GPU, where the model is on {backend_of(data[0])}"
            raise InputError(msg)
        return eager
    steps = CapturedSteps(trainer, eager, required=bool(capture))
    earlier = recordings_of(before)
    if earlier is not None and earlier.fit_again(trainer, given, data):
        steps.recordings = earlier
        return steps
    try:
        check(trainer, own_step)
        steps.recordings = Recordings(trainer, given, data)
    except InputError as error:
        steps.give_up(error)
    return steps


def recordings_of(stepper: Stepper | None) -> Recordings | None:
    """Those that `stepper` replays; None where it has none, or has given up."""
    return stepper.recordings if isinstance(stepper, CapturedSteps) else None


class CapturedSteps:
    """Steps by recordings as long as that works, and by `EagerSteps` elsewhere. (A `Stepper`.)

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    eager : EagerSteps
    required : bool
        Whether to raise what prevents capturing, in place of a warning.
    """

    def __init__(self, trainer: Training, eager: EagerSteps, required: bool) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no circle of references
        self.eager, self.required = eager, required
        self.recordings: Recordings | None = None
        self.refused = False
        self.lr = 0.0

    def begin(self, order: Array) -> None:
        self.eager.begin(order)
        if self.recordings is not None:
            self.recordings.begin(order)

    def step(self, k: int) -> None:
        if self.recordings is not None:
            self.lr = self.trainer.optimizer.lr
            try:
                if self.recordings.step(k, self.lr):
                    return
            except Exception as error:
                self.give_up(error)
        self.eager.step(k)
        self.lr = self.eager.lr

    def give_up(self, error: Exception) -> None:
        """Go on with eager steps, and say so; or raise, where they are not wanted."""
        if self.required:
            raise error
        cause: BaseException = error
        while cause.__context__ is not None:  # not what followed from it
            cause = cause.__context__
        self.tell()
        self.refused, self.recordings = True, None
        msg = (
            "training goes on with ordinary steps, as they cannot be recorded for the device "
            f"({brief(cause)}); Trainer(…, capture=False) does not try to"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=2)

    def tell(self) -> None:
        if self.recordings is not None:
            self.recordings.tell()

    def loss(self) -> Array:
        kept = self.trainer.state.loss
        if kept is None and self.recordings is not None:
            return self.recordings.last_loss()
        return kept

    def end(self) -> None:
        self.eager.end()


def check(trainer: Training, own_step: bool) -> None:
    """Refuse what would be frozen, or not be called, in a recording.

    Raises
    ------
    InputError
    """
    optimizer = type(trainer.optimizer)
    if own_step:
        msg = f"{type(trainer).__name__} has a step of its own"
    elif optimizer.step is not Optimizer.step or optimizer.zero_grad is not Optimizer.zero_grad:
        msg = f"{optimizer.__name__} has a step of its own, where it could have an update"
    elif optimizer.numbers is Optimizer.numbers:
        msg = f"{optimizer.__name__} does not say which numbers its rule takes; define numbers"
    else:
        return
    raise InputError(msg)


class Recordings:
    """The recordings of a trainer's steps with one set of data and one batch size.

    Before each step, what is frozen in its recording is compared with what is (`Frozen`). The
    learning rate and what changes with the step are not frozen (`Rows`).

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    given, data : (x, y)
        As in `stepper_for`.
    """

    def __init__(self, trainer: Training, given: Pair, data: Pair) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no circle of references
        self.asked = _asked(trainer)
        self.batch_size, self.given, self.data = trainer.batch_size, given, data
        self.xp = array_namespace(data[0])
        self.optimizer = trainer.optimizer
        self.rows = Rows(trainer.optimizer, data[0], trainer.batch_size)
        self.frozen = Frozen(self.trainer)
        self.by_size: dict[int, Recording] = {}
        self.used: Recording | None = None  # the last one
        self.untold: list[int] = []  # sizes of the batches whose results are on the device alone
        self.unused = 0  # recordings that went stale before a replay, in a row

    def fit_again(self, trainer: Training, given: Pair, data: Pair) -> bool:
        """Whether they serve such a `fit`, too; then the data are copied to theirs."""
        if not same(_asked(trainer), self.asked):
            return False
        copies = []
        for now, before, new, old in zip(given, self.given, data, self.data, strict=True):
            if type(now) is type(old) and now is before and now.dtype == old.dtype:
                continue  # it lies where it was placed by the user
            placed_here = type(now) is not type(new) and type(before) is not type(old)
            if not placed_here or backend_of(old) != backend_of(new):
                return False
            if old.shape != new.shape or old.dtype != new.dtype:
                return False
            copies.append((old, new))
        for old, new in copies:
            old[...] = new
        return True

    # --- a step ---

    def begin(self, order: Array) -> None:
        """An epoch begins, with this order of the samples."""
        self.untold = []
        self.rows.begin(order)

    def step(self, k: int, lr: float) -> bool:
        """Make step k = 1, 2, … of the epoch; False where it has to be an eager one.

        Raises
        ------
        Exception
            It cannot be captured; nothing has changed then.
        """
        if any(parameter.grad is not None for parameter in self.frozen.parameters):
            return False  # somebody adds up gradients
        size = min(self.batch_size, len_of(self.rows.order) - (k - 1) * self.batch_size)
        recording = self._recording(size)
        if not self.rows.ready(k, lr):
            self.tell()
            self.rows.move(k)
        if recording.phase is Phase.WARM_UP:
            recording.warm_up()
        else:
            if recording.phase is Phase.RECORD:
                recording.record()
            recording.replay()
            self.unused = 0
        state = self.trainer.state
        state.loss = None  # it is in a row
        self.rows.advance(k)
        self.untold.append(size)
        for metric in state.averages.metrics.values():
            if not _waits(metric):  # it may keep what it is given, and the next step overwrites it
                metric.update(*(self.xp.asarray(a, copy=True) for a in recording.outputs))
        return True

    def _recording(self, size: int) -> Recording:
        """That of batches of such a size; a new one where there is none, or it is stale."""
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
            self.frozen.look_around()
            recording = self.by_size[size] = Recording(self, size)
            self.rows.forget()  # the numbers may follow from other options, too
        if recording is not self.used:
            self.tell()
            self.used = recording
        return recording

    # --- what the steps have said ---

    def tell(self) -> None:
        """Give what the rows hold to the averages of the epoch, without a wait."""
        if not self.untold or self.used is None:
            return
        sizes, self.untold = self.untold, []
        end = self.rows.row
        first, averages = end - len(sizes), self.trainer.state.averages
        averages.loss.add_all(sizes, self.used.said("loss", first, end))
        for name, metric in averages.metrics.items():
            if name in self.used.noted:
                vars(metric).update(self.used.noted[name])
                values = self.used.said(f"metric {name}", first, end)
                if isinstance(metric, Mean):
                    metric.add_all(sizes, values)
                elif isinstance(metric, CountingMetric):
                    metric.add(sum(sizes), self.xp.reshape(values, (-1,)))

    def last_loss(self) -> Array:
        """That of the last step, as an array of its own; None before the first one."""
        if self.used is None:
            return None
        return self.used.said("loss", self.rows.row - 1, self.rows.row)[0, ...]


class Phase(Enum):
    """What the next step with a recording does."""

    WARM_UP = "warm up"
    """Run once on the capture stream, so that compilation and allocation happen now."""
    RECORD = "record"
    """Capture the graph, then launch it."""
    REPLAY = "replay"
    """Launch the graph."""
    STALE = "stale"
    """Nothing: something frozen has changed, and a new recording takes its place."""


class Recording:
    """The steps with batches of one size: a graph, and what is frozen in it.

    Parameters
    ----------
    steps : Recordings
    size : int
    """

    def __init__(self, steps: Recordings, size: int) -> None:
        graph = graph_for(steps.rows.slot)
        assert graph is not None
        self.steps: Recordings = weakref.proxy(steps)  # no circle of references
        self.size, self.graph = size, graph
        self.phase = Phase.WARM_UP
        self.frozen: list[Any] = []  # from the warm-up on
        self.rows: dict[str, Array] = {}  # what each step says
        self.noted: dict[str, dict[str, Any]] = {}  # what metrics learn from shapes
        self.moved: list[int] = []  # the parameters that have a gradient
        self.outputs: Pair = (None, None)  # prediction and target of the last step

    # --- its states ---

    def warm_up(self) -> None:
        """A step that finds its numbers on the device; what it took for given is frozen."""
        frozen = self.steps.frozen
        with frozen.undone_if_it_fails(self.steps.rows.slot):
            self.graph.rehearse(self.run)
            self.frozen = frozen.values()
        self.phase = Phase.RECORD

    def record(self) -> None:
        """Capture a step, which computes nothing yet.

        Raises
        ------
        InputError
            The step has changed what would be frozen.
        """
        frozen, optimizer = self.steps.frozen, self.steps.optimizer
        with frozen.undone_if_it_fails(self.steps.rows.slot):
            steps, counts = optimizer.steps, list(optimizer.counts)
            self.graph.record(self.run)
            optimizer.steps, optimizer.counts = steps, counts
            if not same(self.frozen, frozen.values()):
                msg = f"{frozen.changed(self.frozen)} changes in each step"
                raise InputError(msg)
        self.phase = Phase.REPLAY

    def replay(self) -> None:
        """Launch the graph: a step; the host's counts follow."""
        optimizer = self.steps.optimizer
        steps, counts = optimizer.steps, list(optimizer.counts)
        self.graph.replay()
        for index in self.moved:
            counts[index] += 1
            optimizer.parameters[index].changed()
        optimizer.steps, optimizer.counts = steps + 1, counts

    def compare(self) -> None:
        """Become stale, if something frozen has changed."""
        if self.phase is not Phase.WARM_UP and not same(self.frozen, self.steps.frozen.values()):
            self.phase = Phase.STALE

    # --- what is captured ---

    def run(self) -> None:
        """Ask the device for a step."""
        steps, trainer, counts = self.steps, self.steps.trainer, self.steps.optimizer.counts
        xp, rows, before = steps.xp, steps.rows, list(counts)
        indices, words = rows.indices(self.size)
        x, y = (xp.take(array, indices, axis=0) for array in steps.data)
        stream = trainer.state.stream
        stream.advance_to(words)
        numbers = rows.numbers_of_step()
        prediction, loss = update(trainer, CheckedLoss(trainer.loss), x, y, stream, numbers)
        self.moved = [i for i, count in enumerate(counts) if count != before[i]]
        self.say("loss", loss)
        for name, metric in trainer.metrics.items():
            if _waits(metric):
                metric = metric.fresh()
                known = dict(vars(metric))
                self.say(f"metric {name}", _look(metric, prediction, y))
                now = vars(metric).items()
                self.noted[name] = {k: v for k, v in now if known.get(k, self) is not v}
            else:
                self.outputs = prediction, y
        rows.slot += 1

    def say(self, name: str, value: Array) -> None:
        """Write into the row of this step."""
        steps = self.steps
        if name not in self.rows:
            shape = (steps.rows.count, *value.shape)
            self.rows[name] = steps.xp.zeros(shape, dtype=value.dtype, device=value.device)
        write_row(self.rows[name], steps.rows.slot, value)

    def said(self, name: str, first: int, end: int) -> Array:
        """A copy of some rows, which later steps leave alone."""
        rows = self.rows[name]
        with on_device_of(rows):
            return self.steps.xp.asarray(rows[first:end, ...], copy=True)


def _asked(trainer: Training) -> list[Any]:
    metrics = trainer.metrics.values()
    return [trainer.model, trainer.loss, trainer.optimizer, trainer.batch_size, *metrics]


def _waits(metric: Metric) -> bool:
    """Whether what a metric makes of a batch on the device can wait there, and the rest too."""
    return type(metric).update in (Mean.update, CountingMetric.update)


def _look(metric: Metric, prediction: Array, target: Array) -> Array:
    """What such a metric takes from a batch."""
    if isinstance(metric, CountingMetric):
        return metric.keys(prediction, target)
    assert isinstance(metric, Mean)
    return metric.measure(prediction, target)
