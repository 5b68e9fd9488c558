"""The model of each epoch, or of the best one, in a file."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from xbp.arguments import choice
from xbp.errors import InputError
from xbp.paths import path_of
from xbp.training.callbacks.base import Callback, Training, as_validated
from xbp.training.callbacks.monitoring import check_monitored, improved, monitored, sign_of
from xbp.training.files.resume import write_snapshot
from xbp.training.files.weights import save_weights
from xbp.training.files.writing import check_writable
from xbp.training.history import Record


class _Any(dict[str, Any]):
    """A record that has a value for every name, as a user's callback may add any of them."""

    def __init__(self, value: int) -> None:
        self.value = value  # an int, which all formats of numbers accept

    def __missing__(self, name: str) -> int:
        return self.value


class ModelCheckpoint(Callback):
    """Write the model after each epoch, or after each that is the best so far.

    This is Keras's callback of the same name; to resume training after a kill, use `Checkpoints`.
    The best value is that of all epochs that the object has seen, in every `fit` of every trainer,
    so that a better file is never replaced by a worse one. A value that is infinite or nan is never
    the best.

    Parameters
    ----------
    path : path-like
        A .safetensors file, replaced as a whole each time; or, for one file an epoch, a pattern
        with names in the record: ``"digits-{epoch:02d}-{val_loss:.3f}.safetensors"``.
    monitor : str, default "val_loss"
        A name in the records, for `save_best_only`.
    mode : {"auto", "min", "max"}, default "auto"
        As in `EarlyStopping`, for `save_best_only`.
    save_best_only : bool, default False
    save_weights_only : bool, default False
        Whether to write the model alone, for `load_weights` or `load_model`: as it was validated,
        so beside an `ExponentialMovingAverage` with the averaged weights. By default a whole
        checkpoint is written, with the optimizer's state and the history; those functions read it
        too, and so does ``fit(resume=path)``.

    Raises
    ------
    InputError
        An argument is out of range; or, in `fit`, there is no such record, or the path is no
        pattern.
    DataError
        The file cannot be written, found out before the first step where possible; an older file
        stays untouched.

    Warns
    -----
    UserWarning
        No value was finite in a `fit`, so nothing was written.

    Examples
    --------
    >>> from xbp.training import ModelCheckpoint
    >>> best = ModelCheckpoint("best.safetensors", "val_accuracy", save_best_only=True)
    """

    call_order = 2  # last but for Checkpoints, as a checkpoint holds the others' state

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        mode: str = "auto",
        save_best_only: bool = False,
        save_weights_only: bool = False,
    ) -> None:
        self.path, self.monitor = str(path_of(path, "a model's file")), monitor
        choice("mode", mode, ("auto", "min", "max"))
        self.sign = sign_of(monitor, mode) if save_best_only else 1
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best: float | None = None

    def on_fit_begin(self, trainer: Training) -> None:
        if self.save_best_only:
            check_monitored(trainer, self.monitor)
        first, second = (self._example(trainer, value) for value in (1, 2))
        if (
            Path(first).parent == Path(second).parent
        ):  # the folder depends on no value in the record
            if trainer.share.first:
                check_writable(first)

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if epoch != trainer.epochs_done:
            return  # stopped in the middle, without validation
        if self.save_best_only:
            value = monitored(record, self.monitor)
            if not improved(self.best, value, self.sign):
                return
            self.best = value
        path = self._path(record)
        if not self.save_weights_only:
            write_snapshot(trainer, path)
        elif trainer.share.first:
            validated = any(name.startswith("val_") for name in record)
            with as_validated(trainer) if validated else nullcontext():
                save_weights(trainer.model.state_dict(), path, model=trainer.model)

    def on_fit_end(self, trainer: Training) -> None:
        measured = any(self.monitor in record for record in trainer.history.records)
        if self.save_best_only and self.best is None and measured:
            msg = f"{self.path!r} was not written, as no {self.monitor} was finite"
            warnings.warn(msg, UserWarning, stacklevel=2)

    def _example(self, trainer: Training, value: int) -> str:
        """The path for the next epoch, with `value` in place of every measured value."""
        record = _Any(value) if trainer.may_have_more else {}
        epochs = trainer.resumed.epochs_done if trainer.resumed else trainer.epochs_done
        record |= dict.fromkeys(trainer.expected, float(value)) | {"epoch": epochs + 1}
        return self._path(record)

    def _path(self, record: Record) -> str:
        try:
            return self.path.format_map(record)
        except KeyError as error:
            monitored(record, error.args[0])
            raise
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            msg = f"{self.path!r} is no pattern for a file ({error}); write e.g. '{{loss:.3f}}'"
            raise InputError(msg) from None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
