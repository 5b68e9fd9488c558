"""Callbacks: what a `Trainer` calls between its steps and epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xbp.arguments import choice
from xbp.errors import InputError, NonFiniteError
from xbp.optim.schedules import rate_of
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer


class Callback:
    """Base of all callbacks; a subclass overrides what it needs.

    Any of them may call ``trainer.stop(reason)``: training ends after the current step.

    One that remembers something from step to step defines `state_dict` and `load_state_dict`, so
    that a run that was interrupted goes on exactly. There `on_fit_begin` and, in the middle of an
    epoch, `on_epoch_begin` are called first; then all state is restored, the model's and the
    optimizer's too, so that nothing they do is done twice.

    A callback may put numbers into the record of an epoch: Python's, numpy scalars or 0-d arrays,
    of which Python numbers are made.
    """

    call_order: int = 0  # those with a larger one are called after those with a smaller one

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1."""

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        """After each step, counted from 1 in each epoch. What it reads, the device must finish."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        """After validation, when the record of the epoch is complete."""

    def on_not_finite(self, trainer: Trainer, error: NonFiniteError) -> bool:
        """The loss became infinite or nan: whether to end training, in place of raising `error`."""
        return False

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when training was stopped or failed.

        Not where its own `on_fit_begin` has failed, or was never reached.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, from `on_fit_begin` on: names to arrays, or to what JSON can say."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave. It comes from a file: check it, and raise ValueError."""


class LambdaCallback(Callback):
    """Any functions as a callback: each takes what the method of its name takes.

    Parameters
    ----------
    on_fit_begin, on_epoch_begin, on_step_end, on_epoch_end, on_fit_end : callable, optional
        ``on_epoch_end(trainer, epoch, record)``, ``on_step_end(trainer, step)``, …: see `Callback`.

    Raises
    ------
    InputError
        Something is not callable.

    Examples
    --------
    >>> from xbp.training import LambdaCallback
    >>> show = LambdaCallback(on_epoch_end=lambda trainer, epoch, record: print(record["loss"]))
    """

    def __init__(
        self,
        *,
        on_fit_begin: Callable[[Trainer], object] | None = None,
        on_epoch_begin: Callable[[Trainer, int], object] | None = None,
        on_step_end: Callable[[Trainer, int], object] | None = None,
        on_epoch_end: Callable[[Trainer, int, Record], object] | None = None,
        on_fit_end: Callable[[Trainer], object] | None = None,
    ) -> None:
        functions = {name: f for name, f in locals().items() if name[:3] == "on_" and f is not None}
        for name, function in functions.items():
            if not callable(function):
                msg = f"{name} must be a function, got {type(function).__name__}"
                raise InputError(msg)
        vars(self).update(functions)  # in place of the methods


