"""Where a training stands: what a checkpoint holds beside parameters, optimizer and callbacks."""

from __future__ import annotations

import time
from typing import Any, Protocol

from xbp.backend import Array
from xbp.nn import Layer
from xbp.optim import Optimizer
from xbp.random import Stream
from xbp.training.history import History
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import Metric

Pair = tuple[Array, Array]
"""Samples and their targets: (x, y)."""


class Pieces(Protocol):
    """What is trained, and by what: a `Trainer` has these four."""

    model: Layer
    loss: Any
    optimizer: Optimizer
    metrics: dict[str, Metric]


class TrainingState:
    """What changes while a training runs: `fit` and its steps write it, checkpoints read it.

    Parameters
    ----------
    seed : int

    Attributes
    ----------
    seed : int
        The order of epoch e depends on (seed, e).
    stream : Stream
        The masks of step t depend on (seed, t).
    first_epoch : int
        How many epochs had been done when the `fit` began.
    epochs_done : int
        How many epochs have been done, over all `fit`.
    steps_done : int
        Steps of the epoch that is under way; 0 between two epochs.
    seconds : float
        How long that epoch had taken before it was interrupted.
    loss : 0-d array or None
        The value of the last step; None where the steps themselves keep it (see `Stepper.loss`).
    averages : Averages
        What the steps of the epoch have said of loss and metrics.
    history : History
        The records of the epochs of this `fit`.
    stop_reason : str
        Why training ends after this step; empty as long as it goes on.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stream = Stream(seed)
        self.first_epoch = 0
        self.epochs_done = 0
        self.steps_done = 0
        self.seconds = self._began = 0.0
        self.loss: Array = None
        self.averages = Averages(None, {})
        self.history = History()
        self.stop_reason = ""

    def begin_fit(self, first_epoch: int) -> None:
        """A new history; what an earlier `fit` left of an epoch is forgotten."""
        self.first_epoch, self.steps_done, self.seconds = first_epoch, 0, 0.0
        self.history = History()
        self.stop_reason = ""

    def begin_epoch(self) -> None:
        """Start its clock: at 0, or where it stood when the epoch was interrupted."""
        self._began = time.perf_counter() - (self.seconds if self.steps_done else 0.0)

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""
        return time.perf_counter() - self._began

    def stop(self, reason: str) -> None:
        """End training after the current step; the first reason counts."""
        self.stop_reason = self.stop_reason or str(reason or "stopped for no reason given")
