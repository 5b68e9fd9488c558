"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from xbp.arguments import integer
from xbp.backend import Array, Backend, array_namespace, get_backend, on_host, to_numpy
from xbp.errors import InputError, NonFiniteError
from xbp.nn import Layer, Loss, for_parameters, trace
from xbp.optim import Optimizer
from xbp.random import Seed, Stream, fresh_seed, permutation
from xbp.training.averages import Averages
from xbp.training.callbacks import Callback
from xbp.training.history import History, Record
from xbp.training.interrupt import stop_on_interrupt
from xbp.training.metrics import Metric, find_metric, len_of
from xbp.training.progress import ProgressBar, on_terminal

LOOK_EVERY = 50  # steps between two looks at the losses, where looking waits for a device


class Trainer:
    """Fits a model to data: shuffled minibatches, validation, metrics, callbacks, a history.

    The order of epoch e depends on (seed, e) alone, the dropout masks of step t on (seed, t); so
    the same seed gives the same history, bit for bit, on one backend, and the same batches and
    masks on all of them.

    Parameters
    ----------
    model : Layer
    loss : Loss, or callable ``(prediction, target) -> (value, gradient)``
    optimizer : Optimizer
        Made from ``model.parameters()``.
    metrics : sequence of str or callable, default ()
        ``"accuracy"``, or functions ``(prediction, target) -> 0-d array``, means over the batch.
    rng : int, numpy.random.Generator or None
        Seed of shuffles and masks.

    Examples
    --------
    >>> import numpy as np
    >>> import xbp
    >>> from xbp import nn, optim
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> model = nn.Sequential(nn.Linear(1, 1, dtype="float64", rng=0))
    >>> trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), rng=0)
    >>> history = trainer.fit(x, 2 * x + 1, epochs=100, batch_size=4)
    >>> history["loss"][-1] < 1e-3
    True
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss | Callable[[Array, Array], tuple[Array, Array]],
        optimizer: Optimizer,
        metrics: Sequence[str | Metric] = (),
        *,
        rng: Seed = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.metrics = dict(find_metric(metric) for metric in metrics)
        self.seed = fresh_seed(rng)
        self.stream = Stream(self.seed)
        self.epochs_done = 0
        self.history = History()
        self.current_loss: Array = None  # of the last step; a 0-d array, where the model lives
        self._stop_reason = ""

    # --- what a user calls ---

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        verbose: bool | None = None,
    ) -> History:
        """Train for some epochs, and return what happened.

        A second call goes on where the first one ended, with a history of its own. Ctrl-C ends
        training after the current step; a second Ctrl-C ends it at once.

        Parameters
        ----------
        x, y : arrays of any library, with samples along the first axis
            Moved to the model's backend once, as a whole.
        epochs : int, default 1
        batch_size : int, default 32
            The last batch of an epoch may be smaller.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        callbacks : iterable of Callback
        verbose : bool, optional
            Whether to show a progress bar; by default where the output is a terminal.

        Returns
        -------
        History
            Also kept as ``trainer.history``, from the first step on.

        Raises
        ------
        InputError
            Data do not fit each other, the model or the loss. Nothing has been trained then.
        NonFiniteError
            The loss became infinite or nan. Where reading it is free (on a CPU), the step is not
            made and the parameters are those before it; on a device the losses are looked at
            every 50 steps and after each epoch, and later steps have been made.
        """
        epochs = integer("epochs", epochs, least=1)
        self.batch_size = integer("batch_size", batch_size, least=1)
        x, y = self._admit(x, y)
        validation = None if validation_data is None else self._admit(*validation_data)
        self.steps_per_epoch = -(-len_of(x) // self.batch_size)
        self.last_epoch = self.epochs_done + epochs
        self.history = History()
        self._stop_reason = ""
        callbacks = list(callbacks)
        if on_terminal() if verbose is None else verbose:
            callbacks.append(ProgressBar())
        with ExitStack() as stack:
            stack.enter_context(stop_on_interrupt(self))
            for callback in callbacks:
                stack.callback(callback.on_fit_end, self)
                callback.on_fit_begin(self)
            while self.epochs_done < self.last_epoch and not self._stop_reason:
                self._epoch(x, y, validation, callbacks)
        self.history.stopped = self._stop_reason or f"all {epochs} epochs done"
        return self.history

    def evaluate(self, x: Any, y: Any, batch_size: int = 512) -> dict[str, float]:
        """The loss and each metric over a whole set, in inference mode.

        Raises
        ------
        InputError
            Data do not fit each other, the model or the loss.
        """
        return self._evaluate(*self._admit(x, y), integer("batch_size", batch_size, least=1))

    def predict(self, x: Any, batch_size: int = 512) -> Array:
        """The model's outputs for all samples, in inference mode, where the model lives.

        Raises
        ------
        InputError
            There are no samples, or they do not fit the model.
        """
        x = self._backend().asarray(x)
        if x.ndim == 0 or len_of(x) == 0:
            msg = f"there is nothing to predict: x has shape {tuple(x.shape)}"
            raise InputError(msg)
        batch_size = integer("batch_size", batch_size, least=1)
        outputs = [self.model(batch) for batch in _slices(x, batch_size)]
        return array_namespace(x).concat(outputs, axis=0)

    def stop(self, reason: str) -> None:
        """End training after the current step; `reason` becomes ``history.stopped``."""
        self._stop_reason = self._stop_reason or reason

    # --- one step, one epoch ---

    def step(self, x: Array, y: Array) -> Array:
        """One update of all parameters from one batch; returns the prediction it was made from.

        The value of the loss becomes ``trainer.current_loss``, on the device.
        """
        self.stream.advance(self.optimizer.steps)
        prediction, backward = self.model.forward(x, training=True, rng=self.stream)
        self.current_loss, gradient = self.loss(prediction, y)
        if on_host(self.current_loss) and not math.isfinite(self.current_loss):
            return prediction  # _epoch looks at the loss next, while the parameters are still good
        for_parameters(backward)(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return prediction

    def _epoch(
        self,
        x: Array,
        y: Array,
        validation: tuple[Array, Array] | None,
        callbacks: list[Callback],
    ) -> None:
        epoch, start = self.epochs_done + 1, time.perf_counter()
        for callback in callbacks:
            callback.on_epoch_begin(self, epoch)
        xp = array_namespace(x)
        order = self._backend().asarray(permutation(self.seed, self.epochs_done, len_of(x)))
        seen = Averages(self.loss, ("loss", *self.metrics))
        for step, indices in enumerate(_slices(order, self.batch_size), start=1):
            batch = xp.take(x, indices, axis=0), xp.take(y, indices, axis=0)
            lr = self.optimizer.lr
            prediction = self.step(*batch)
            values = [metric(prediction, batch[1]) for metric in self.metrics.values()]
            seen.add(len_of(indices), self.current_loss, *values)
            if on_host(self.current_loss) or step % LOOK_EVERY == 0:
                self._check_finite(seen, epoch, batch)
            for callback in callbacks:
                callback.on_step_end(self, step)
            if self._stop_reason:
                break
        self._check_finite(seen, epoch, batch)
        record: Record = {"epoch": epoch, "lr": lr} | seen.result()
        if step == self.steps_per_epoch:
            self.epochs_done += 1
            if validation is not None:
                measured = self._evaluate(*validation, batch_size=512)
                record |= {f"val_{name}": value for name, value in measured.items()}
        self.history.records.append(record)
        self.history.seconds.append(time.perf_counter() - start)
        for callback in callbacks:
            callback.on_epoch_end(self, epoch, record)

    def _evaluate(self, x: Array, y: Array, batch_size: int) -> dict[str, float]:
        seen = Averages(self.loss, ("loss", *self.metrics))
        for batch, target in zip(_slices(x, batch_size), _slices(y, batch_size), strict=True):
            prediction = self.model(batch)
            values = [metric(prediction, target) for metric in self.metrics.values()]
            seen.add(len_of(batch), self.loss(prediction, target)[0], *values)
        return seen.result()

    # --- at the door, and when something went wrong ---

    def _backend(self) -> Backend:
        return self.model.backend() or get_backend()

    def _admit(self, x: Any, y: Any) -> tuple[Array, Array]:
        """Both arrays where the model lives, checked against each other, the model and the loss."""
        backend = self._backend()
        x, y = backend.asarray(x), backend.asarray(y)
        if x.ndim == 0 or y.ndim == 0 or len_of(x) != len_of(y) or len_of(x) == 0:
            msg = (
                f"x and y need the same number of samples, at least one; they have shapes "
                f"{tuple(x.shape)} and {tuple(y.shape)}"
            )
            raise InputError(msg)
        if isinstance(self.loss, Loss):
            self.loss.check(self.model(x[:1, ...]), y)
        return x, y

    def _check_finite(self, seen: Averages, epoch: int, batch: tuple[Array, Array]) -> None:
        step = seen.first_not_finite("loss")
        if step is None:
            return
        stream = Stream(self.seed, step=self.optimizer.steps)
        culprit = "the loss itself: check the targets"
        if not _finite(batch[0]):
            culprit = "the input: check the data"
        else:
            for name, layer, y in trace(self.model, batch[0], training=True, rng=stream):
                if not _finite(y):
                    culprit = f"the output of layer {name!r}, {layer}"
                    break
        msg = (
            f"the loss is {seen.value('loss', step)} in epoch {epoch}, step {step + 1}; the first "
            f"thing not finite is {culprit}; a learning rate below {self.optimizer.lr:g} may help"
        )
        self.history.stopped = msg
        raise NonFiniteError(msg)


def _slices(array: Array, size: int) -> Iterator[Array]:
    n = len_of(array)
    for start in range(0, n, size):
        yield array[start : min(start + size, n), ...]  # the standard has no slices past the end


def _finite(array: Array) -> bool:
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, ("real floating", "complex floating")):
        return True
    return bool(to_numpy(xp.all(xp.isfinite(array))))
