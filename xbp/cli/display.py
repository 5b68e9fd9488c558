"""Models and results on the command line: tables, progress lines, timing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from xbp.arguments import integer, number
from xbp.backend import to_numpy
from xbp.nn.summary import LayerSummary
from xbp.training import Callback
from xbp.training.callbacks.progress import epoch_line, percent
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training import Training


def show(table: Table) -> None:
    # Without markup and emoji codes, as names of files and devices are data.
    Console(markup=False, emoji=False, highlight=False).print(table)


def new_table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table


def model_table(rows: list[LayerSummary]) -> Table:
    table = new_table("", "layer", "output shape", "parameters", left=2)
    for row in rows:
        table.add_row(
            row.name, row.kind, row.sizes, f"{row.parameters:,}" if row.parameters else ""
        )
    table.add_section()
    table.add_row("", "total", "", f"{sum(row.parameters for row in rows):,}")
    return table


def class_table(
    matrix: NDArray[np.int64], name: Callable[[int], str] = str, samples: str = "images"
) -> Table:
    """Results by class, from a confusion matrix, without classes that never occur.

    `name` is what a label is called, `samples` what is classified.
    """
    columns = (
        "class",
        samples,
        "correct",
        "accuracy (recall)",
        "precision",
        "mostly taken for",
    )
    table = new_table(*columns)
    for label in np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1)).tolist():
        row, images, correct = matrix[label].copy(), matrix[label].sum(), matrix[label, label]
        row[label] = 0
        rival = f"{name(int(row.argmax()))} ({row.max()} ×)" if row.any() else "–"
        shares = percent(correct, images), percent(correct, matrix[:, label].sum())
        table.add_row(name(label), f"{images:,}", f"{correct:,}", *shares, rival)
    return table


def peak_memory() -> str | None:
    """The peak memory of the process so far; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"


class Stopwatch(Callback):
    """The time spent in training steps, without validation and other pauses.

    Attributes
    ----------
    seconds : float
    steps : int
    """

    def __init__(self) -> None:
        self.seconds: float = 0.0
        self.steps = 0

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, trainer: Training, step: int) -> None:
        if step == trainer.steps_per_epoch:
            to_numpy(trainer.current_loss)  # waits for the device
        now = time.perf_counter()
        self.seconds += now - self.last
        self.steps += 1
        self.last = now

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = number("seconds", state["seconds"], least=0)
        self.steps = integer("steps", state["steps"], least=0)


class EpochLines(Callback):
    """One plain line for each epoch, for logs."""

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        typer.echo(epoch_line(trainer, epoch, record, "test"))
