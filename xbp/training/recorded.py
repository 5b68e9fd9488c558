"""Steps that a device records once and repeats by itself: one launch in place of hundreds.

What differs from step to step is in arrays, in which the device finds its way by a counter of its
own: the order of the samples, where in it the batch begins, the words of the random counter, the
rate and all other numbers of the optimizer, which the host computes in float64 as for any step.
What a step changes (parameters, state, counter) it changes in place, and what it has to say (its
loss, what metrics count) it writes into a row of its own. For `ROWS` steps at once the host moves
the numbers there and takes the rows. So the results are those of ordinary steps, bit for bit,
wherever the device's functions repeat theirs.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, array_namespace, backend_of, dtype_name, graph_for, on_device_of
from xbp.errors import InputError
from xbp.nn.parts import containers
from xbp.optim import Optimizer
from xbp.primitives import write_row
from xbp.random import words_of
from xbp.training.metrics.averages import Mean
from xbp.training.metrics.counting import CountingMetric, Metric, len_of

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer

ROWS = 50
"""For so many steps numbers are moved to the device, and losses stay there, at once."""

CHANCES = 5
"""So often in a row a recording may be given up before it was used."""

Pair = tuple[Any, Any]


class RecordedSteps:
    """The steps of a `Trainer` with one set of data and one batch size.

    The first step with batches of some size is rehearsed: an ordinary step that finds its numbers
    on the device. The second one is recorded, and from then on the recording is replayed. Before
    each step, what is frozen in it is compared with what is (`state`): another array, or another
    option of a layer, of the loss or of the optimizer, and a new recording takes its place. What
    changes with the rate and the step is not frozen.

    Parameters
    ----------
    trainer : Trainer
        In a `fit`.
    given, data : (x, y)
        As the user gave them, and as they were placed on the device.

    Raises
    ------
    InputError
        Something here cannot be recorded.
    """

    def __init__(self, trainer: Trainer, given: Pair, data: Pair) -> None:
        check(trainer)
        # Without a circle of references, so that memory of the device is free as soon as it can be.
        self.trainer: Trainer = weakref.proxy(trainer)
        self.optimizer = trainer.optimizer
        self.asked = _asked(trainer)
        self.batch_size, self.given, self.data = trainer.batch_size, given, data
        self.xp = xp = array_namespace(data[0])
        self.here = {"dtype": xp.int64, "device": data[0].device}
        self.order = xp.zeros(len_of(data[0]), **self.here)
        self.slot = xp.zeros(1, **self.here)  # the row of the next step,
        self.row = 0  # and what the host takes it to be
        # In each row, where in the order its batch begins, and the words of its random counter:
        self.places = xp.zeros((ROWS, 3), **self.here)
        self.numbers: dict[str, Array] = {}  # by dtype: (ROWS, parameters, numbers of each)
        self.rates: list[float] = []  # of the rows
        self.next: list[int] = []  # the step, steps and counts for which the next row was made
        self.recordings: dict[int, Recording] = {}  # by the size of their batches
        self.used: Recording | None = None  # the last one;
        self.untold: list[int] = []  # the sizes of batches of which only the device has heard
        self.wasted = 0  # recordings, in a row
        self._look_around()

    def _look_around(self) -> None:
        """Find whose options and which arrays may be frozen."""
        model, optimizer = self.trainer.model, self.optimizer
        self.owners = [*model.tree(), self.trainer.loss]
        self.options = [getattr(owner, "__dict__", {}) for owner in self.owners]
        self.members = [held for owner in self.owners for held in containers(owner)]
        found = [p for _, p in model._all_names("")] + optimizer.parameters
        self.parameters = list({id(parameter): parameter for parameter in found}.values())

    def fits(self, trainer: Trainer, given: Pair, data: Pair) -> bool:
        """Whether these are the steps for such a `fit`, too; then the data are copied to theirs."""
        if not _same(_asked(trainer), self.asked):
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
        """An epoch with this order of the samples."""
        self.untold, self.next = [], []
        self.order[...] = order

    def step(self, step: int, lr: float) -> bool:
        """Make step 1, 2, … of the epoch; False where it has to be an ordinary one.

        Raises
        ------
        Exception
            It cannot be recorded; nothing has changed then.
        """
        if any(parameter.grad is not None for parameter in self.parameters):
            return False  # somebody adds up gradients
        size = min(self.batch_size, len_of(self.order) - (step - 1) * self.batch_size)
        recording = self._recording(size)
        if (
            self.row == len(self.rates)
            or lr != self.rates[self.row]
            or self.next != self._place(step)
        ):
            self._move_rows(step)
        if not recording.frozen:
            with self._undone_if_it_fails():
                recording.graph.rehearse(recording.run)
                recording.frozen = self.state()
        else:
            if not recording.recorded:
                with self._undone_if_it_fails():
                    self._record(recording)
            steps, counts = self.optimizer.steps, list(self.optimizer.counts)
            recording.graph.replay()
            self.wasted = 0
            for index in recording.moved:
                counts[index] += 1
                self.optimizer.parameters[index].changed()
            self.optimizer.steps, self.optimizer.counts = steps + 1, counts
        self.trainer.current_loss = None  # it is in a row
        self.row += 1
        self.untold.append(size)
        self.next = self._place(step + 1)
        for metric in self.trainer._seen.metrics.values():
            if not _waits(metric):  # it may keep what it is given, and the next step overwrites it
                metric.update(*(self.xp.asarray(a, copy=True) for a in recording.outputs))
        return True

    def _recording(self, size: int) -> Recording:
        """That of batches of such a size, or a new one."""
        recording = self.recordings.get(size)
        if recording and recording.frozen and not _same(recording.frozen, self.state()):
            self.wasted += not recording.recorded
            if self.wasted > CHANCES:
                msg = f"{self._changed(recording.frozen)} changes from step to step"
                raise InputError(msg)
            recording = None
        if recording is None:
            self._look_around()
            recording = self.recordings[size] = Recording(self, size)
            self.next = []  # the numbers may follow from other options, too
        if recording is not self.used:
            self.tell()
            self.used = recording
        return recording

    def _record(self, recording: Recording) -> None:
        optimizer = self.optimizer
        steps, counts = optimizer.steps, list(optimizer.counts)
        recording.graph.record(recording.run)
        optimizer.steps, optimizer.counts = steps, counts
        if not _same(recording.frozen, self.state()):
            msg = f"{self._changed(recording.frozen)} changes in each step"
            raise InputError(msg)
        recording.recorded = True

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Parameters, state, counters and all options as they were, if the block raises."""
        optimizer, xp = self.optimizer, self.xp
        steps, counts = optimizer.steps, list(optimizer.counts)
        data = [parameter.data for parameter in self.parameters]
        states = [dict(state) for state in optimizer.state]
        everyones = [(own, dict(own)) for own in (*self.options, vars(optimizer))]
        changed = [*data, *(array for state in states for array in state.values()), self.slot]
        saved = [xp.asarray(array, copy=True) for array in changed]
        try:
            yield
        except BaseException:
            for array, value in zip(changed, saved, strict=True):
                array[...] = value
            for parameter, array in zip(self.parameters, data, strict=True):
                parameter.data, parameter.grad = array, None
            for own, before in everyones:
                own.clear()
                own.update(before)
            optimizer.state, optimizer.steps, optimizer.counts = states, steps, counts
            raise

    # --- what is frozen ---

    def state(self) -> list[Any]:
        """What a recording takes for given: options, arrays, which parameters are trainable."""
        found: list[Any] = []
        for options in self.options:
            found += options.values()
        for members in self.members:
            found += members.values() if isinstance(members, dict) else members
        found += [value for name, value in vars(self.optimizer).items() if name not in MOVING]
        found += (self.trainer.model, self.trainer.loss, *self.trainer.stream.key)
        for parameter in self.parameters:
            found += (parameter.data, parameter.trainable)
        for state in self.optimizer.state:
            found += state.values()
        return found

    def _changed(self, before: Sequence[Any]) -> str:
        """Whose option is another one than before, in words."""
        end = 0
        for owner, options in zip(self.owners, self.options, strict=True):
            start, end = end, end + len(options)
            if not _same(list(options.values()), before[start:end]):
                return f"something that {type(owner).__name__} keeps"
        return "an array, or an option of the optimizer,"

    # --- the numbers of the next steps ---

    def _place(self, step: int) -> list[int]:
        return [step, self.optimizer.steps, *self.optimizer.counts]

    def _move_rows(self, step: int) -> None:
        """Move to the device what differs in the steps from `step` on, and begin with row 0."""
        self.tell()
        optimizer, first = self.optimizer, self.optimizer.steps
        left = -(-len_of(self.order) // self.batch_size) - step + 1
        rows = range(min(left, ROWS))
        self.rates = [optimizer.lr_at(first + i) for i in rows]
        table = []
        for i, lr in enumerate(self.rates):
            known = {t: optimizer.all_numbers(lr, t + i + 1) for t in set(optimizer.counts)}
            table.append([known[t] for t in optimizer.counts])
        places = [((step - 1 + i) * self.batch_size, *words_of(first + i)) for i in rows]
        self._fill(self.places, places)
        host = np.asarray(table, np.float64)
        for parameter in optimizer.parameters:
            name = dtype_name(parameter.data.dtype)
            if name not in self.numbers:
                shape, dtype = (ROWS, *host.shape[1:]), parameter.data.dtype
                self.numbers[name] = self.xp.zeros(shape, dtype=dtype, device=self.here["device"])
        for array in self.numbers.values():
            self._fill(array, host)
        self.slot[...] = 0
        self.row, self.next = 0, self._place(step)

    def _fill(self, array: Array, values: Any) -> None:
        host: NDArray[Any] = np.zeros(tuple(array.shape), dtype_name(array.dtype))
        host[: len(values)] = values
        array[...] = backend_of(array).asarray(host)

    def numbers_of_step(self) -> list[tuple[Array, ...]]:
        """Those of each parameter, as `Optimizer.step` takes them."""
        take = self.xp.take
        row = {name: take(array, self.slot, axis=0) for name, array in self.numbers.items()}
        found = []
        for index, parameter in enumerate(self.optimizer.parameters):
            own = row[dtype_name(parameter.data.dtype)]
            found.append(tuple(own[0, index, j] for j in range(own.shape[2])))
        return found

    # --- what the steps have said ---

    def tell(self) -> None:
        """Give what the rows hold to the averages of the epoch, without a wait."""
        if not self.untold or self.used is None:
            return
        sizes, self.untold = self.untold, []
        first, seen = self.row - len(sizes), self.trainer._seen
        seen.loss.add_all(sizes, self.used.said("loss", first, self.row))
        for name, metric in seen.metrics.items():
            if name in self.used.noted:
                vars(metric).update(self.used.noted[name])
                values = self.used.said(f"metric {name}", first, self.row)
                if isinstance(metric, Mean):
                    metric.add_all(sizes, values)
                elif isinstance(metric, CountingMetric):
                    metric.add(sum(sizes), self.xp.reshape(values, (-1,)))

    def last_loss(self) -> Array:
        """That of the last step, as an array of its own; None before the first one."""
        if self.used is None:
            return None
        return self.used.said("loss", self.row - 1, self.row)[0, ...]


class Recording:
    """The steps with batches of one size: a graph, and what is frozen in it.

    Parameters
    ----------
    steps : RecordedSteps
    size : int
    """

    def __init__(self, steps: RecordedSteps, size: int) -> None:
        graph = graph_for(steps.slot)
        assert graph is not None
        self.steps: RecordedSteps = weakref.proxy(steps)
        self.size, self.graph = size, graph
        self.frozen: list[Any] = []  # after the rehearsal
        self.recorded = False
        self.rows: dict[str, Array] = {}  # what each step says
        self.noted: dict[str, dict[str, Any]] = {}  # what metrics learn from shapes
        self.moved: list[int] = []  # the parameters that have a gradient
        self.outputs: Pair = (None, None)  # prediction and target of the last step

    def run(self) -> None:
        """Ask the device for a step."""
        steps, trainer, counts = self.steps, self.steps.trainer, self.steps.optimizer.counts
        xp, then = steps.xp, list(counts)
        place = xp.take(steps.places, steps.slot, axis=0)
        indices = xp.take(steps.order, place[0, 0] + xp.arange(self.size, **steps.here), axis=0)
        x, y = (xp.take(array, indices, axis=0) for array in steps.data)
        trainer.stream.advance_to((place[0, 1], place[0, 2]))
        prediction = trainer._update(x, y, steps.numbers_of_step())
        self.moved = [i for i, count in enumerate(counts) if count != then[i]]
        self.say("loss", trainer.current_loss)
        for name, metric in trainer.metrics.items():
            if _waits(metric):
                metric = metric.fresh()
                before = dict(vars(metric))
                self.say(f"metric {name}", _look(metric, prediction, y))
                now = vars(metric).items()
                self.noted[name] = {k: v for k, v in now if before.get(k, self) is not v}
            else:
                self.outputs = prediction, y
        steps.slot += 1

    def say(self, name: str, value: Array) -> None:
        """Write into the row of this step."""
        if name not in self.rows:
            shape = (ROWS, *value.shape)
            self.rows[name] = self.steps.xp.zeros(shape, dtype=value.dtype, device=value.device)
        write_row(self.rows[name], self.steps.slot, value)

    def said(self, name: str, first: int, end: int) -> Array:
        """A copy of some rows, which later steps leave alone."""
        rows = self.rows[name]
        with on_device_of(rows):
            return self.steps.xp.asarray(rows[first:end, ...], copy=True)


def check(trainer: Trainer) -> None:
    """Refuse what would be frozen, or not be called, in a recording.

    Raises
    ------
    InputError
    """
    from xbp.training.trainer import Trainer

    optimizer = type(trainer.optimizer)
    if type(trainer).step is not Trainer.step:
        msg = f"{type(trainer).__name__} has a step of its own"
    elif optimizer.step is not Optimizer.step or optimizer.zero_grad is not Optimizer.zero_grad:
        msg = f"{optimizer.__name__} has a step of its own, where it could have an update"
    elif optimizer.numbers is Optimizer.numbers:
        msg = f"{optimizer.__name__} does not say which numbers its rule takes; define numbers"
    else:
        return
    raise InputError(msg)


def _asked(trainer: Trainer) -> list[Any]:
    metrics = trainer.metrics
    return [trainer.model, trainer.loss, trainer.optimizer, trainer.batch_size, *metrics.values()]


def _waits(metric: Metric) -> bool:
    """Whether what a metric makes of a batch on the device can wait there, and the rest too."""
    return type(metric).update in (Mean.update, CountingMetric.update)


def _look(metric: Metric, prediction: Array, target: Array) -> Array:
    """What such a metric takes from a batch."""
    if isinstance(metric, CountingMetric):
        return metric.keys(prediction, target)
    assert isinstance(metric, Mean)
    return metric.measure(prediction, target)


MOVING = ("steps", "counts", "state", "_lr")
"""What an optimizer has that changes from step to step, and is not frozen."""


PLAIN = (bool, int, float, str)


def _same(here: Sequence[Any], there: Sequence[Any]) -> bool:
    """The same things; of numbers and names, the same values."""
    if len(here) != len(there):
        return False
    if all(map(operator.is_, here, there)):
        return True
    return all(
        a is b or (type(a) is type(b) and type(a) in PLAIN and a == b)
        for a, b in zip(here, there, strict=True)
    )
