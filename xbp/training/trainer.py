"""The training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from xbp.arguments import described, integer
from xbp.backend import Array, Backend, get_backend, on_device_of
from xbp.errors import InputError, NonFiniteError
from xbp.nn import Layer, Loss
from xbp.optim import Optimizer
from xbp.random import Seed, Stream, fresh_seed
from xbp.training.callbacks.base import Callback, begun, told_not_finite
from xbp.training.callbacks.progress import ProgressBar, on_terminal
from xbp.training.capture import stepper_for
from xbp.training.diagnosis import spoiled
from xbp.training.door.callbacks import adds_names, callbacks_of, expected_names
from xbp.training.door.data import admit, admit_alone, check_alike, pair_of
from xbp.training.door.pieces import check_pieces, compare, examine, parameters_of
from xbp.training.door.schedule import check_schedule, steps_to_come
from xbp.training.epoch import train_epoch
from xbp.training.evaluation import evaluate, predict
from xbp.training.files.checkpoints import Checkpoint, open_checkpoint
from xbp.training.files.resume import restore
from xbp.training.history import History
from xbp.training.interrupt import stop_on_interrupt
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import len_of
from xbp.training.metrics.names import MetricLike, find_metrics
from xbp.training.results import CheckedLoss
from xbp.training.run import Run
from xbp.training.state import Pair, TrainingState
from xbp.training.steps import Stepper, update

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _on_its_device(
    method: Callable[Concatenate[Trainer, P], R],
) -> Callable[Concatenate[Trainer, P], R]:
    """`method`, run with the model's device as the current one: in any thread."""

    @wraps(method)
    def run(self: Trainer, *args: P.args, **options: P.kwargs) -> R:
        check_pieces(self.model, self.loss, self.optimizer)  # somebody may have put in others
        with self._backend().on_device():
            return method(self, *args, **options)

    return run  # type: ignore[return-value]  # mypy tells a name of self from a position


