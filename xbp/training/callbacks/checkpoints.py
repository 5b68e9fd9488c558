"""A callback that writes checkpoints, from which training can be resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from xbp.arguments import choice, integer
from xbp.backend import to_numpy
from xbp.errors import DataError
from xbp.paths import path_of, same_place
from xbp.staging import sweep
from xbp.training.callbacks.base import Callback, Training
from xbp.training.callbacks.monitoring import check_monitored, improved, monitored, sign_of
from xbp.training.files.checkpoints import BEST, Checkpoint, checkpoints_in, open_checkpoint
from xbp.training.files.resume import write_snapshot
from xbp.training.history import Record


class Checkpoints(Callback):
    """Write a checkpoint after each epoch and, optionally, every few steps.

    A checkpoint is one safetensors file with the parameters, running statistics and other
    constants, the optimizer's state, the position, the history and the state of the other
    callbacks. It appears whole or not at all, even if the process is killed. The same program with
    ``trainer.fit(…, resume=folder)`` then goes on from the last one, and ends with equal bits on
    one backend with one number of threads; see `xbp.training.files.resume`.

    Parameters
    ----------
    folder : path-like
        Made if it is missing. It holds ``step-00000120.safetensors``, …, and with `monitor`
        ``best.safetensors``.
    every : int, optional
        Steps between two checkpoints, counted over all epochs, in addition to those after epochs.
    keep : int, default 3
        How many of the latest checkpoints are kept.
    monitor : str, optional
        A name in the records, such as ``"val_loss"``: the checkpoint of its best epoch is kept too.
        Epochs of several calls of `fit` with this object count together. A value that is infinite
        or nan is never the best.
    mode : {"auto", "min", "max"}, default "auto"
        As in `EarlyStopping`.
    notes : mapping, optional
        JSON values to store in each checkpoint.

    Raises
    ------
    InputError
        An argument is out of range; or, in `fit`, there is no such record.
    DataError
        In `fit`: the folder cannot be written to, or holds checkpoints of another run; or a
        checkpoint cannot be written, for instance to a full disk. Training ends then, and earlier
        checkpoints stay whole.

    Notes
    -----
    It is called after all other callbacks, wherever it stands in their list, and so saves what they
    have done. Ctrl-C leaves a checkpoint of the last step.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import xbp
    >>> from xbp import nn, optim
    >>> from xbp.training import Checkpoints
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> def train(epochs, **resume):
    ...     model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0))
    ...     optimizer = optim.Adam(model.parameters())
    ...     trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0)
    ...     checkpoints = [Checkpoints(resume["resume"])] if resume else []
    ...     return trainer.fit(x, y, epochs, callbacks=checkpoints, **resume)["loss"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = train(2, resume=folder), train(5, resume=folder)
    >>> len(first), second == train(5)
    (2, True)
    """

    call_order = 3  # after ModelCheckpoint, as it saves that one's state too

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int | None = None,
        *,
        keep: int = 3,
        monitor: str | None = None,
        mode: str = "auto",
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = path_of(folder, "a folder of checkpoints")
        self.every = None if every is None else integer("every", every, least=1)
        self.keep = integer("keep", keep, least=1)
        self.monitor = monitor
        choice("mode", mode, ("auto", "min", "max"))
        self.sign = 1 if monitor is None else sign_of(monitor, mode)
        self.notes = dict(notes or {})
        self.owner: Training | None = None  # the trainer that has written to the folder
        self.best: float | None = None

    def on_fit_begin(self, trainer: Training) -> None:
        if self.monitor is not None:
            check_monitored(trainer, self.monitor)
        if trainer.share.first:
            self._enter_folder(trainer)

    def _enter_folder(self, trainer: Training) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = checkpoints_in(self.folder)
            sweep(self.folder)
        except OSError as error:
            msg = f"{str(self.folder)!r} cannot hold checkpoints ({error.strerror}); choose another"
            raise DataError(msg) from None
        resumed = trainer.resumed
        own = resumed is not None and same_place(resumed.file.path.parent, self.folder)
        if found and not own and self.owner is not trainer:
            msg = (
                f"{str(self.folder)!r} holds checkpoints of another run, such as {found[-1].name}; "
                "resume it, or choose or empty the folder"
            )
            raise DataError(msg)
        if own:
            last = open_checkpoint(self.folder)
            assert last is not None and trainer.resumed is not None
            if last.steps > trainer.resumed.steps:
                msg = (
                    f"{trainer.resumed.file.name} is not the last checkpoint, which is that of "
                    f"step {last.steps}; resume that, or move the later ones away"
                )
                raise DataError(msg)
        if own or self.owner is not trainer:
            self.best = None
        self.owner = trainer
        if self.monitor is not None and own and self.folder / BEST in found:
            best = Checkpoint(self.folder / BEST)
            self.best = monitored(best.records[-1], self.monitor) if best.records else None

    def on_step_end(self, trainer: Training, step: int) -> None:
        if step == trainer.steps_per_epoch:
            return  # `on_epoch_end` writes this one
        due = self.every is not None and trainer.optimizer.steps % self.every == 0
        # A device may report nan steps later; such a state must not replace good checkpoints.
        if (due or trainer.stop_reason) and math.isfinite(to_numpy(trainer.current_loss)):
            self._write(trainer)

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        if epoch != trainer.epochs_done:
            return  # stopped in the middle, and written by `on_step_end`
        if self.monitor is not None:
            value = monitored(record, self.monitor)
            if improved(self.best, value, self.sign):
                self.best = value
                self._write(
                    trainer, BEST
                )  # first, so that each checkpoint has its best one beside it
        self._write(trainer)

    def _write(self, trainer: Training, name: str = "") -> None:
        path = self.folder / (name or f"step-{trainer.optimizer.steps:08}.safetensors")
        write_snapshot(trainer, path, notes=self.notes)
        if not trainer.share.first:
            return
        steps = [path for path in checkpoints_in(self.folder) if path.name != BEST]
        for old in steps[: -self.keep]:
            with suppress(OSError):
                old.unlink()
