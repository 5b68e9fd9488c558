"""What all trainings of ``xbp train`` share: the fit, its checkpoints, and the files of a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

import xbp
from xbp.cli.display import EpochLines, Stopwatch
from xbp.cli.options import Options
from xbp.cli.ranks import first
from xbp.cli.resume import CHECKPOINTS, checkpoints_of, where_it_goes_on
from xbp.errors import NonFiniteError
from xbp.parallel import Group
from xbp.report import write_report
from xbp.report.run import HISTORY, RECORD, REPORT, SAMPLE, VOCABULARY, WEIGHTS, Run
from xbp.training import Callback, Checkpoints, ProgressBar, Trainer, save_weights
from xbp.training.callbacks.progress import on_terminal
from xbp.training.files import replacing, write_text
from xbp.training.files.writing import remove
from xbp.training.metrics import len_of

CURVES, CONFUSION = "learning_curves.png", "confusion_matrix.png"
DIVERGED = "diverged.csv"
"""The history of a run whose loss became infinite or nan; other runs write `HISTORY`."""
RESULTS = (
    *(HISTORY, WEIGHTS, RECORD, CURVES, CONFUSION, REPORT, DIVERGED),
    *(VOCABULARY, SAMPLE),
)


@contextmanager
def told_if_diverged(trainer: Trainer, options: Options, group: Group | None) -> Iterator[None]:
    """If the loss becomes infinite or nan, write the history so far to `DIVERGED`."""
    try:
        yield
    except NonFiniteError as error:
        if not len(trainer.history):
            raise
        if first(group):
            trainer.history.to_csv(options.output / DIVERGED)
        msg = f"{error}; the epochs before are in {str(options.output / DIVERGED)!r}"
        raise NonFiniteError(msg) from None


def fit(
    trainer: Trainer,
    train: Any,
    test: Any,
    options: Options,
    *others: Callback,
    augment: Callable[..., Any] | None = None,
    lines: Callback | None = None,
) -> float:
    """Train, and return the number of samples per second.

    `train` and `test` are each a source or a pair of arrays; `augment` as in `Trainer.fit`;
    `lines` shows the progress where the output is no terminal, by default an `EpochLines`.
    """
    stopwatch = Stopwatch()
    saving = []
    if options.checkpoint_every is not None:
        folder, monitor = options.output / CHECKPOINTS, "val_loss"
        every, notes = options.checkpoint_every, options.notes
        saving = [Checkpoints(folder, every, monitor=monitor, notes=notes)]
    if options.resume is not None:
        typer.echo(where_it_goes_on(options.resume, xbp.get_backend().name))
    x, y = train if isinstance(train, tuple) else (train, None)
    history = trainer.fit(
        x,
        y,
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_data=test,
        callbacks=[
            *(stopwatch, *others, *saving),
            ProgressBar("test") if on_terminal() else lines or EpochLines(),
        ],
        verbose=False,
        resume=options.resume and checkpoints_of(options.resume),
        augment=augment,
    )
    if trainer.epochs_done < options.epochs:
        typer.echo(f"training ended early: {history.stopped}")
    # The last batch of an epoch may be smaller.
    rest = stopwatch.steps - trainer.epochs_done * trainer.steps_per_epoch
    samples = trainer.epochs_done * (len(x) if y is None else len_of(y)) + rest * options.batch_size
    return samples / stopwatch.seconds


def write(
    trainer: Trainer,
    matrix: NDArray[np.int64] | None,
    run: Run,
    options: Options,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write all files of a run, remove those of an older one, and print a line with their names.

    Pictures belong to classifiers alone, which have a confusion matrix; `texts` are further files.
    """
    folder = options.output
    trainer.history.to_csv(folder / HISTORY)
    save_weights(trainer.model.state_dict(), folder / WEIGHTS, model=trainer.model)
    run.save(folder)
    written = [HISTORY, WEIGHTS, RECORD]
    for name, text in (texts or {}).items():
        write_text(folder / name, text)
        written.append(name)
    if matrix is not None:
        written += pictures(trainer, matrix, folder)
    if options.report:
        write_report(folder, folder / REPORT)
        written.append(REPORT)
    for name in RESULTS:
        if name not in written:
            remove(folder / name)
    typer.echo(f"wrote {', '.join(written)} to {folder}")


def pictures(trainer: Trainer, matrix: NDArray[np.int64], folder: Path) -> list[str]:
    """Write learning curves and a confusion matrix, and return the names of the files."""
    try:
        importlib.import_module("matplotlib.backends.backend_agg")
    except Exception:  # matplotlib is missing or broken, which must not lose a training
        typer.echo("pip install matplotlib would add pictures: learning curves, confusion matrix")
        return []
    from xbp.training.plots import plot_confusion_matrix, plot_learning_curves

    curves = plot_learning_curves(trainer.history, validation="test")
    figures = {CURVES: curves, CONFUSION: plot_confusion_matrix(matrix)}
    for name, figure in figures.items():
        with replacing(folder / name) as path:
            figure.savefig(path, format="png")
    return [*figures]
