"""One update of all parameters from one batch, and steppers, which make those of an epoch."""

from __future__ import annotations

import math
import weakref
from typing import Any, Protocol

from xbp.backend import Array, on_host, out_of_memory
from xbp.nn import for_parameters
from xbp.nn.backward import run_forward
from xbp.random import Stream
from xbp.training.callbacks.base import Training
from xbp.training.diagnosis import batch_of
from xbp.training.memory import step_too_large
from xbp.training.metrics.counting import len_of
from xbp.training.results import CheckedLoss
from xbp.training.state import Pair, Pieces


def update(
    pieces: Pieces, loss: CheckedLoss, x: Array, y: Array, rng: Stream, numbers: Any = None
) -> tuple[Array, Array]:
    """One step: forward, loss, backward, update. Returns the prediction and the loss's value.

    Where reading the loss is free (on the host) and it is not finite, nothing is updated: the
    parameters are still good.

    Parameters
    ----------
    loss : CheckedLoss
        Of ``pieces.loss``.
    rng : Stream
        Where dropout masks come from; it stands at this step.
    numbers : list, optional
        The numbers of the optimizer's rule, where they lie on the device (see `Optimizer.step`).
    """
    prediction, backward = run_forward(pieces.model, x, training=True, rng=rng)
    value, gradient = loss(prediction, y)
    if on_host(value) and not math.isfinite(value):
        return prediction, value
    for_parameters(backward)(gradient)
    if numbers is None:
        pieces.optimizer.step()
    else:
        pieces.optimizer.step(numbers)
    pieces.optimizer.zero_grad()
    return prediction, value


class Stepper(Protocol):
    """Makes the steps of a `fit`; there are two kinds, `EagerSteps` and `CapturedSteps`."""

    lr: float
    """The learning rate of the last step."""

    refused: bool
    """Whether steps could not be captured, as a warning has said."""

    def begin(self, order: Array) -> None:
        """An epoch begins, with this order of the samples."""

    def step(self, k: int) -> None:
        """Make step k = 1, 2, … of the epoch; its loss and metrics go to the state's averages."""

    def tell(self) -> None:
        """Give the averages what steps have kept to themselves, without a wait."""

    def loss(self) -> Array:
        """The value of the last step; a 0-d array."""

    def end(self) -> None:
        """Let go of the data of a `fit`, but for what the next one can use again."""


class EagerSteps:
    """Steps by `Trainer.step`, one after the other. (A `Stepper`.)

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    data : (x, y)
        Where the model lives.
    """

    refused = False

    def __init__(self, trainer: Training, data: Pair) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no circle of references
        self.data = data
        self.order: Array = None
        self.lr = 0.0

    def begin(self, order: Array) -> None:
        self.order = order

    def step(self, k: int) -> None:
        trainer, (x, y) = self.trainer, self.data
        state = trainer.state
        self.lr = trainer.optimizer.lr
        try:
            batch, target = batch_of(x, y, batch_indices(self.order, k, trainer.batch_size))
            prediction = trainer.step(batch, target)
            state.averages.add(state.loss, prediction, target)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise step_too_large(trainer, trainer.batch_size, error, x, y) from None

    def tell(self) -> None:
        """Nothing is kept: `step` has told all."""

    def loss(self) -> Array:
        return self.trainer.state.loss

    def end(self) -> None:
        self.data, self.order = (None, None), None


def batch_indices(order: Array, k: int, batch_size: int) -> Array:
    """Which samples are the batch of step k = 1, 2, …"""
    # The standard has no slices past the end.
    return order[(k - 1) * batch_size : min(k * batch_size, len_of(order)), ...]
