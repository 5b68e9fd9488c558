"""The training loop."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from xbp.arguments import described, integer, name_of
from xbp.backend import (
    Array,
    Backend,
    array_namespace,
    brief,
    get_backend,
    graph_for,
    on_device_of,
    on_host,
    out_of_memory,
)
from xbp.errors import InputError, NonFiniteError
from xbp.nn import Layer, Loss, for_parameters
from xbp.nn.layer import run_forward
from xbp.optim import Optimizer
from xbp.random import Seed, Stream, fresh_seed, permutation
from xbp.training.callbacks.base import Callback, begun
from xbp.training.callbacks.progress import ProgressBar, on_terminal
from xbp.training.diagnosis import Place, batch_of, not_finite
from xbp.training.door import (
    adds_names,
    admit,
    admit_alone,
    admit_validation,
    callbacks_of,
    check_pieces,
    check_schedule,
    compare,
    expected_names,
    parameters_of,
    steps_to_come,
)
from xbp.training.files.checkpoints import Checkpoint, open_checkpoint
from xbp.training.files.resume import restore
from xbp.training.history import History, Record
from xbp.training.interrupt import stop_on_interrupt
from xbp.training.memory import enough_memory, step_too_large
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import len_of
from xbp.training.metrics.names import MetricLike, find_metrics
from xbp.training.recorded import ROWS, Pair, RecordedSteps
from xbp.training.results import checked_loss, make_plain
from xbp.training.run import Run

LOOK_EVERY = ROWS  # steps between two looks at the losses of a device


P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(
    method: Callable[Concatenate[Trainer, P], R],
) -> Callable[Concatenate[Trainer, P], R]:
    """`method`, run with the model's device as the current one: in any thread."""

    @wraps(method)
    def run(self: Trainer, *args: P.args, **options: P.kwargs) -> R:
        with self._backend().on_device():
            return method(self, *args, **options)

    return run  # type: ignore[return-value]  # mypy tells a name of self from a position


