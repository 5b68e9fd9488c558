"""Callbacks: what a `Trainer` calls between its steps and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xbp.errors import InputError, NonFiniteError
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer


class Callback:
    """Base of all callbacks; a subclass overrides what it needs.

    Any of them may call ``trainer.stop(reason)``: training ends after the current step.

    One that remembers something from step to step defines `state_dict` and `load_state_dict`, so
    that a run that was interrupted goes on exactly. There `on_fit_begin` and, in the middle of an
    epoch, `on_epoch_begin` are called first; then all state is restored, the model's and the
    optimizer's too, so that nothing they do is done twice.

    A callback may put numbers into the record of an epoch: Python's, numpy scalars or 0-d arrays,
    of which Python numbers are made.
    """

    call_order: int = 0  # those with a larger one are called after those with a smaller one

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Before the first step of an epoch, counted from 1."""

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        """After each step, counted from 1 in each epoch. What it reads, the device must finish."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        """After validation, when the record of the epoch is complete."""

    def on_not_finite(self, trainer: Trainer, error: NonFiniteError) -> bool:
        """The loss became infinite or nan: whether to end training, in place of raising `error`."""
        return False

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when training was stopped or failed.

        Not where its own `on_fit_begin` has failed, or was never reached.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, from `on_fit_begin` on: names to arrays, or to what JSON can say."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` gave. It comes from a file: check it, and raise ValueError."""


class LambdaCallback(Callback):
    """Any functions as a callback: each takes what the method of its name takes.

    Parameters
    ----------
    on_fit_begin, on_epoch_begin, on_step_end, on_epoch_end, on_fit_end : callable, optional
        ``on_epoch_end(trainer, epoch, record)``, ``on_step_end(trainer, step)``, …: see `Callback`.

    Raises
    ------
    InputError
        Something is not callable.

    Examples
    --------
    >>> from xbp.training import LambdaCallback
    >>> show = LambdaCallback(on_epoch_end=lambda trainer, epoch, record: print(record["loss"]))
    """

    def __init__(
        self,
        *,
        on_fit_begin: Callable[[Trainer], object] | None = None,
        on_epoch_begin: Callable[[Trainer, int], object] | None = None,
        on_step_end: Callable[[Trainer, int], object] | None = None,
        on_epoch_end: Callable[[Trainer, int, Record], object] | None = None,
        on_fit_end: Callable[[Trainer], object] | None = None,
    ) -> None:
        functions = {name: f for name, f in locals().items() if name[:3] == "on_" and f is not None}
        for name, function in functions.items():
            if not callable(function):
                msg = f"{name} must be a function, got {type(function).__name__}"
                raise InputError(msg)
        vars(self).update(functions)  # in place of the methods


@contextmanager
def begun(callbacks: Sequence[Callback], trainer: Trainer) -> Iterator[None]:
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


def _end(callbacks: Sequence[Callback], trainer: Trainer, earlier: BaseException | None) -> None:
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
