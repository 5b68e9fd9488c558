"""A progress bar for terminals, by rich, which is imported when the bar is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from xbp.backend import to_numpy
from xbp.training.callbacks.base import Callback, Training
from xbp.training.callbacks.live import LiveCurve, in_notebook
from xbp.training.history import Record
from xbp.training.results import rate_names


class ProgressBar(Callback):
    """A bar for the current epoch with samples per second, loss and time left; then one line.

    The loss, which the device must finish first, is read a few times a second at most.

    Parameters
    ----------
    held_out : str, default "validation"
        What the lines call the validation data.
    """

    first_rank_only = True

    def __init__(self, held_out: str = "validation") -> None:
        self.held_out = held_out

    def on_fit_begin(self, trainer: Training) -> None:
        from rich.console import Console
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
            console=Console(file=cast(Any, _Output())),
        )
        self.progress.start()

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        self.task = self.progress.add_task(
            f"epoch {epoch}/{trainer.last_epoch}", total=trainer.steps_per_epoch or None, status=""
        )
        self.began = self.progress.get_time()
        self.shown = 0.0

    def on_step_end(self, trainer: Training, step: int) -> None:
        now = self.progress.get_time()
        if now - self.shown < 0.2 and step != trainer.steps_per_epoch:
            return
        self.shown = now
        rate = step * trainer.batch_size / max(now - self.began, 1e-9)
        status = f"{rate:,.0f}/s  loss {float(to_numpy(trainer.current_loss)):.4f}"
        self.progress.update(self.task, completed=step, status=status)

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        self.progress.remove_task(self.task)
        line = epoch_line(trainer, epoch, record, self.held_out)
        self.progress.console.print(line, highlight=False)

    def on_fit_end(self, trainer: Training) -> None:
        self.progress.stop()


def progress(verbose: bool | None) -> Callback | None:
    """What shows the progress of a `fit`: curves in a notebook, else a bar, or nothing.

    Parameters
    ----------
    verbose : bool, optional
        By default progress is shown in a notebook, and if the output is a terminal.
    """
    notebook = in_notebook()
    if not (notebook or on_terminal() if verbose is None else verbose):
        return None
    return LiveCurve() if notebook else ProgressBar()


def epoch_line(trainer: Training, epoch: int, record: Record, held_out: str = "validation") -> str:
    """The record of an epoch as one line; `held_out` is what the validation data are."""
    names = [name for name in record if name not in ("epoch", *rate_names(trainer.optimizer))]
    training = ", ".join(f"{n} {_shown(n, record)}" for n in names if not n.startswith("val_"))
    others = ", ".join(_shown(name, record) for name in names if name.startswith("val_"))
    others = f" ({held_out} {others})" if others else ""  # missing if the epoch was interrupted
    seconds = trainer.history.seconds[-1]
    return f"epoch {epoch}/{trainer.last_epoch}: {training}{others}, {seconds:.1f} s"


def _shown(name: str, record: Record) -> str:
    return percent(record[name]) if name.endswith("accuracy") else f"{record[name]:.4f}"


def percent(part: float, whole: float = 1) -> str:
    """A share in percent, such as "98.76 %"; a dash if `whole` is 0."""
    return f"{100 * part / whole:.2f} %" if whole else "–"


def on_terminal() -> bool:
    """Whether the standard output is a terminal, and one whose cursor moves."""
    try:
        return bool(sys.stdout.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError, OSError):  # it is None, has no isatty, or is closed
        return False


class _Output:
    """The standard output as rich needs it, even if a replacement has no method but `write`.

    After a failure (a closed terminal, a full disk) nothing more is written, and training goes on
    without a bar.
    """

    def __init__(self) -> None:
        self.stream: Any = sys.stdout

    def write(self, text: str) -> int:
        with self._as_long_as_it_works():
            try:
                getattr(self.stream, "write", str)(text)
            except UnicodeEncodeError:
                self.stream.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        with self._as_long_as_it_works():
            getattr(self.stream, "flush", int)()

    @contextmanager
    def _as_long_as_it_works(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # a replaced output may raise anything
            self.stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
