"""Callbacks: what a `Trainer` calls between its steps and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from xbp.arguments import name_of, takes
from xbp.backend import Array
from xbp.errors import InputError, NonFiniteError
from xbp.training.files.checkpoints import Checkpoint
from xbp.training.history import History, Record
from xbp.training.metrics.averages import Averages
from xbp.training.run import Run
from xbp.training.state import Pieces, TrainingState


class Training(Pieces, Protocol):
    """A training, as its callbacks see it: what a `Trainer` is for them.

    Attributes
    ----------
    model, loss, optimizer, metrics
        What is trained, by what, and what is measured.
    batch_size, steps_per_epoch, last_epoch : int
        What `fit` was asked to do; epochs are counted over all `fit`.
    seed : int
        Of shuffles and masks.
    epochs_done : int
        How many epochs have been done, over all `fit`.
    current_loss : 0-d array
        The value of the last step, where the model lives.
    history : History
        The records of the epochs of this `fit`.
    stop_reason : str
        Why training ends after this step; empty as long as it goes on.
    expected : list of str
        What the record of an epoch will hold, …
    may_have_more : bool
        … and whether a callback or metric of somebody else may put more into it.
    callbacks : list of Callback
        All of this `fit`, in the order in which they are called.
    resumed : Checkpoint or None
        Where this `fit` goes on.
    run : Run or None
        What tells this `fit` from another one; None where none is under way.
    state : TrainingState
        All that changes, for what saves it.
    """

    batch_size: int
    steps_per_epoch: int
    last_epoch: int
    expected: list[str]
    may_have_more: bool
    callbacks: list[Callback]
    resumed: Checkpoint | None
    run: Run | None
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
        """What has been measured in the epoch that is under way."""

    def step(self, x: Array, y: Array) -> Array:
        """One more update from a batch; returns the prediction it was made from."""

    def evaluate(self, x: Any, y: Any, batch_size: int = 512) -> dict[str, float]:
        """The loss and each metric over a whole set, in inference mode."""

    def predict(self, x: Any, batch_size: int = 512) -> Array:
        """The model's outputs for all samples, in inference mode."""


class Callback:
    """Base of all callbacks; a subclass overrides what it needs.

    What they see of the trainer is a `Training`. Any of them may call ``trainer.stop(reason)``:
    training ends after the current step.

    One that remembers something from step to step defines `state_dict` and `load_state_dict`, so
    that a run that was interrupted goes on exactly. There `on_fit_begin` and, in the middle of an
    epoch, `on_epoch_begin` are called first; then all state is restored, the model's and the
    optimizer's too, so that nothing they do is done twice.

    A callback may put numbers into the record of an epoch: Python's, numpy scalars or 0-d arrays,
    of which Python numbers are made.
    """

    call_order: int = 0  # those with a larger one are called after those with a smaller one

    def on_fit_begin(self, trainer: Training) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1."""

    def on_step_end(self, trainer: Training, step: int) -> None:
        """After each step, counted from 1 in each epoch. What it reads, the device must finish."""

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        """After validation, when the record of the epoch is complete."""

    def on_not_finite(self, trainer: Training, error: NonFiniteError) -> bool:
        """The loss became infinite or nan: whether to end training, in place of raising `error`."""
        return False

    def on_fit_end(self, trainer: Training) -> None:
        """After the last epoch, also when training was stopped or failed.

        Not where its own `on_fit_begin` has failed, or was never reached.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, from `on_fit_begin` on: names to arrays, or to what JSON can say."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave. It comes from a file: check it, and raise ValueError."""


HOOKS = {
    "on_fit_begin": ("trainer",),
    "on_epoch_begin": ("trainer", "epoch"),
    "on_step_end": ("trainer", "step"),
    "on_epoch_end": ("trainer", "epoch", "record"),
    "on_not_finite": ("trainer", "error"),
    "on_fit_end": ("trainer",),
}
"""What a `Trainer` calls of a callback, with which arguments."""


class LambdaCallback(Callback):
    """Any functions as a callback: each takes what the method of its name takes.

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
    """`on_fit_begin` of all; in the end, from the last to the first, `on_fit_end`.

    Only those end that have begun, and all of them do. The first error is the one that is raised;
    later ones are notes of it.
    """
    started: list[Callback] = []
    try:
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
        del first, earlier  # no circle of references, so that memory is free at once


def told_not_finite(
    callbacks: Sequence[Callback], trainer: Training, error: NonFiniteError
) -> bool:
    """Whether a callback ends training in place of raising `error`.

    Where one fails, that becomes a note of `error`, which then is raised.
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