class LearningRateScheduler(Callback):
    """Set the learning rate of each epoch: lr = schedule(epoch), with epoch = 0, 1, 2, …

    It takes the place of the optimizer's own rate or schedule. The epochs of several `fit` of a
    trainer are counted on, and the last rate stays with the optimizer. For a rate that changes from
    step to step, give the optimizer a function of the step as its `lr` (see `xbp.optim.schedules`).

    Parameters
    ----------
    schedule : callable ``int -> number or 0-d array``
        Epochs are counted from 0, as in Keras.

    Raises
    ------
    InputError
        `schedule` is not callable; or, in training, it gives something else than a finite rate of
        at least 0.

    Examples
    --------
    >>> from xbp.training import LearningRateScheduler
    >>> halved = LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)  # 0.1, 0.05, 0.025, …
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        if not callable(schedule):
            msg = f"schedule must be a function of the epoch, got {type(schedule).__name__}"
            raise InputError(msg)
        self.schedule = schedule

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        lr = self.schedule(epoch - 1)
        trainer.optimizer.lr = rate_of(self.schedule, f"epoch {epoch}", lr)


class TerminateOnNaN(Callback):
    """Where the loss becomes infinite or nan, end training; without it, `fit` raises the reason.

    The reason is then ``history.stopped``: epoch, step, and the first layer whose output is not
    finite. The epoch has no record. Training also ends after an epoch whose validation loss is not
    finite.
    """

    def on_not_finite(self, trainer: Trainer, error: NonFiniteError) -> bool:
        trainer.stop(str(error))
        return True

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        value = record.get("val_loss", 0.0)
        if not math.isfinite(value):
            trainer.stop(f"the validation loss is {value} after epoch {epoch}")


@contextmanager
def begun(callbacks: Sequence[Callback], trainer: Trainer) -> Iterator[None]:
    """`on_fit_begin` of all; in the end, from the last to the first, `on_fit_end`.

    Only those end that have begun, and all of them do. The first error is the one that is raised;
    later ones are notes of it.
    """
    started: list[Callback] = []
    try:
        for callback in callbacks:
            callback.on_fit_begin(trainer)
            started.append(callback)
        yield
    except BaseException as error:
        _end(started, trainer, error)
        raise
    _end(started, trainer, None)


def _end(callbacks: Sequence[Callback], trainer: Trainer, earlier: BaseException | None) -> None:
    first = earlier
    try:
        for callback in reversed(callbacks):
            try:
                callback.on_fit_end(trainer)
            except BaseException as error:
                if first is None:
                    first = error
                else:
                    what = f"{type(callback).__name__}.on_fit_end"
                    first.add_note(f"and {what} failed: {type(error).__name__}: {error}")
        if first is not None and first is not earlier:
            raise first
    finally:
        del first, earlier  # no circle of references, so that memory is free at once


def monitored(record: Record, name: str) -> float:
    """The value called `name`, or a sentence that says which ones there are."""
    if name not in record:
        raise InputError(_no_such(name, list(record)))
    return record[name]


def check_monitored(trainer: Trainer, name: str) -> None:
    """Refuse a name that no record of this training will have, before its first step.

    Raises
    ------
    InputError
        There will be no such quantity, as far as that can be known: a callback of somebody else
        may put more into the records.
    """
    if name not in trainer.expected and not trainer.may_have_more:
        raise InputError(_no_such(name, trainer.expected))


def _no_such(name: str, names: Sequence[str]) -> str:
    validated = any(known.startswith("val_") for known in names)
    hint = "; give fit validation_data" if name.startswith("val_") and not validated else ""
    return f"there is no {name!r} to monitor, only {', '.join(names)}{hint}"


LARGER = "accuracy acc precision recall f1 auc auroc auprc iou dice r2 bleu psnr ssim kappa mcc"
SMALLER = "loss error err mse mae rmse mape nll perplexity ppl entropy crossentropy bce deviance lr"
NEUTRAL = (
    "val train test epoch mean absolute squared root macro micro weighted binary balanced "
    "categorical top"
)


def sign_of(monitor: str, mode: str) -> int:
    """1 where smaller is better, -1 where larger is.

    In mode "auto" that is read from the words of the name, if all of them are known: larger is
    better for accuracy, acc, precision, recall, f1, auc, …, smaller for loss, error, mse, …

    Raises
    ------
    InputError
        `mode` is none, or it is "auto" and the name says nothing, or both.
    """
    if choice("mode", mode, ("auto", "min", "max")) != "auto":
        return 1 if mode == "min" else -1
    words = {word for word in re.split(r"[\W_]+", str(monitor)) if word and not word.isdecimal()}
    words -= set(NEUTRAL.split())
    for known, sign in ((LARGER, -1), (SMALLER, 1)):
        if words and words <= set(known.split()):
            return sign
    msg = (
        f"mode='auto' does not know whether {monitor!r} should be large or small; "
        "give mode='max' or mode='min'"
    )
    raise InputError(msg)


def improved(best: float | None, value: float, sign: int, min_delta: float = 0.0) -> bool:
    """Whether `value` is the first finite one, or better than the best by more than `min_delta`."""
    if not math.isfinite(value):
        return False
    return best is None or math.isnan(best) or sign * (best - value) > min_delta
