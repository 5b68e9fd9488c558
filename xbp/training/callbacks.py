"""Callbacks: what a `Trainer` calls between its steps and epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xbp.arguments import choice, integer, number
from xbp.errors import InputError
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer


class Callback:
    """Base of all callbacks; a subclass overrides what it needs.

    Any of them may call ``trainer.stop(reason)``: training ends after the current step.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1."""

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        """After each step, counted from 1 in each epoch. What it reads, the device must finish."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        """After validation, when the record of the epoch is complete."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when training was stopped or failed."""


class EarlyStopping(Callback):
    """Stop when a monitored value has not improved for some epochs. (Prechelt 1998.)

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in the records.
    patience : int, default 3
        After how many epochs without improvement training stops.
    min_delta : float, default 0
        By how much a value must be better than the best one to count as an improvement.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better; "auto": larger for accuracies, else smaller.
    restore_best : bool, default True
        Whether the model gets back the parameters of its best epoch at the end.

    Raises
    ------
    InputError
        An argument is out of range; or, after the first epoch, there is no such record.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        self.monitor = monitor
        self.patience = integer("patience", patience, least=1)
        self.min_delta = number("min_delta", min_delta, least=0)
        mode = choice("mode", mode, ("auto", "min", "max"))
        larger = monitor.endswith("accuracy") if mode == "auto" else mode == "max"
        self.sign = -1 if larger else 1
        self.restore_best = restore_best

    def on_fit_begin(self, trainer: Trainer) -> None:
        self.best: float | None = None
        self.best_epoch = 0
        self.best_state: dict[str, Any] = {}

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        value = monitored(record, self.monitor)
        if self.best is None or self.sign * (self.best - value) > self.min_delta:
            self.best, self.best_epoch = value, epoch
            if self.restore_best:
                self.best_state = trainer.model.state_dict()
        elif epoch - self.best_epoch >= self.patience:
            trainer.stop(
                f"{self.monitor} has not improved since epoch {self.best_epoch} ({self.best:.6g})"
            )

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.best_state:
            trainer.model.load_state_dict(self.best_state)


class Convergence(Callback):
    """Stop when a monitored value changes by less than a tolerance from one epoch to the next.

    Parameters
    ----------
    tolerance : float
    monitor : str, default "loss"
        A name in the records.

    Raises
    ------
    InputError
        The tolerance is negative; or, after the first epoch, there is no such record.
    """

    def __init__(self, tolerance: float, monitor: str = "loss") -> None:
        self.tolerance = number("tolerance", tolerance, least=0)
        self.monitor = monitor

    def on_fit_begin(self, trainer: Trainer) -> None:
        self.previous: float | None = None

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        value = monitored(record, self.monitor)
        if self.previous is not None and abs(value - self.previous) < self.tolerance:
            trainer.stop(f"{self.monitor} changed by less than {self.tolerance:g} in epoch {epoch}")
        self.previous = value


def monitored(record: Record, name: str) -> float:
    """The value called `name`, or a sentence that says which ones there are."""
    if name not in record:
        hint = "; give fit validation_data" if name.startswith("val_") else ""
        msg = f"there is no {name!r} to monitor, only {', '.join(record)}{hint}"
        raise InputError(msg)
    return record[name]
