"""One epoch: its steps, its record, validation."""

from __future__ import annotations

from xbp.arguments import name_of
from xbp.backend import backend_of, on_host
from xbp.errors import NonFiniteError
from xbp.random import permutation
from xbp.training.callbacks.base import Training
from xbp.training.diagnosis import Place, not_finite
from xbp.training.evaluation import evaluate
from xbp.training.history import Record
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import len_of
from xbp.training.results import make_plain
from xbp.training.rows import ROWS
from xbp.training.state import Pair
from xbp.training.steps import Stepper, batch_indices

LOOK_EVERY = ROWS
"""Steps between two looks at the losses of a device."""


def train_epoch(trainer: Training, stepper: Stepper, data: Pair, validation: Pair | None) -> None:
    """Train for the rest of an epoch, validate, and append its record to the history.

    Parameters
    ----------
    trainer : Training
        In a `fit`; its state says where in the epoch it stands.
    stepper : Stepper
        Makes the steps.
    data, validation : (x, y)
        Where the model lives; no validation where they are None.

    Raises
    ------
    NonFiniteError
        The loss became infinite or nan.
    """
    state, (x, y) = trainer.state, data
    epoch, done = state.epochs_done + 1, state.steps_done
    state.begin_epoch()
    if not done:  # not resumed in the middle of the epoch
        state.averages = Averages(trainer.loss, trainer.metrics)
        for callback in trainer.callbacks:
            callback.on_epoch_begin(trainer, epoch)
    look_each_step = on_host(x)  # where reading a loss is free
    order = backend_of(x).asarray(permutation(state.seed, state.epochs_done, len_of(x)))
    stepper.begin(order)
    for step in range(done + 1, trainer.steps_per_epoch + 1):
        stepper.step(step)
        if look_each_step or step % LOOK_EVERY == 0:
            _check_finite(trainer, (x, y, order), step, wait=look_each_step)
        state.steps_done = step
        for callback in trainer.callbacks:
            callback.on_step_end(trainer, step)
        if state.stop_reason:
            break
    _check_finite(trainer, (x, y, order), step)
    record: Record = {"epoch": epoch, "lr": stepper.lr} | trainer.measured().result()
    state.steps_done = 0
    if step == trainer.steps_per_epoch:
        state.epochs_done += 1
        if validation is not None:
            measured = evaluate(trainer, *validation, batch_size=512)
            record |= {f"val_{name}": value for name, value in measured.items()}
    state.history.records.append(record)
    state.history.seconds.append(trainer.elapsed())
    for callback in trainer.callbacks:
        callback.on_epoch_end(trainer, epoch, record)
        make_plain(record, name_of(callback.on_epoch_end))


def _check_finite(trainer: Training, epoch: Place, step: int, *, wait: bool = True) -> None:
    """Look at the losses that have arrived, of the first `step` steps of the epoch.

    Raises
    ------
    NonFiniteError
        One of them is infinite or nan.
    """
    losses = trainer.measured().loss
    bad = losses.first_not_finite(wait=wait)
    if bad is not None:
        x, y, order = epoch
        batch = x, y, batch_indices(order, step, trainer.batch_size)
        value, number = losses.values[bad], trainer.epochs_done + 1
        msg = not_finite(trainer, trainer.seed, value, number, bad, batch)
        trainer.history.stopped = msg
        raise NonFiniteError(msg)
