"""Callbacks: what a `Trainer` calls between its steps and epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xbp.arguments import choice, number
from xbp.errors import InputError, NonFiniteError
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
        """After the last epoch, also when training was stopped or failed."""

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

    It takes the place of the optimizer's own rate or schedule. For a rate that changes from step
    to step, give the optimizer a function of the step as its `lr` (see `xbp.optim.schedules`).

    Parameters
    ----------
    schedule : callable ``int -> float``
        Epochs are counted from 0, as in Keras.

    Raises
    ------
    InputError
        `schedule` is not callable; or, in training, it gives something else than a rate.

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
        trainer.optimizer.lr = number(f"the learning rate of epoch {epoch}", lr, least=0)


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


def monitored(record: Record, name: str) -> float:
    """The value called `name`, or a sentence that says which ones there are."""
    if name not in record:
        hint = "; give fit validation_data" if name.startswith("val_") else ""
        msg = f"there is no {name!r} to monitor, only {', '.join(record)}{hint}"
        raise InputError(msg)
    return record[name]


def sign_of(monitor: str, mode: str) -> int:
    """1 where smaller is better, -1 where larger is.

    In mode "auto" larger is better for accuracies, precision, recall and F1.
    """
    if choice("mode", mode, ("auto", "min", "max")) != "auto":
        return 1 if mode == "min" else -1
    return -1 if re.search(r"accuracy|precision|recall|(^|_)f1(_|$)", monitor) else 1


def improved(best: float | None, value: float, sign: int, min_delta: float = 0.0) -> bool:
    """Whether `value` is the first one, or better than the best one by more than `min_delta`."""
    return best is None or math.isnan(best) or sign * (best - value) > min_delta
