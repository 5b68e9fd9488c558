"""A progress bar for terminals, by rich; it is imported only when it is shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from xbp.backend import to_numpy
from xbp.training.callbacks import Callback
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training.trainer import Trainer


class ProgressBar(Callback):
    """One bar an epoch: samples a second, current loss, time left; then the record of the epoch.

    The loss, for which the device must be waited for, is read a few times a second at most.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self.progress.start()

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        self.task = self.progress.add_task(
            f"epoch {epoch}/{trainer.last_epoch}", total=trainer.steps_per_epoch, status=""
        )
        self.shown = 0.0

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        now = self.progress.get_time()
        if now - self.shown < 0.2 and step < trainer.steps_per_epoch:
            return
        self.shown = now
        elapsed = self.progress.tasks[self.task].elapsed or 1e-9
        rate = step * trainer.batch_size / elapsed
        status = f"{rate:,.0f}/s  loss {float(to_numpy(trainer.current_loss)):.4f}"
        self.progress.update(self.task, completed=step, status=status)

    def on_epoch_end(self, trainer: Trainer, epoch: int, record: Record) -> None:
        shown = [f"{name} {value:.4f}" for name, value in record.items() if name != "epoch"]
        self.progress.update(self.task, status="  ".join(shown))

    def on_fit_end(self, trainer: Trainer) -> None:
        self.progress.stop()


def on_terminal() -> bool:
    """Whether a person watches the standard output."""
    return sys.stdout is not None and sys.stdout.isatty()