class _OfState(Generic[T]):
    """An attribute of the trainer's state as one of the trainer."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Trainer | None, owner: type) -> T:
        if trainer is None:
            return self  # type: ignore[return-value]  # of the class
        return getattr(trainer.state, self.name)  # type: ignore[no-any-return]

    def __set__(self, trainer: Trainer, value: T) -> None:
        setattr(trainer.state, self.name, value)


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
        are, unless the environment variable XBP_CAPTURE is 0. Where something cannot be recorded,
        one warning says so; with True, an error. See the notes.

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
        examine(model, loss, optimizer)
        if capture not in (None, True, False):
            msg = f"capture must be True, False or None, got {described(capture)}"
            raise InputError(msg)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.metrics = find_metrics(metrics)
        self.capture = capture
        self.state = TrainingState(fresh_seed(rng))
        # What the last `fit` was asked to do:
        self.batch_size = self.steps_per_epoch = self.last_epoch = 0
        self.callbacks: list[Callback] = []
        self.expected: list[str] = []  # what its records hold, …
        self.may_have_more = True  # … apart from what others put into them
        self.resumed: Checkpoint | None = None
        self.run: Run | None = None
        # What earlier checks found:
        self.sample_shape: tuple[int, ...] | None = None
        self.quantities: list[str] = []  # the loss, and what the metrics measure
        self._checked = CheckedLoss(loss)
        self._compared = parameters_of(self)
        self._stepper: Stepper | None = None  # of the last `fit`

    def __repr__(self) -> str:
        model, loss = type(self.model).__name__, repr(self.loss)
        return f"Trainer({model}, {loss}, {self.optimizer!r}, rng={self.seed})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the steps, which belong to a device and its data: a copy makes its own."""
        state = copy(self.state)
        state.loss = self.current_loss
        return vars(self) | {"state": state, "_stepper": None}

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
            each epoch, and later steps have been made. Without validation data, also where the
            last step makes parameters infinite or nan. `TerminateOnNaN` makes an end of training
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
        if self.run is not None:
            msg = "this trainer is in a fit already; call fit when that has returned"
            raise InputError(msg)
        epochs = integer("epochs", epochs, least=1)
        self.batch_size = integer("batch_size", batch_size, least=1)
        given, callbacks = (x, y), callbacks_of(callbacks)
        # Model, loss, optimizer and data, checked before the first step.
        self._checked = CheckedLoss(self.loss)
        if parameters_of(self) != self._compared:
            compare(self.model, self.loss, self.optimizer)
            self._compared = parameters_of(self)
        data, validation = self._admit(x, y), None
        if validation_data is not None:
            validation = self._admit(*pair_of(validation_data))
            check_alike(validation, data)
        # What this fit is asked to do.
        self.expected = expected_names(self.quantities, validated=validation is not None)
        self.may_have_more = adds_names(self.metrics.values(), callbacks)
        self.steps_per_epoch = -(-len_of(data[0]) // self.batch_size)
        self.resumed = None if resume is None else open_checkpoint(resume)
        first = self.resumed.first_epoch if self.resumed else self.epochs_done
        self.last_epoch = first + epochs
        self.state.begin_fit(first)
        steps = steps_to_come(
            self.optimizer.steps, epochs * self.steps_per_epoch, self.steps_per_epoch, self.resumed
        )
        check_schedule(self.optimizer, callbacks, steps)
        if on_terminal() if verbose is None else verbose:
            callbacks.append(ProgressBar())
        # Callbacks that write files are called last: they save what the others did.
        self.callbacks = sorted(callbacks, key=lambda callback: callback.call_order)
        stepper = self._new_stepper(given, data)
        try:
            self.run = Run(self, self.batch_size, data, validation)
            with stop_on_interrupt(self.stop), begun(self.callbacks, self):
                if self.resumed:
                    restore(self, self.resumed)
                while self.epochs_done < self.last_epoch and not self.stop_reason:
                    try:
                        train_epoch(self, stepper, data, validation)
                        if validation is None and self.epochs_done == self.last_epoch:
                            self._check_parameters()  # no loss has seen the last step
                    except NonFiniteError as error:
                        if not told_not_finite(self.callbacks, self, error):
                            raise
                        self.stop(str(error))
        finally:
            self.run = None  # it holds the data
            stepper.end()
            if stepper.refused:
                self.capture = False  # not again
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
        return evaluate(self, *self._admit(x, y), batch_size)

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
        x = admit_alone(self.model, x, self.sample_shape)
        return predict(self.model, x, batch_size)

    def stop(self, reason: str) -> None:
        """End training after the current step; `reason` becomes ``history.stopped``."""
        self.state.stop(reason)

    # --- where it stands ---

    seed = _OfState[int]()
    stream = _OfState[Stream]()
    epochs_done = _OfState[int]()
    first_epoch = _OfState[int]()
    steps_done = _OfState[int]()
    history = _OfState[History]()
    stop_reason = _OfState[str]()

    @property
    def current_loss(self) -> Array:
        """The loss of the last step; a 0-d array, where the model lives."""
        return self.state.loss if self._stepper is None else self._stepper.loss()

    @current_loss.setter
    def current_loss(self, value: Array) -> None:
        self.state.loss = value

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""
        return self.state.elapsed()

    def measured(self) -> Averages:
        """What has been measured in the epoch that is under way."""
        if self._stepper is not None:
            self._stepper.tell()
        return self.state.averages

    # --- one step ---

    def step(self, x: Array, y: Array) -> Array:
        """One update of all parameters from one batch; returns the prediction it was made from.

        The value of the loss becomes ``trainer.current_loss``, on the device.
        """
        stream, loss = self.state.stream, self._checked
        if loss.loss is not self.loss:
            loss = self._checked = CheckedLoss(self.loss)
        with on_device_of(x):
            stream.advance(self.optimizer.steps)
            prediction, self.current_loss = update(self, loss, x, y, stream)
        return prediction

    def _new_stepper(self, given: Pair, data: Pair) -> Stepper:
        """The stepper of this `fit`; recordings of the last one serve again where they can."""
        self.state.loss = self.current_loss  # before its row is another's
        own_step = type(self).step is not Trainer.step
        before, self._stepper = self._stepper, None
        self._stepper = stepper_for(
            self, given, data, capture=self.capture, before=before, own_step=own_step
        )
        return self._stepper

    # --- at the door, and when something went wrong ---

    def _backend(self) -> Backend:
        return self.model.backend() or get_backend()

    def _admit(self, x: Any, y: Any) -> Pair:
        """Data where the model lives, checked."""
        (x, y), self.quantities = admit(self, x, y)
        self.sample_shape = tuple(x.shape[1:])
        return x, y

    def _check_parameters(self) -> None:
        if msg := spoiled(self, self.epochs_done):
            self.history.stopped = msg
            raise NonFiniteError(msg)
