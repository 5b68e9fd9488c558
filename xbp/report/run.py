"""Further data of a run of the command line: curves within epochs, its test set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, to_numpy
from xbp.datasets.labelled import LABELLED_IMAGES
from xbp.errors import DataError
from xbp.training import Callback
from xbp.training.files.run import CURVES as CURVES
from xbp.training.files.run import HISTORY as HISTORY
from xbp.training.files.run import OWN as OWN
from xbp.training.files.run import RECORD as RECORD
from xbp.training.files.run import REPORT as REPORT
from xbp.training.files.run import SAMPLE as SAMPLE
from xbp.training.files.run import TEXT as TEXT
from xbp.training.files.run import TEXTS as TEXTS
from xbp.training.files.run import VOCABULARY as VOCABULARY
from xbp.training.files.run import WEIGHTS as WEIGHTS
from xbp.training.files.run import Run as Run
from xbp.training.files.run import load_history as load_history
from xbp.training.files.run import read_file as read_file
from xbp.training.files.run import surroundings as surroundings
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training import Training


class StepCurve(Callback):
    """Loss and learning rate within epochs, as means over windows of steps.

    Losses stay on the device until the epoch ends.

    Parameters
    ----------
    points : int
        The approximate number of windows in all.
    """

    def __init__(self, points: int = 150) -> None:
        self.points = points
        self.curves: dict[str, list[float]] = {name: [] for name in CURVES}
        self.losses: list[Array] = []
        self.rates: list[float] = []

    def on_epoch_begin(self, trainer: Training, epoch: int) -> None:
        self.losses, self.rates = [], []

    def on_step_end(self, trainer: Training, step: int) -> None:
        self.losses.append(trainer.current_loss)
        self.rates.append(trainer.optimizer.rates_at(trainer.optimizer.steps - 1)[0])

    def on_epoch_end(self, trainer: Training, epoch: int, record: Record) -> None:
        losses = [float(to_numpy(loss)) for loss in self.losses]
        where = epoch - 1 + (np.arange(len(losses)) + 0.5) / trainer.steps_per_epoch
        windows = max(1, min(len(losses), self.points // trainer.last_epoch))
        for name, values in zip(CURVES, (where, losses, self.rates), strict=True):
            parts = np.array_split(np.asarray(values), windows)
            self.curves[name] += [float(np.mean(part)) for part in parts]

    def state_dict(self) -> dict[str, Any]:
        losses = np.asarray([float(to_numpy(loss)) for loss in self.losses])
        return {"losses": losses, "rates": np.asarray(self.rates), **self.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.rates = list(state["losses"]), state["rates"].tolist()
        self.curves = {name: [float(value) for value in state[name]] for name in CURVES}


def load_test_set(run: Run, data_dir: Path | None) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The test images and labels of a run.

    Raises
    ------
    DataError
        The data cannot be found, or differ from those of the run.
    """
    folder = data_dir or (Path(run.data_dir) if run.data_dir else None)
    _, (x, y) = LABELLED_IMAGES[run.data].load(folder)
    if len(x) != run.test_images or ((y < 0) | (y >= run.classes)).any():
        msg = (
            f"the test set {f'in {str(folder)!r} ' if folder else ''}is not the one of this run, "
            f"{run.test_images:,} images of {run.classes} classes; say with --data-dir where it is"
        )
        raise DataError(msg)
    return x, y