class Trainer:
    """Fits a model to data: shuffled minibatches, validation, metrics, callbacks, a history.

    The order of epoch e depends on (seed, e) alone, the dropout masks of step t on (seed, t); so
    the same seed gives the same history, bit for bit, on one backend with one number of threads,
    and the same batches and masks on all of them.

    Parameters
    ----------
    model : Layer
    loss : Loss, or callable ``(prediction, target) -> (value, gradient)``
        The value may be a number or a 0-d array.
    optimizer : Optimizer
        Made from ``model.parameters()``.
    metrics : sequence of str, Metric or callable, default ()
        ``"accuracy"``, ``"f1"``, … (`xbp.training.METRICS`), metrics such as ``ConfusionMatrix()``,
        or functions ``(prediction, target) -> number or 0-d array``, means over the batch.
    rng : int, numpy.random.Generator or None
        Seed of shuffles and masks.
    capture : bool, optional
        Whether steps are recorded as a CUDA graph and replayed, where model and data are on a GPU
        (CuPy, PyTorch on CUDA), with the same results as other steps, bit for bit. By default they
        are, unless the environment variable XBP_CAPTURE is 0 or something cannot be recorded, of
        which one warning tells; with True, an error. See the notes.

    Raises
    ------
    InputError
        Something is no model, loss, optimizer or metric, or the optimizer has none of the model's
        parameters.

    Warns
    -----
    UserWarning
        The optimizer lacks trainable parameters of the model, or has others; a softmax or sigmoid
        stands before a loss that has its own; a layer keeps an array outside of a `Parameter`.

    Notes
    -----
    A recorded step does without Python: what a layer or a loss computes on the host is frozen. Its
    options may change between steps (another array or number in one of its attributes): that makes
    a new recording. What it keeps elsewhere is not noticed; nor would be what it changes itself in
    its forward, so that is refused. Metrics of xbp and functions are recorded too; a `Metric` of
    one's own is updated after each step. Callbacks run as ever. The trainer keeps the graph, and
    with it the data on the device, for its next `fit`. Run on a GPU with CuPy; not yet with
    PyTorch on CUDA.

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
        metrics: Sequence[MetricLike] | None = (),
        *,
        rng: Seed = None,
        capture: bool | None = None,
    ) -> None:
        check_pieces(model, loss, optimizer)
        if capture not in (None, True, False):
            msg = f"capture must be True, False or None, got {described(capture)}"
            raise InputError(msg)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self._compared = parameters_of(self)
        self.metrics = find_metrics(metrics)
        self.seed = fresh_seed(rng)
        self.stream = Stream(self.seed)
        self.epochs_done = 0
        self.history = History()
        self.capture = capture
        self._current_loss: Array = None
        self._recorded: RecordedSteps | None = None  # of the last fit, where there are such steps
        self.stop_reason = ""
        self._known: type | None = None  # of the loss's values, once they have been checked
        self.sample_shape: tuple[int, ...] | None = None  # of the data last admitted
        self.quantities: list[str] = []  # the loss, and what the metrics measure
        self.expected: list[str] = []  # what the records will hold, …
        self.may_have_more = True  # … apart from what others put into them
        # Where a fit stands, for checkpoints:
        self.first_epoch = 0  # how many epochs had been done when it began
        self.steps_done = 0  # of the epoch that is under way; 0 between two epochs
        self.run: Run | None = None
        self.resumed: Checkpoint | None = None
        self.callbacks: list[Callback] = []
        self.elapsed_before = 0.0  # seconds of an interrupted epoch, before it was interrupted

    def __repr__(self) -> str:
        model, loss = type(self.model).__name__, repr(self.loss)
        return f"Trainer({model}, {loss}, {self.optimizer!r}, rng={self.seed})"

    # --- what a user calls ---

    @_on_its_device
    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Iterable[Callback] | None = (),
        *,
        verbose: bool | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some epochs, and return what happened.

        A second call goes on where the first one ended, with a history of its own; an epoch that
        was stopped in the middle is begun anew. Which callbacks remember what happened in an
        earlier call, each of them says. Ctrl-C ends training after the current step; a second
        Ctrl-C ends it at once. (Not where SIGINT is ignored, or its handler is not Python's.)

        Parameters
        ----------
        x, y : arrays of any library, with samples along the first axis
            Moved to the model's backend once, as a whole; floating-point x is converted to the
            dtype of the model's parameters.
        epochs : int, default 1
        batch_size : int, default 32
            The last batch of an epoch may be smaller.
        validation_data : (x, y), optional
            Evaluated after each epoch.
        callbacks : iterable of Callback
        verbose : bool, optional
            Whether to show a progress bar; by default where the output is a terminal.
        resume : path-like, optional
            A checkpoint, or the folder of a `Checkpoints`, whose last one is meant: this call, made
            as the interrupted one was by a trainer that was made alike, goes on from there, with
            the result of a run that was never interrupted (see `xbp.training.files.resume`). A
            folder that is missing or has no checkpoint yet means to start from the beginning. Data,
            model, loss, optimizer, batch size and callbacks with a state must be the same;
            `epochs`, which counts from where the interrupted call began, may be larger.

        Returns
        -------
        History
            Also kept as ``trainer.history``, from the first step on.

        Raises
        ------
        InputError
            Data do not fit each other, the model, the loss or a metric; a callback will not find
            what it monitors; the schedule of the learning rate gives none for the last step; or
            this is not the run of the checkpoint. Nothing has been trained then. In training: the
            loss, a metric, a schedule or a callback gave something else than numbers.
        DataError
            The checkpoint is malformed.
        NonFiniteError
            The loss became infinite or nan. Where reading it is free (on a CPU), the step is not
            made and the parameters are those before it; on a device the losses begin their way to
            the host every 50 steps, are looked at when they have arrived, and waited for after
            each epoch, and later steps have been made. `TerminateOnNaN` makes an end of training
            of it.
        OutOfMemoryError
            A step needs more memory than there is; the sentence says which batch size may do.

        Warns
        -----
        UserWarning
            The learning rate has a schedule for another number of steps; or as in `Trainer`, where
            the model has changed since.

        Notes
        -----
        Nothing in the steps of an epoch waits for a device, apart from callbacks that read values:
        not the batches, the steps, the metrics and the looks at the losses between them. What
        waits is before (the check of data and targets) and after the steps: the record of the
        epoch, for which losses and metrics are read, and validation, once at its end.
        """
        epochs = integer("epochs", epochs, least=1)
        self.batch_size = integer("batch_size", batch_size, least=1)
        given, callbacks = (x, y), callbacks_of(callbacks)
        self._known = None
        if parameters_of(self) != self._compared:
            compare(self.model, self.loss, self.optimizer)
            self._compared = parameters_of(self)
        x, y = admit(self, x, y)
        validation = admit_validation(self, validation_data, (x, y))
        self.expected = expected_names(self, validated=validation is not None)
        self.may_have_more = adds_names(self, callbacks)
        self.steps_per_epoch = -(-len_of(x) // self.batch_size)
        self.resumed = None if resume is None else open_checkpoint(resume)
        self.first_epoch = self.resumed.first_epoch if self.resumed else self.epochs_done
        self.last_epoch = self.first_epoch + epochs
        self.history = History()
        self.stop_reason, self.steps_done = "", 0
        check_schedule(self, callbacks, *steps_to_come(self, epochs))
        if on_terminal() if verbose is None else verbose:
            callbacks.append(ProgressBar())
        # What is written last has seen what all others did.
        self.callbacks = sorted(callbacks, key=lambda callback: callback.call_order)
        self.run = Run(self, (x, y), validation)
        self._prepare_recording(given, (x, y))
        try:
            with stop_on_interrupt(self), begun(self.callbacks, self):
                if self.resumed:
                    restore(self, self.resumed)
                while self.epochs_done < self.last_epoch and not self.stop_reason:
                    try:
                        self._epoch(x, y, validation)
                    except NonFiniteError as error:
                        if not any(c.on_not_finite(self, error) for c in self.callbacks):
                            raise
        finally:
            self.run = None  # it holds the data
            self.optimizer.zero_grad()  # a step that failed leaves no gradients
        self.history.stopped = self.stop_reason or f"all {epochs} epochs done"
        return self.history

    @_on_its_device
    def evaluate(self, x: Any, y: Any, batch_size: int = 512) -> dict[str, float]:
        """The loss and each metric over a whole set, in inference mode.

        Raises
        ------
        InputError
            Data do not fit each other, the model, the loss or a metric.
        OutOfMemoryError
            A batch needs more memory than there is; the sentence says which size may do.
        """
        batch_size = integer("batch_size", batch_size, least=1)
        return self._evaluate(*admit(self, x, y), batch_size)

    @_on_its_device
    def predict(self, x: Any, batch_size: int = 512) -> Array:
        """The model's outputs for all samples, in inference mode, where the model lives.

        Raises
        ------
        InputError
            There are no samples, or they do not fit the model.
        OutOfMemoryError
            A batch needs more memory than there is; the sentence says which size may do.
        """
        batch_size = integer("batch_size", batch_size, least=1)
        x = admit_alone(self, x)
        with enough_memory(x, batch_size, "predicting", self.model):
            outputs = [self.model(batch) for batch in _slices(x, batch_size)]
            return array_namespace(x).concat(outputs, axis=0)

    def stop(self, reason: str) -> None:
        """End training after the current step; `reason` becomes ``history.stopped``."""
        self.stop_reason = self.stop_reason or reason

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""
        return time.perf_counter() - self._epoch_began

    # --- one step, one epoch ---

    def step(self, x: Array, y: Array) -> Array:
        """One update of all parameters from one batch; returns the prediction it was made from.

        The value of the loss becomes ``trainer.current_loss``, on the device.
        """
        with on_device_of(x):
            self.stream.advance(self.optimizer.steps)
            return self._update(x, y)

    @property
    def current_loss(self) -> Array:
        """The loss of the last step; a 0-d array, where the model lives."""
        if self._current_loss is None and self._recorded is not None:
            self._current_loss = self._recorded.last_loss()
        return self._current_loss

    @current_loss.setter
    def current_loss(self, value: Array) -> None:
        self._current_loss = value

    @property
    def seen(self) -> Averages:
        """What was measured in the epoch that is under way."""
        if self._recorded is not None:
            self._recorded.tell()
        return self._seen

    @seen.setter
    def seen(self, value: Averages) -> None:
        self._seen = value

    def _update(self, x: Array, y: Array, numbers: Any = None) -> Array:
        """A step, with random masks from where the stream is."""
        prediction, backward = run_forward(self.model, x, training=True, rng=self.stream)
        self.current_loss, gradient = self._measure(prediction, y)
        if on_host(self.current_loss) and not math.isfinite(self.current_loss):
            return prediction  # _epoch looks at the loss next, while the parameters are still good
        for_parameters(backward)(gradient)
        if numbers is None:
            self.optimizer.step()
        else:
            self.optimizer.step(numbers)
        self.optimizer.zero_grad()
        return prediction

    def _measure(self, prediction: Array, y: Array) -> tuple[Array, Array]:
        """The loss and its gradient; what it returns is checked where its type is a new one."""
        returned = self.loss(prediction, y)
        if type(returned) is tuple and len(returned) == 2 and type(returned[0]) is self._known:
            return returned
        value, gradient = checked_loss(self.loss, returned, prediction)
        if value is returned[0]:
            self._known = type(value)
        return value, gradient

    # --- recorded steps ---

    def _prepare_recording(self, given: Pair, data: Pair) -> None:
        """Have `_recorded` for this fit, if a device is to record its steps."""
        capture = self.capture
        if capture is None:
            capture = os.environ.get("XBP_CAPTURE", "1") != "0"
        self._current_loss = self.current_loss  # before its row is another's
        recorded, self._recorded = self._recorded, None
        if not capture:
            return
        if graph_for(data[0]) is None:
            if self.capture:
                msg = f"capture=True needs a GPU, where the model is on {self._backend()}"
                raise InputError(msg)
            return
        if recorded is not None and recorded.fits(self, given, data):
            self._recorded = recorded
            return
        try:
            self._recorded = RecordedSteps(self, given, data)
        except InputError as error:
            self._do_without_recording(error)

    def _step_recorded(self, step: int, lr: float) -> bool:
        """Make step 1, 2, … of the epoch as a recorded one, if that can be."""
        if self._recorded is None:
            return False
        try:
            return self._recorded.step(step, lr)
        except Exception as error:
            self._do_without_recording(error)
            return False

    def _do_without_recording(self, error: Exception) -> None:
        """Go on with ordinary steps, and say so; or raise, where they are not wanted."""
        if self.capture:
            raise error
        cause: BaseException = error
        while cause.__context__ is not None:  # not what followed from it
            cause = cause.__context__
        if self._recorded is not None:
            self._recorded.tell()
        self.capture, self._recorded = False, None
        msg = (
            "training goes on with ordinary steps, as they cannot be recorded for the device "
            f"({brief(cause)}); Trainer(…, capture=False) does not try to"
        )
        warnings.warn(msg, RuntimeWarning, stacklevel=2)

    def _epoch(
        self,
        x: Array,
        y: Array,
        validation: tuple[Array, Array] | None,
    ) -> None:
        epoch, done = self.epochs_done + 1, self.steps_done
        self._epoch_began = time.perf_counter() - (self.elapsed_before if done else 0.0)
        if not done:  # else it goes on
            self.seen = Averages(self.loss, self.metrics)
            for callback in self.callbacks:
                callback.on_epoch_begin(self, epoch)
        free = on_host(x)  # to look at a loss
        order = self._backend().asarray(permutation(self.seed, self.epochs_done, len_of(x)))
        rest = _slices(order, self.batch_size, first=done * self.batch_size)
        if self._recorded is not None:
            self._recorded.begin(order)
        for step, indices in enumerate(rest, start=done + 1):
            lr = self.optimizer.lr
            if not self._step_recorded(step, lr):
                try:
                    batch = batch_of(x, y, indices)
                    prediction = self.step(*batch)
                    self.seen.add(self.current_loss, prediction, batch[1])
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    raise step_too_large(self, error, x, y) from None
            if free or step % LOOK_EVERY == 0:
                self._check_finite(epoch, (x, y, indices), wait=free)
            self.steps_done = step
            for callback in self.callbacks:
                callback.on_step_end(self, step)
            if self.stop_reason:
                break
        self._check_finite(epoch, (x, y, indices))
        record: Record = {"epoch": epoch, "lr": lr} | self.seen.result()
        self.steps_done = 0
        if step == self.steps_per_epoch:
            self.epochs_done += 1
            if validation is not None:
                measured = self._evaluate(*validation, batch_size=512)
                record |= {f"val_{name}": value for name, value in measured.items()}
        self.history.records.append(record)
        self.history.seconds.append(self.elapsed())
        for callback in self.callbacks:
            callback.on_epoch_end(self, epoch, record)
            make_plain(record, name_of(callback.on_epoch_end))

    def _evaluate(self, x: Array, y: Array, batch_size: int) -> dict[str, float]:
        seen = Averages(self.loss, self.metrics)
        with enough_memory(x, batch_size, "evaluating", self.model):
            for batch, target in zip(_slices(x, batch_size), _slices(y, batch_size), strict=True):
                prediction = self.model(batch)
                seen.add(self._measure(prediction, target)[0], prediction, target)
            return seen.result()

    # --- at the door, and when something went wrong ---

    def _backend(self) -> Backend:
        return self.model.backend() or get_backend()

    def _check_finite(self, epoch: int, place: Place, *, wait: bool = True) -> None:
        step = self.seen.loss.first_not_finite(wait=wait)
        if step is not None:
            msg = not_finite(self, epoch, step, place)
            self.history.stopped = msg
            raise NonFiniteError(msg)


def _slices(array: Array, size: int, first: int = 0) -> Iterator[Array]:
    n = len_of(array)
    for start in range(first, n, size):
        yield array[start : min(start + size, n), ...]  # the standard has no slices past the end
