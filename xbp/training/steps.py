"""One update of all parameters from one batch, and steppers, which make the steps of an epoch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from xbp.backend import Array, out_of_memory
from xbp.errors import InputError, OutOfMemoryError
from xbp.nn import for_parameters
from xbp.nn.backward import run_forward
from xbp.nn.to_loss import forward_to_loss
from xbp.optim import Optimizer
from xbp.random import RandomStream
from xbp.training.accumulation import accumulated
from xbp.training.callbacks.base import Training
from xbp.training.diagnosis import batch_of
from xbp.training.memory import step_too_large
from xbp.training.metrics.counting import len_of
from xbp.training.results import CheckedLoss
from xbp.training.scaling import computing
from xbp.training.state import Pair, Pieces


def update(
    pieces: Pieces,
    loss: CheckedLoss,
    x: Array,
    y: Array,
    rng: RandomStream,
    coefficients: Any = None,
    *,
    part: int = 0,
    around: Callable[[Any, Array], AbstractContextManager[object]] | None = None,
) -> tuple[Array, Array]:
    """One step: augmentation, forward, loss, backward, update.

    Returns the prediction and the value of the loss.

    On the host, where reading the loss is free, nothing is updated if it is not finite.

    Parameters
    ----------
    loss : CheckedLoss
        Of ``pieces.loss``.
    x, y : array
        The rows of the batch that are this process's.
    rng : RandomStream
        The random bits of dropout masks, advanced to this step.
    coefficients : list, optional
        The coefficients of the update rule, as arrays on the device (see `Optimizer.step`).
    part : int, optional
        Samples of a part, where the gradients of larger batches are accumulated from parts.
    around : callable, optional
        From the prediction and the value of the loss, a context for the optimizer's step. It is not
        called if nothing is updated.
    """
    share, total = pieces.share, pieces.share.samples(y)
    share.draw(rng, 0, total)
    if pieces.augment is not None:
        x, y = pieces.augment(x, y, rng=rng)
    optimizer, scaling = pieces.optimizer, pieces.scaling
    with computing(pieces.precision):
        if part and total > part:
            prediction, value, finite = accumulated(pieces, loss, x, y, rng, part)
            if not finite:
                return prediction, value  # `fit` ends, and clears the gradients of earlier parts
        else:
            at_once, weight = None, None
            if scaling is None and share.size == 1:
                at_once = forward_to_loss(pieces.model, loss.loss, x, y)
            if at_once is not None:
                prediction, value, through = at_once
            else:
                prediction, backward = run_forward(pieces.model, x, training=True, rng=rng)
                value, gradient, weight = share.loss(loss, prediction, y)
                if scaling is not None:
                    gradient = scaling.scaled(gradient)
                through = partial(for_parameters(backward), gradient)
            if share.hopeless(value):
                return prediction, value
            through()
            value = share.reduce(optimizer.parameters, value, weight)
    if share.spoiled(value):
        optimizer.zero_grad()
        return prediction, value
    step = optimizer.step if coefficients is None else partial(optimizer.step, coefficients)
    with nullcontext() if around is None else around(prediction, value):
        if scaling is None:
            step()
        else:
            scaling.step(optimizer, step)
    optimizer.zero_grad()
    return prediction, value


class Stepper(Protocol):
    """Makes the steps of a `fit`; there are two kinds, `EagerSteps` and `CapturedSteps`."""

    rates: list[float]
    """The learning rates of the last step, one for each group of parameters."""

    refused: bool
    """Whether capturing failed."""

    finite: bool
    """Whether the loss of the last step is known to be finite."""

    def begin(self, order: Array) -> None:
        """Begin an epoch, with this order of the samples."""

    def step(self, k: int, size: int, batch: Pair | None = None) -> None:
        """Make step k = 1, 2, … of the epoch; loss and metrics go to the averages of the state.

        Parameters
        ----------
        k : int
        size : int
            The number of samples.
        batch : (x, y), optional
            The rows of this process, where they are not in the data.
        """

    def flush(self) -> None:
        """Pass results that are still kept by the stepper to the averages, without a wait."""

    def loss(self) -> Array:
        """The value of the last step; a 0-d array."""

    def end(self) -> None:
        """Release the data of a `fit`, except those that the next one can use again."""


def next_rates(optimizer: Optimizer) -> list[float]:
    """The learning rate of each group in the next step."""
    return optimizer.rates_at(optimizer.steps)


class EagerSteps:
    """Steps by `Trainer.step`, one after the other. (A `Stepper`.)

    Parameters
    ----------
    trainer : Training
        In a `fit`.
    data : (x, y)
        Where the model lives.
    """

    refused = finite = False

    def __init__(self, trainer: Training, data: Pair) -> None:
        self.trainer: Training = weakref.proxy(trainer)  # no reference cycle
        self.data = data
        self.order: Array = None
        self.rates: list[float] = []

    def begin(self, order: Array) -> None:
        self.order = order

    def step(self, k: int, size: int, batch: Pair | None = None) -> None:
        trainer, (x, y) = self.trainer, self.data if batch is None else batch
        state = trainer.state
        self.rates = next_rates(trainer.optimizer)
        try:
            if batch is None:
                rows = batch_indices(self.order, k, trainer.batch_size, size)
                batch = batch_of(x, y, trainer.share.rows(rows, size))
            with trainer.share.batch(size):
                prediction = trainer.step(*batch)
                state.averages.add(state.loss, prediction, batch[1])
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise self.too_large(error, batch) from None

    def too_large(self, error: Exception, batch: Pair | None = None) -> OutOfMemoryError:
        """The error to raise in place of `error`, for want of memory in a step."""
        trainer, (x, y) = self.trainer, self.data if batch is None else batch
        return step_too_large(trainer, trainer.part or trainer.batch_size, error, x, y)

    def flush(self) -> None:
        """Nothing to do: `step` passes on its results."""

    def loss(self) -> Array:
        return self.trainer.state.loss

    def end(self) -> None:
        self.data, self.order = (None, None), None


def batch_indices(order: Array, k: int, batch_size: int, size: int) -> Array:
    """Which rows are the batch of step k = 1, 2, …; see `xbp.training.feeds`."""
    start = (k - 1) * batch_size % len_of(order)
    return order[start : start + size, ...]


def steps_of(samples: int, batch_size: int, drop_last: bool) -> int:
    """The number of batches in an epoch.

    Raises
    ------
    InputError
        All samples would be left out.
    """
    if drop_last and samples < batch_size:
        msg = (
            f"drop_last leaves out a batch of fewer than {batch_size} samples, and there are "
            f"{samples} in all; take a smaller batch_size"
        )
        raise InputError(msg)
    return samples // batch_size if drop_last else -(-samples // batch_size)
