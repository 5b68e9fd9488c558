"""The training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

from xbp import parallel
from xbp.arguments import described, integer
from xbp.backend import Array, on_device_of
from xbp.data.sources import is_stream
from xbp.errors import InputError
from xbp.nn import Layer, Loss
from xbp.optim import Optimizer
from xbp.parallel import Group
from xbp.random import Seed
from xbp.training.callbacks.base import Callback
from xbp.training.callbacks.progress import progress
from xbp.training.capture import stepper_for
from xbp.training.door.batches import Gate
from xbp.training.door.data import admit_alone, on_device_of_model
from xbp.training.door.pieces import check_pieces, compare, examine, parameters_of
from xbp.training.epoch import train
from xbp.training.evaluation import evaluate, predict
from xbp.training.feeds import feed_of, sample_shape, slices
from xbp.training.files.checkpoints import Checkpoint
from xbp.training.fingerprint import Fingerprint
from xbp.training.history import History
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.names import MetricLike, find_metrics
from xbp.training.plan import Plan, facts, make_plan
from xbp.training.results import CheckedLoss
from xbp.training.scaling import scaling_for
from xbp.training.share import share_of
from xbp.training.state import Pair, Stateful, TrainingState
from xbp.training.steps import Stepper, update
from xbp.training.streamed import streamed_inputs


class Trainer(Stateful):
    """Fits a model to data: shuffled minibatches, validation, metrics, callbacks, a history.

    The order of epoch e depends on (seed, e) alone, the dropout masks of step t on (seed, t). So
    equal seeds give equal histories, bit for bit, on one backend with one number of threads, and
    equal batches and masks on all backends.

    Parameters
    ----------
    model : Layer
    loss : Loss, or callable ``(prediction, target) -> (value, gradient)``
        The value may be a number or a 0-d array.
    optimizer : Optimizer
        Made from ``model.parameters()``.
    metrics : sequence of str, Metric or callable, default ()
        Names such as ``"accuracy"`` and ``"f1"`` (`xbp.training.METRICS`), metrics such as
        ``ConfusionMatrix()``, or functions ``(prediction, target) -> number or 0-d array`` that
        give the mean over a batch.
    rng : int, numpy.random.Generator or None
        Seed of shuffles and masks.
    capture : bool, optional
        Whether a step is captured and replayed, with the same results, bit for bit: on a GPU (CuPy,
        PyTorch on CUDA) as a CUDA graph, with numpy as a list of calls. True by default, unless the
        environment variable XBP_CAPTURE is 0. If a step cannot be captured, training goes on
        without, on a GPU after one warning; with an explicit True it is an error. See the notes.
    group : {"mpi", "nccl", "alone"} or Group, optional
        The processes that train together (`xbp.parallel.group`), each a share of every batch, with
        the results of one process, to rounding. All of them construct the same trainer, and call
        the same methods with the same data; see the notes.
    compare_ranks : bool, default True
        Whether to compare the ranks' parameters and buffers after each epoch, by their hashes.
    precision : {"float32", "tf32", "float16", "bfloat16"}, default "float32"
        The format to which forward and backward round the factors of products, as `xbp.precision`
        does; parameters, sums, updates, evaluation and prediction keep their dtype. In float16 the
        loss is scaled by a factor that is searched during training; see the notes.

    Raises
    ------
    InputError
        A model, loss, optimizer or metric has the wrong type, or the optimizer has none of the
        model's parameters; there is no precision of that name.

    Warns
    -----
    UserWarning
        The optimizer lacks trainable parameters of the model, or has others; the model ends with a
        softmax or sigmoid although the loss has its own; a layer keeps an array outside a
        `Parameter`.

    Notes
    -----
    A captured step runs no Python: whatever a layer or a loss computes on the host is frozen.

    - If an attribute of a layer or a loss changes between steps, the step is captured again.
      Changes of values stored elsewhere are not noticed.
    - A layer that changes its own attributes in its forward is refused.
    - xbp's metrics and functions are captured too; a user's own `Metric` is updated after each
      step. Callbacks are called as in eager steps.
    - The trainer keeps the graph, and with it the data on the device, for its next `fit`.

    With numpy a step is captured if model, loss, optimizer and augmentation are of xbp's own
    classes, and if its arrays take at most 4 MiB, as larger steps gain little. Other steps are made
    as ever: a user's code is called in each step. Recurrent layers and losses with weights of
    classes are not captured yet.

    Run on a GPU with CuPy; not yet with PyTorch on CUDA.

    In float16, the loss is multiplied by 2¹⁶ before the backward, and the gradients are divided by
    it, as small ones would be rounded to 0. If a gradient is infinite or nan, the step changes
    nothing, and the factor is halved; after 2,000 good steps in a row it is doubled. The device
    decides that. An omitted step counts, for schedules and Adam's corrections, too, and running
    statistics have moved. The factor is `loss_scale`, and part of a checkpoint.

    With several ranks, rank r of n computes the rows r, r + n, … of each batch, and one sum over
    all ranks a step makes gradients and loss those of the batch.

    - A `fit` begins with the parameters and buffers of rank 0, and where `rng` is None with its
      seed. Losses, metrics, the history and what callbacks see are the same on all ranks, bit for
      bit; a user's own `Metric` is given whole batches, unless it defines `Metric.addends`.
    - Rank 0 alone prints and writes files. A checkpoint is resumed by any number of ranks.
    - A rank that leaves a call out lets the others wait: call `fit`, `evaluate`, `predict` and
      `save` on all ranks, also in callbacks.
    - A subclass with a `step` of its own reduces its gradients itself (`xbp.parallel`).

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
        group: str | Group | None = None,
        compare_ranks: bool = True,
        precision: str = "float32",
    ) -> None:
        check_pieces(model, loss, optimizer)
        self.precision = precision
        self.group = parallel.group(group)
        self.share = share_of(self.group)
        with self.share.quiet():
            examine(model, loss, optimizer)
        if capture not in (None, True, False):
            msg = f"capture must be True, False or None, got {described(capture)}"
            raise InputError(msg)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.metrics = find_metrics(metrics)
        self.augment: Callable[..., tuple[Array, Any]] | None = None  # of the last `fit`
        self.capture = capture
        self.compare_ranks = compare_ranks
        self.state = TrainingState(self.share.seed(rng))
        # Arguments of the last `fit`:
        self.batch_size = self.part = self.steps_per_epoch = self.last_epoch = 0
        self.samples = 0  # 0 also for an iterable of batches
        self.callbacks: list[Callback] = []
        self.all_callbacks: list[Callback] = []  # with those that only rank 0 calls
        self.expected: list[str] = []  # names in its records
        self.may_have_more = True  # whether a user's callback or metric may add names
        self.resumed: Checkpoint | None = None
        self.fingerprint: Fingerprint | None = None
        # Results of earlier checks:
        self.sample_shape: tuple[int, ...] | None = None
        self._checked = CheckedLoss(loss)
        self._compared = parameters_of(self)
        self._stepper: Stepper | None = None  # of the last `fit`

    def __repr__(self) -> str:
        model, loss = type(self.model).__name__, repr(self.loss)
        return f"Trainer({model}, {loss}, {self.optimizer!r}, rng={self.seed})"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the stepper, which belongs to a device: a copy makes its own."""
        state = copy(self.state)
        state.loss = self.current_loss
        return vars(self) | {"state": state, "_stepper": None}

    # --- training, evaluation, prediction ---

    @on_device_of_model
    def fit(
        self,
        x: Any,
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Any = None,
        callbacks: Iterable[Callback] | None = (),
        *,
        accumulate: int = 1,
        drop_last: bool = False,
        augment: Callable[..., tuple[Array, Any]] | None = None,
        verbose: bool | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some epochs, and return their history.

        A second call goes on where the first one ended, with a history of its own; an epoch that
        was stopped in the middle starts again. The docstring of a callback says whether it
        remembers earlier calls. Ctrl-C ends training after the current step; a second Ctrl-C ends
        it at once. (Not if SIGINT is ignored, or its handler is not Python's.)

        Parameters
        ----------
        x, y : arrays of any library, with samples along the first axis
            Moved to the model's backend as a whole, once; floating-point x is converted to the
            dtype of the model's parameters. In place of both, as `x` alone: a source
            (`xbp.data.Source`), or any iterable of batches (x, y), such as a PyTorch DataLoader,
            which is gone through once an epoch. Their batches are read ahead by a thread, and
            copied to the device beside its work.
        epochs : int, default 1
        batch_size : int, default 32
            The last batch of an epoch may be smaller; see `drop_last`. An iterable has batches of
            its own.
        validation_data : (x, y), source or iterable of batches, optional
            Evaluated after each epoch.
        callbacks : iterable of Callback
        accumulate : int, default 1
            Batches whose gradients make one step, as one batch of ``accumulate * batch_size``
            samples would, to rounding, with the memory of one of `batch_size`. What the model draws
            or keeps in training (dropout masks, running statistics), it does for each batch. Steps,
            schedules and callbacks count updates; outputs are kept until the step, for metrics. Not
            for iterables, whose batches are made elsewhere.
        drop_last : bool, default False
            Whether the samples that are left for a last, smaller batch (with `accumulate`, a
            smaller step) of an epoch are left out; the shuffle leaves out others in each epoch. For
            models that a batch of one sample cannot train, as `BatchNorm` may not be.
        augment : callable ``(x, y, *, rng) -> (x, y)``, optional
            Changes the batch of each step, where it lies, before the model sees it, such as
            ``data.Compose(data.Flip(), data.ShiftedCrop(4))``; `rng` is the stream of the step.
            Metrics look at the targets as they were.
        verbose : bool, optional
            Whether to show progress: a bar, or in a notebook growing curves; by default there, and
            if the output is a terminal.
        resume : path-like, optional
            A checkpoint, or a folder of `Checkpoints`, which stands for its last one. Training goes
            on from there, with the result of a run that was never interrupted (see
            `xbp.training.files.resume`). If the folder is missing or empty, training starts from
            the beginning. Data, model, loss, optimizer, batch size and callbacks with a state must
            be those of the interrupted call; `epochs`, counted from its beginning, may be larger.

        Returns
        -------
        History
            Also available as ``trainer.history``, from the first step on.

        Raises
        ------
        InputError
            Before the first step: data do not fit each other, the model, the loss or a metric; a
            callback monitors a name that no record will have; the schedule gives no learning rate
            for the last step; the last batch would have one sample, which the model refuses in
            training (`drop_last`); or the checkpoint belongs to another run. During training: the
            loss, a metric, a schedule or a callback returned something other than numbers; a batch
            of a source or an iterable does not fit.
        DataError
            The checkpoint is malformed.
        NonFiniteError
            The loss became infinite or nan. On a CPU, where reading it is free, the parameters are
            those before that step. On a device, losses are transferred to the host every 50 steps
            and checked when they arrive, at the latest after the epoch, so that later steps have
            been made. Without validation data, also if the last step makes parameters infinite or
            nan. `TerminateOnNaN` ends training in place of the error.
        OutOfMemoryError
            A step needs more memory than there is; the message suggests a batch size.

        Warns
        -----
        UserWarning
            The schedule of the learning rate is made for another number of steps; or as in
            `Trainer`, if the model has changed since.

        Notes
        -----
        A source is shuffled as arrays are: one over arrays gives, bit for bit, the run of the
        arrays, and a resumed run goes on within an epoch. An iterable has an order of its own: a
        run resumes between two of its epochs, and as exactly as it repeats itself; in the middle
        of an epoch that is refused. Where it has no length, the number of steps is not known before
        the end of an epoch, and a schedule is not compared with it.

        The steps of an epoch never wait for a device, apart from callbacks that read values. The
        host waits before them, to check data and targets, and after them, to read losses and
        metrics for the record and the result of the validation.
        """
        if self.fingerprint is not None:
            msg = "this trainer is in a fit already; call fit when that has returned"
            raise InputError(msg)
        self._checked = CheckedLoss(self.loss)
        self.augment = augment
        with self.share.together(), self.share.quiet():
            if parameters_of(self) != self._compared:
                compare(self.model, self.loss, self.optimizer)
                self._compared = parameters_of(self)
            plan = make_plan(
                *(self, x, y, epochs, batch_size, validation_data, callbacks),
                accumulate=accumulate,
                drop_last=drop_last,
                resume=resume,
            )
            plan.feed.make_room()
        shown = progress(verbose)
        if shown is not None and type(shown) not in map(type, plan.callbacks):
            plan.callbacks.append(shown)
        self._follow(plan)
        self.share.align(self.model, {"the seed": self.seed, **facts(plan)})
        feed, validation = plan.feed, plan.validation
        stepper = self._new_stepper(feed.data if is_stream(x) else (x, y), feed.data)
        try:
            self.fingerprint = Fingerprint(self, self.batch_size, feed, validation, part=self.part)
            with self.share.pooled(self.model):
                train(self, stepper, feed, validation)
        finally:
            self.fingerprint = None  # it holds the data
            stepper.end()
            if stepper.refused:
                self.capture = False  # one attempt is enough
            self.optimizer.zero_grad()  # a step that failed leaves no gradients
        self.history.stopped = self.stop_reason or f"all {plan.epochs} epochs done"
        self.share.meet()  # files of callbacks are complete
        return self.history

    @on_device_of_model
    def evaluate(self, x: Any, y: Any = None, batch_size: int = 512) -> dict[str, float]:
        """The loss and each metric over a whole set, in inference mode.

        The set is arrays x and y; or as `x` alone a source, or an iterable of batches (x, y).

        Raises
        ------
        InputError
            Data do not fit each other, the model, the loss or a metric.
        OutOfMemoryError
            A batch needs more memory than there is; the message suggests a size.
        """
        batch_size = integer("batch_size", batch_size, least=1)
        feed, _ = feed_of(self, x, y, batch_size)
        self.sample_shape = sample_shape(feed)
        return evaluate(self, feed, batch_size)

    @on_device_of_model
    def predict(
        self, x: Any, batch_size: int = 512, *, mirror: bool = False, shift: int = 0
    ) -> Array:
        """The model's outputs for all samples, in inference mode, where the model lives.

        Samples are an array; or those of a source or an iterable of batches, x alone or (x, y).
        With several ranks, each computes a share, and all return all outputs.
        With `mirror` or `shift` they are images (N, C, H, W), and an output is a mean over views:
        test-time augmentation. `mirror` adds each view's mirror image (Krizhevsky et al. 2012,
        section 4.1). ``shift=s`` gives half the weight to the image, and a quarter each to the two
        moved by s pixels, up and left, and down and right, with a reflected border (Jordan 2024).

        Raises
        ------
        InputError
            There are no samples, or they do not fit the model.
        OutOfMemoryError
            A batch needs more memory than there is; the message suggests a size.
        """
        batch_size = integer("batch_size", batch_size, least=1)
        if is_stream(x):
            batches = streamed_inputs(x, Gate(self), batch_size)
        else:
            x = admit_alone(self.model, x, self.sample_shape)
            batches = slices(x, batch_size, self.share)
        return predict(self, batches, batch_size, mirror=mirror, shift=shift)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the last `fit` as a folder, as ``xbp train`` does for its networks.

        ``xbp report`` makes a page of it. Models of `xbp.models`, and those of a class that is
        registered (`xbp.models.register`), come back by `xbp.training.load_model`, and are exported
        by ``xbp export``; of others the weights come back by `load_weights`.

        Parameters
        ----------
        folder : path-like
            Made if it is missing. It gets history.csv, model.safetensors and run.json; those of an
            older run are replaced.

        Raises
        ------
        InputError
            There was no `fit`, or it ended before its first epoch.
        DataError
            The folder cannot be made or written to.
        """
        from xbp.training.files.run import save_run

        with self.share.together():
            if self.share.first:
                save_run(self, folder)

    # --- the state of training ---

    @property
    def current_loss(self) -> Array:
        """The loss of the last step; a 0-d array, where the model lives."""
        return self.state.loss if self._stepper is None else self._stepper.loss()

    @current_loss.setter
    def current_loss(self, value: Array) -> None:
        self.state.loss = value

    @property
    def precision(self) -> str:
        """The format of the factors of products in training, which can be set between two `fit`."""
        return self._precision

    @precision.setter
    def precision(self, name: str) -> None:
        self.scaling = scaling_for(name)
        self._precision = name

    @property
    def loss_scale(self) -> float:
        """The factor of the loss in the next backward, read from the device; 1 but in float16."""
        return 1.0 if self.scaling is None else self.scaling.state()[0]

    @property
    def run(self) -> Fingerprint | None:
        """An older name of `fingerprint`."""
        return self.fingerprint

    def measured(self) -> Averages:
        """The averages of the epoch under way."""
        if self._stepper is not None:
            self._stepper.flush()
        return self.state.averages

    # --- one step ---

    def step(self, x: Array, y: Array) -> Array:
        """One update of all parameters from one batch; returns the prediction.

        The value of the loss becomes ``trainer.current_loss``, on the device. With several ranks,
        each is given the whole batch, and returns the prediction for its rows; within `fit`, it is
        given its rows.
        """
        stream, loss = self.state.stream, self._checked
        if loss.loss is not self.loss:
            loss = self._checked = CheckedLoss(self.loss)
        part = 0 if self.fingerprint is None else self.part  # a step by hand is whole
        if self.scaling is not None:
            self.scaling.place(self.optimizer.parameters[0].data)
        with on_device_of(x), self.share.entered(self.model, x, y) as (x, y):
            stream.advance(self.optimizer.steps)
            prediction, self.current_loss = update(self, loss, x, y, stream, part=part)
        return prediction

    def _new_stepper(self, given: Pair, data: Pair) -> Stepper:
        """The stepper of this `fit`, which may replay the recordings of the last one."""
        self.state.loss = self.current_loss  # before its row is overwritten
        own_step = type(self).step is not Trainer.step or "step" in vars(self)
        before, self._stepper = self._stepper, None
        self._stepper = stepper_for(
            self, given, data, capture=self.capture, before=before, own_step=own_step
        )
        return self._stepper

    def _follow(self, plan: Plan) -> None:
        """Keep what callbacks read of the plan, and begin a new history."""
        feed, resumed = plan.feed, plan.resumed
        self.batch_size, self.samples = feed.batch_size, feed.samples
        self.steps_per_epoch = feed.steps
        self.sample_shape = sample_shape(feed)
        self.part, self.resumed = plan.part, resumed
        # Callbacks that write files are called last, so that they save the state of the others.
        self.all_callbacks = sorted(plan.callbacks, key=lambda callback: callback.call_order)
        mine = self.share.first
        self.callbacks = [c for c in self.all_callbacks if mine or not c.first_rank_only]
        self.expected, self.may_have_more = plan.expected, plan.may_have_more
        first = resumed.first_epoch if resumed else self.epochs_done
        self.last_epoch = first + plan.epochs
        self.state.begin_fit(first)
