"""The state of a training: what a checkpoint holds beside model, optimizer and callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from xbp.backend import Array
from xbp.nn import Layer
from xbp.optim import Optimizer
from xbp.random import RandomStream
from xbp.training.history import History
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import Metric
from xbp.training.scaling import LossScaling
from xbp.training.share import Whole

Pair = tuple[Array, Array]
"""Samples and their targets: (x, y)."""

T = TypeVar("T")


class Pieces(Protocol):
    """What is trained, and how; a `Trainer` has these eight."""

    model: Layer
    loss: Any
    optimizer: Optimizer
    metrics: dict[str, Metric]
    augment: Callable[..., tuple[Array, Any]] | None
    share: Whole
    precision: str
    scaling: LossScaling | None


class TrainingState:
    """What changes during training: `fit` and its steps write it, checkpoints read it.

    Parameters
    ----------
    seed : int

    Attributes
    ----------
    seed : int
        The order of epoch e depends on (seed, e).
    stream : RandomStream
        The masks of step t depend on (seed, t).
    first_epoch : int
        The number of epochs that had been done when `fit` began.
    epochs_done : int
        The number of epochs done, over all calls of `fit`.
    steps_done : int
        Steps of the epoch under way; 0 between two epochs.
    seconds : float
        The time spent on that epoch before it was interrupted.
    loss : 0-d array or None
        The value of the last step; None if the stepper keeps it (see `Stepper.loss`).
    averages : Averages
        Loss and metrics over the epoch under way.
    history : History
        The records of the epochs of this `fit`.
    stop_reason : str
        Why training ends after this step; empty while it goes on.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stream = RandomStream(seed)
        self.first_epoch = 0
        self.epochs_done = 0
        self.steps_done = 0
        self.seconds = self._began = 0.0
        self.loss: Array = None
        self.averages = Averages(None, {})
        self.history = History()
        self.stop_reason = ""

    def begin_fit(self, first_epoch: int) -> None:
        """Start a new history, and drop an unfinished epoch of an earlier `fit`."""
        self.first_epoch, self.steps_done, self.seconds = first_epoch, 0, 0.0
        self.history = History()
        self.stop_reason = ""

    def begin_epoch(self) -> None:
        """Start the clock of an epoch: at 0, or where it stood when the epoch was interrupted."""
        self._began = time.perf_counter() - (self.seconds if self.steps_done else 0.0)

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""
        return time.perf_counter() - self._began

    def stop(self, reason: str) -> None:
        """End training after the current step; the first reason counts."""
        self.stop_reason = self.stop_reason or str(reason or "stopped for no reason given")


class OfState(Generic[T]):
    """An attribute of a trainer that is stored in its state."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Any, owner: type) -> T:
        if trainer is None:
            return self  # type: ignore[return-value]  # of the class
        return getattr(trainer.state, self.name)  # type: ignore[no-any-return]

    def __set__(self, trainer: Any, value: T) -> None:
        setattr(trainer.state, self.name, value)


class Stateful:
    """Base of `Trainer`: the parts of its state as attributes."""

    state: TrainingState

    seed = OfState[int]()
    stream = OfState[RandomStream]()
    epochs_done = OfState[int]()
    first_epoch = OfState[int]()
    steps_done = OfState[int]()
    history = OfState[History]()
    stop_reason = OfState[str]()

    def stop(self, reason: str) -> None:
        """End training after the current step; `reason` becomes ``history.stopped``."""
        self.state.stop(reason)

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""
        return self.state.elapsed()
