"""Callbacks that end training early."""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import integer, number
from xbp.errors import NonFiniteError
from xbp.training.callbacks.base import Callback, Training
from xbp.training.callbacks.monitoring import (
    check_monitored,
    improved,
    kept_as_validated,
    monitored,
    sign_of,
)
from xbp.training.history import Record


class EarlyStopping(Callback):
    """Stop when a monitored value has not improved for some epochs. (Prechelt 1998.)

    Each `fit` starts afresh, without a best value or best parameters, and with its whole patience.
    A value that is infinite or nan is no improvement.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in the records.
    patience : int, default 3
        The number of epochs without improvement after which training stops.
    min_delta : float, default 0
        The least difference from the best value that counts as an improvement.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better. "auto" knows the names of xbp's metrics and losses and
        other common ones (``acc``, ``auc``, ``mse``, ``error``, …), with or without ``val_``.
    restore_best : bool, default True
        Whether to restore the parameters of the best epoch at the end: those that were validated,
        the averaged ones beside an `ExponentialMovingAverage`, if `monitor` is a value of the
        validation.

    Raises
    ------
    InputError
        An argument is out of range, or mode "auto" does not know the name; or, in `fit`, no record
        will have it.
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
        self.sign = sign_of(monitor, mode)
        self.restore_best = restore_best

    def on_fit_begin(self, trainer: Training) -> None:
        check_monitored(trainer, self.monitor)
        self.best: float | None = None
        self.best_epoch = trainer.epochs_done  # patience begins here
        self.best_state: dict[str, Any] = {}

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if epoch != trainer.epochs_done:
            return  # stopped in the middle, without validation
        value = monitored(record, self.monitor)
        if improved(self.best, value, self.sign, self.min_delta):
            self.best, self.best_epoch = value, epoch
            if self.restore_best:
                with kept_as_validated(trainer, self.monitor):
                    self.best_state = trainer.model.state_dict()
        elif epoch - self.best_epoch >= self.patience:
            what = f"{self.monitor} has not improved since epoch {self.best_epoch}"
            trainer.stop(what + (f" ({value})" if self.best is None else f" ({self.best:.6g})"))

    def on_fit_end(self, trainer: Training) -> None:
        if self.best_state:
            trainer.model.load_state_dict(self.best_state)

    def state_dict(self) -> dict[str, Any]:
        best_state = {f"best.{name}": value for name, value in self.best_state.items()}
        return {"best": self.best, "best_epoch": self.best_epoch, **best_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = state["best"]
        self.best = None if best is None else float(best)
        self.best_epoch = integer("best_epoch", state["best_epoch"], least=0)
        self.best_state = {
            name.removeprefix("best."): value
            for name, value in state.items()
            if name.startswith("best.")
        }


class Convergence(Callback):
    """Stop when a monitored value changes by less than a tolerance from one epoch to the next.

    Each `fit` starts afresh: its first epoch is not compared with an earlier one.

    Parameters
    ----------
    tolerance : float
    monitor : str, default "loss"
        A name in the records.

    Raises
    ------
    InputError
        The tolerance is negative; or, in `fit`, no record will have the name.
    """

    def __init__(self, tolerance: float, monitor: str = "loss") -> None:
        self.tolerance = number("tolerance", tolerance, least=0)
        self.monitor = monitor

    def on_fit_begin(self, trainer: Training) -> None:
        check_monitored(trainer, self.monitor)
        self.previous: float | None = None

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if epoch != trainer.epochs_done:
            return  # stopped in the middle, without validation
        value = monitored(record, self.monitor)
        if self.previous is not None and abs(value - self.previous) < self.tolerance:
            trainer.stop(f"{self.monitor} changed by less than {self.tolerance:g} in epoch {epoch}")
        self.previous = value

    def state_dict(self) -> dict[str, Any]:
        return {"previous": self.previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        previous = state["previous"]
        self.previous = None if previous is None else float(previous)


class TerminateOnNaN(Callback):
    """End training when the loss becomes infinite or nan, where `fit` would raise an error.

    The message of that error becomes ``history.stopped``: epoch, step, and the first layer whose
    output is not finite. The epoch has no record. Training also ends after an epoch whose
    validation loss is not finite.
    """

    def on_not_finite(self, trainer: Training, error: NonFiniteError) -> bool:
        trainer.stop(str(error))
        return True

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        value = record.get("val_loss", 0.0)
        if not math.isfinite(value):
            trainer.stop(f"the validation loss is {value} after epoch {epoch}")
