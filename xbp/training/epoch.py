"""Training, epoch by epoch: steps, validation, records."""

from __future__ import annotations

from xbp.arguments import name_of
from xbp.backend import Array
from xbp.errors import NonFiniteError
from xbp.training.callbacks.base import Training, as_validated, begun, told_not_finite
from xbp.training.diagnosis import not_finite, spoiled
from xbp.training.evaluation import evaluate
from xbp.training.feeds import Feed
from xbp.training.files.resume import restore
from xbp.training.history import Record
from xbp.training.interrupt import stop_on_interrupt
from xbp.training.metrics.averages import Averages
from xbp.training.results import make_plain, rate_names
from xbp.training.rows import ROWS
from xbp.training.steps import Stepper

LOOK_EVERY = ROWS
"""Steps between two looks at the losses of a device."""


def train(trainer: Training, stepper: Stepper, feed: Feed, validation: Feed | None) -> None:
    """Resume if asked to, and train until the last epoch is done or a callback or Ctrl-C stops it.

    Raises
    ------
    NonFiniteError
        The loss became infinite or nan, or a parameter in the last step; and no callback ends
        training in place of the error.
    """
    share = trainer.share
    with stop_on_interrupt(share.interrupter(trainer.stop)), begun(trainer.callbacks, trainer):
        if trainer.resumed:
            restore(trainer, trainer.resumed)
        while trainer.epochs_done < trainer.last_epoch and not trainer.stop_reason:
            try:
                train_epoch(trainer, stepper, feed, validation)
                if validation is None and trainer.epochs_done == trainer.last_epoch:
                    _check_parameters(trainer)  # no later loss would show it
                share.hear(trainer.stop, ask=True)
            except NonFiniteError as error:
                if not told_not_finite(trainer.callbacks, trainer, error):
                    raise
                trainer.stop(str(error))


def train_epoch(trainer: Training, stepper: Stepper, feed: Feed, validation: Feed | None) -> None:
    """Train for the rest of an epoch, validate, and append its record to the history.

    Parameters
    ----------
    trainer : Training
        In a `fit`; its state says where in the epoch it stands.
    stepper : Stepper
        Makes the steps.
    feed, validation : Feed
        The data; no validation where that is None.

    Raises
    ------
    NonFiniteError
        The loss became infinite or nan.
    """
    state, share = trainer.state, trainer.share
    epoch, done = state.epochs_done + 1, state.steps_done
    state.begin_epoch()
    if not done:  # not resumed in the middle of the epoch
        state.averages = Averages(trainer.loss, trainer.metrics, share)
        for callback in trainer.callbacks:
            callback.on_epoch_begin(trainer, epoch)
    order = feed.begin(state.seed, state.epochs_done, done)
    try:
        stepper.begin(order)
        step = done
        while size := feed.receive(step + 1):
            step += 1
            stepper.step(step, size, feed.batch)
            feed.release()
            if (feed.free and not stepper.finite) or step % LOOK_EVERY == 0:
                # Ranks look at the same losses, though they may arrive at different times.
                wait = feed.free or share.size > 1
                _check_finite(trainer, feed, order, step, size, wait=wait)
                share.hear(trainer.stop, ask=not feed.free)
            state.steps_done = step
            for callback in trainer.callbacks:
                callback.on_step_end(trainer, step)
            last = step, size
            if state.stop_reason:
                break
        _check_finite(trainer, feed, order, *last)
        whole = feed.ended(step)
    finally:
        feed.finish()
    if trainer.compare_ranks:
        share.check_equal(trainer.model)
    rates = zip(rate_names(trainer.optimizer), stepper.rates, strict=True)
    record: Record = {"epoch": epoch} | {name: rate for name, rate in rates if name}
    record |= trainer.measured().result()
    state.steps_done = 0
    if whole:
        state.epochs_done += 1
        if validation is not None:
            with as_validated(trainer):
                measured = evaluate(trainer, validation, batch_size=512)
            record |= {f"val_{name}": value for name, value in measured.items()}
    state.history.records.append(record)
    state.history.seconds.append(trainer.elapsed())
    for callback in trainer.callbacks:
        callback.on_epoch_end(trainer, epoch, record)
        make_plain(record, name_of(callback.on_epoch_end))


def _check_finite(
    trainer: Training, feed: Feed, order: Array, step: int, size: int, *, wait: bool = True
) -> None:
    """Look at the losses that have arrived, of the first `step` steps of the epoch.

    The batch of that step, of `size` samples, is the one whose data are looked at.

    Raises
    ------
    NonFiniteError
        One of them is infinite or nan.
    """
    losses = trainer.measured().loss
    bad = losses.first_not_finite(wait=wait)
    if bad is not None:
        place = feed.place(order, step, size)
        value, number = losses.values[bad], trainer.epochs_done + 1
        with trainer.share.apart(trainer.model):
            msg = not_finite(trainer, trainer.seed, value, number, bad, place, feed.where)
        trainer.history.stopped = msg
        raise NonFiniteError(msg)


def _check_parameters(trainer: Training) -> None:
    """Refuse parameters that the last step made infinite or nan."""
    if msg := spoiled(trainer, trainer.epochs_done):
        trainer.history.stopped = msg
        raise NonFiniteError(msg)
