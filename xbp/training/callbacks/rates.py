"""Learning rates that change with the epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xbp.arguments import choice, integer, number, takes
from xbp.errors import InputError
from xbp.optim import Optimizer
from xbp.optim.schedules import rate_of
from xbp.training.callbacks.base import Callback, Training
from xbp.training.callbacks.monitoring import check_monitored, improved, monitored, sign_of
from xbp.training.history import Record


class LearningRateScheduler(Callback):
    """Set the learning rate of each epoch: lr = schedule(epoch), with epoch = 0, 1, 2, …

    It takes the place of the optimizer's own rate or schedule; a group of parameters that has one
    of its own keeps it. The epochs of several `fit` of a trainer are counted on, and the last rate
    stays with the optimizer. For a rate that changes from step to step, give the optimizer a
    function of the step as its `lr` (see `xbp.optim.schedules`).

    Parameters
    ----------
    schedule : callable ``int -> number or 0-d array``
        Epochs are counted from 0, as in Keras.

    Raises
    ------
    InputError
        `schedule` is no function of one argument; or, in training, it gives something else than a
        finite rate of at least 0, or all groups of parameters have a rate of their own.

    Examples
    --------
    >>> from xbp.training import LearningRateScheduler
    >>> halved = LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)  # 0.1, 0.05, 0.025, …
    """

    def __init__(self, schedule: Callable[[int], float]) -> None:
        if not callable(schedule):
            msg = f"schedule must be a function of the epoch, got {type(schedule).__name__}"
            raise InputError(msg)
        takes("schedule", schedule, "epoch")
        self.schedule = schedule

    def on_fit_begin(self, trainer: Training) -> None:
        own = trainer.optimizer.own_rates()
        if own and None not in own:
            msg = (
                "LearningRateScheduler sets the optimizer's rate, but each group of parameters has "
                "one of its own; take 'lr' out of a group, or set trainer.optimizer.param_groups"
            )
            raise InputError(msg)

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        lr = self.schedule(epoch - 1)
        trainer.optimizer.lr = rate_of(self.schedule, f"epoch {epoch}", lr)


class ReduceLROnPlateau(Callback):
    """Multiply the learning rate by a factor when a monitored value has stopped improving.

    After more than `patience` epochs in a row without improvement each rate η, also those of
    parameter groups, becomes max(factor · η, min_lr); then, for `cooldown` epochs, none counts.
    PyTorch's scheduler of this name, whose arguments and results these are. Each `fit` begins anew,
    with the rates as they are. A value that is infinite or nan is no improvement.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in the records.
    factor : float, default 0.1
        Below 1.
    patience : int, default 10
    threshold : float, default 1e-4
        By how much a value must be better than the best one to count as an improvement.
    threshold_mode : {"rel", "abs"}, default "rel"
        Whether the threshold is a share of the best value, of its size where that is negative.
        (PyTorch's rule would then take a value that is a little worse for an improvement.)
    cooldown : int, default 0
    min_lr : float, default 0
    eps : float, default 1e-8
        A rate that would fall by less stays.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better; see `EarlyStopping`.

    Raises
    ------
    InputError
        An argument is out of range; or, in `fit`, there is no such record, or the optimizer or a
        group has a schedule.

    Examples
    --------
    >>> from xbp.training import ReduceLROnPlateau
    >>> halved = ReduceLROnPlateau("val_accuracy", factor=0.5, patience=3)
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        mode: str = "auto",
    ) -> None:
        self.monitor = monitor
        self.factor = number("factor", factor, least=0)
        if self.factor >= 1:
            msg = f"factor must be a number below 1, got {factor!r}"
            raise InputError(msg)
        self.patience = integer("patience", patience, least=0)
        self.threshold = number("threshold", threshold, least=0)
        self.relative = choice("threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self.cooldown = integer("cooldown", cooldown, least=0)
        self.min_lr = number("min_lr", min_lr, least=0)
        self.eps = number("eps", eps, least=0)
        self.sign = sign_of(monitor, mode)

    def on_fit_begin(self, trainer: Training) -> None:
        check_monitored(trainer, self.monitor)
        optimizer = trainer.optimizer
        own = optimizer.own_rates() or [None]
        if any(callable(optimizer._lr if lr is None else lr) for lr in own):
            msg = (
                "ReduceLROnPlateau changes a rate that is a number, but the optimizer or a group "
                "of its parameters has a schedule; give it a number as lr, or leave this out"
            )
            raise InputError(msg)
        self.best: float | None = None
        self.waited = 0  # epochs without improvement, in a row
        self.resting = 0  # epochs of the cooldown that are left

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if epoch != trainer.epochs_done:
            return  # stopped in the middle, without validation
        value = monitored(record, self.monitor)
        margin = self.threshold * (abs(self.best or 0.0) if self.relative else 1.0)
        if improved(self.best, value, self.sign, margin):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.resting:
            self.resting, self.waited = self.resting - 1, 0
        if self.waited > self.patience:
            self._reduce(trainer.optimizer)
            self.resting, self.waited = self.cooldown, 0

    def _reduce(self, optimizer: Optimizer) -> None:
        own = optimizer.own_rates()
        optimizer.set_own_rates([None if lr is None else self._reduced(lr) for lr in own])
        if not callable(optimizer._lr):  # else no group has it
            optimizer.lr = self._reduced(optimizer._lr)

    def _reduced(self, lr: Any) -> float:
        rate = float(lr)
        lower = max(self.factor * rate, self.min_lr)
        return lower if rate - lower > self.eps else rate

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "resting": self.resting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = state["best"]
        self.best = None if best is None else float(best)
        self.waited = integer("waited", state["waited"], least=0)
        self.resting = integer("resting", state["resting"], least=0)
