"""Callbacks, which a `Trainer` calls between steps and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

from xbp.arguments import name_of, takes
from xbp.backend import Array
from xbp.errors import InputError, NonFiniteError
from xbp.training.files.checkpoints import Checkpoint
from xbp.training.fingerprint import Fingerprint
from xbp.training.history import History, Record
from xbp.training.metrics.averages import Averages
from xbp.training.state import Pieces, TrainingState


class Training(Pieces, Protocol):
    """A `Trainer`, as its callbacks see it.

    Attributes
    ----------
    model, loss, optimizer, metrics, augment
        What is trained, how, and what is measured.
    batch_size, steps_per_epoch, last_epoch : int
        The arguments of `fit`; epochs are counted over all calls of `fit`. There are 0 steps an
        epoch where an iterable does not say how many batches it has.
    part : int
        Where gradients are accumulated, samples of each part of a step; else 0.
    seed : int
        Of shuffles and masks.
    epochs_done : int
        How many epochs have been done, over all calls of `fit`.
    current_loss : 0-d array
        The value of the last step, where the model lives.
    history : History
        The records of the epochs of this `fit`.
    stop_reason : str
        Why training ends after this step; empty as long as it goes on.
    expected : list of str
        The names that the record of an epoch will hold.
    may_have_more : bool
        Whether a user's own callback or metric may add names to a record.
    callbacks : list of Callback
        The callbacks of this `fit` that are called in this process, in the order of their calls.
    all_callbacks : list of Callback
        With those that are called on rank 0 alone.
    resumed : Checkpoint or None
        Where this `fit` resumes.
    fingerprint : Fingerprint or None
        What tells this `fit` from another one; None where none is under way.
    state : TrainingState
        Everything that changes during training, for callbacks that save it.
    share : Whole
        The share of each batch that this process computes.
    compare_ranks : bool
        Whether the ranks' models are compared after each epoch.
    """

    compare_ranks: bool
    batch_size: int
    part: int
    steps_per_epoch: int
    last_epoch: int
    expected: list[str]
    may_have_more: bool
    callbacks: list[Callback]
    all_callbacks: list[Callback]
    resumed: Checkpoint | None
    fingerprint: Fingerprint | None
    state: TrainingState

    @property
    def seed(self) -> int: ...

    @property
    def epochs_done(self) -> int: ...

    @property
    def history(self) -> History: ...

    @property
    def stop_reason(self) -> str: ...

    @property
    def current_loss(self) -> Array: ...

    def stop(self, reason: str) -> None:
        """End training after the current step; `reason` becomes ``history.stopped``."""

    def elapsed(self) -> float:
        """The seconds that the epoch under way has taken."""

    def measured(self) -> Averages:
        """The averages of the epoch under way."""

    def step(self, x: Array, y: Array) -> Array:
        """One update from a batch; returns the prediction."""

    def evaluate(self, x: Any, y: Any = None, batch_size: int = 512) -> dict[str, float]:
        """The loss and each metric over a whole set, in inference mode."""

    def predict(
        self, x: Any, batch_size: int = 512, *, mirror: bool = False, shift: int = 0
    ) -> Array:
        """The model's outputs for all samples, in inference mode."""


class Callback:
    """Base of all callbacks; a subclass overrides what it needs.

    Its methods see the trainer as a `Training`. Any of them may call ``trainer.stop(reason)``:
    training ends after the current step.

    A callback that remembers something from step to step defines `state_dict` and
    `load_state_dict`, so that an interrupted run can be resumed exactly. On resuming,
    `on_fit_begin` and, in the middle of an epoch, `on_epoch_begin` are called first. Then the state
    of model, optimizer and callbacks is restored, so that nothing these methods do happens twice.

    A callback may put numbers into the record of an epoch: Python numbers, numpy scalars or 0-d
    arrays, which become Python numbers.

    With several ranks it is called on each of them, where losses, metrics and records are the same.
    What it decides it must decide alike; what only one shall do, such as writing a file, it does
    where ``trainer.share.first`` is true.
    """

    call_order: int = 0
    """Callbacks with a larger number are called later."""

    first_rank_only: bool = False
    """Whether other ranks do not call it, as it does nothing but print or write."""

    def on_fit_begin(self, trainer: Training) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1."""

    def on_step_end(self, trainer: Training, step: int) -> None:
        """After each step, counted from 1 in each epoch. Reading a value waits for the device."""

    def around_validation(self, trainer: Training) -> AbstractContextManager[object]:
        """A context manager around the validation of an epoch.

        It is entered once more where a callback, after the epoch, keeps what was validated.
        """
        return nullcontext()

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        """After validation, with the complete record of the epoch."""

    def on_not_finite(self, trainer: Training, error: NonFiniteError) -> bool:
        """After a loss that is infinite or nan: whether to end training, and not raise `error`."""
        return False

    def on_fit_end(self, trainer: Training) -> None:
        """After the last epoch, also if training was stopped or failed.

        Only if the callback's own `on_fit_begin` has returned.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers since `on_fit_begin`: names to arrays or JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, read from a file; raise ValueError if malformed."""


HOOKS = {
    "on_fit_begin": ("trainer",),
    "on_epoch_begin": ("trainer", "epoch"),
    "on_step_end": ("trainer", "step"),
    "around_validation": ("trainer",),
    "on_epoch_end": ("trainer", "epoch", "record"),
    "on_not_finite": ("trainer", "error"),
    "on_fit_end": ("trainer",),
}
"""The methods of a callback that a `Trainer` calls, and their arguments."""


@contextmanager
def as_validated(trainer: Training) -> Iterator[None]:
    """Within the block the model is as it is validated: all callbacks are around it."""
    with ExitStack() as around:
        for callback in trainer.callbacks:
            around.enter_context(callback.around_validation(trainer))
        yield


class LambdaCallback(Callback):
    """A callback made of functions; each takes the arguments of the method of its name.

    Parameters
    ----------
    on_fit_begin, on_epoch_begin, on_step_end, on_epoch_end, on_fit_end : callable, optional
        ``on_epoch_end(trainer, epoch, record)``, ``on_step_end(trainer, step)``, …: see `Callback`.

    Raises
    ------
    InputError
        Something is not callable, or takes other arguments.

    Examples
    --------
    >>> from xbp.training import LambdaCallback
    >>> show = LambdaCallback(on_epoch_end=lambda trainer, epoch, record: print(record["loss"]))
    """

    def __init__(
        self,
        *,
        on_fit_begin: Callable[[Training], object] | None = None,
        on_epoch_begin: Callable[[Training, int], object] | None = None,
        on_step_end: Callable[[Training, int], object] | None = None,
        on_epoch_end: Callable[[Training, int, Record], object] | None = None,
        on_fit_end: Callable[[Training], object] | None = None,
    ) -> None:
        functions = {name: f for name, f in locals().items() if name[:3] == "on_" and f is not None}
        for name, function in functions.items():
            if not callable(function):
                msg = f"{name} must be a function, got {type(function).__name__}"
                raise InputError(msg)
            takes(name, function, *HOOKS[name])
        vars(self).update(functions)  # in place of the methods


@contextmanager
def begun(callbacks: Sequence[Callback], trainer: Training) -> Iterator[None]:
    """Call `on_fit_begin` of all, and at the end `on_fit_end`, from the last to the first.

    `on_fit_end` is called exactly for those whose `on_fit_begin` has returned. The first error is
    raised; later ones become notes of it.
    """
    started: list[Callback] = []
    try:
        with trainer.share.together():
            for callback in callbacks:
                callback.on_fit_begin(trainer)
                started.append(callback)
        yield
    except BaseException as error:
        _end(started, trainer, error)
        raise
    _end(started, trainer, None)


def _end(callbacks: Sequence[Callback], trainer: Training, earlier: BaseException | None) -> None:
    first = earlier
    try:
        for callback in reversed(callbacks):
            try:
                callback.on_fit_end(trainer)
            except BaseException as error:
                if first is None:
                    first = error
                else:
                    what = f"{type(callback).__name__}.on_fit_end"
                    first.add_note(f"and {what} failed: {type(error).__name__}: {error}")
        if first is not None and first is not earlier:
            raise first
    finally:
        del first, earlier  # no reference cycle, so that memory is freed at once


def told_not_finite(
    callbacks: Sequence[Callback], trainer: Training, error: NonFiniteError
) -> bool:
    """Whether a callback ends training in place of raising `error`.

    If a callback fails, its failure becomes a note of `error`, which is then raised.
    """
    for callback in callbacks:
        try:
            if callback.on_not_finite(trainer, error):
                return True
        except Exception as later:
            what = name_of(callback.on_not_finite)
            error.add_note(f"and {what} failed: {type(later).__name__}: {later}")
            return False
    return False
