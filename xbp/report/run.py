"""The description of a run in ``run.json``: what a report needs beyond history and weights.

It is read as data, and refused if it is malformed.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from xbp import accelerators, machine
from xbp.backend import Array, to_numpy
from xbp.datasets.labelled import LABELLED_IMAGES
from xbp.errors import DataError
from xbp.paths import kind_of, open_file, require_folder
from xbp.training import Callback, History
from xbp.training.files import write_text
from xbp.training.history import Record

if TYPE_CHECKING:
    from xbp.training import Training

RECORD, HISTORY, WEIGHTS, REPORT = "run.json", "history.csv", "model.safetensors", "report.html"
VOCABULARY, SAMPLE = "vocabulary.json", "sample.txt"
"""Of a language model: what its tokens stand for, and a text that it wrote."""

TEXT = "text"
"""In place of the name of a set, where the data are a text."""

LARGEST = 2**24
"""The most bytes of a description or a history."""


@dataclass(frozen=True)
class Run:
    """Everything about a finished run beyond its history and weights.

    Attributes
    ----------
    command : str
        The command that repeats it, exactly on one backend with one number of threads.
    title : str
        The name of the model.
    classes : int
    backend : str
        Library and device.
    seed, epochs, batch_size : int
    images, test_images : int
        The sizes of training and test set.
    data : str
        The set, of `xbp.datasets.labelled`, or `TEXT`, for windows of one in place of images.
        Records of earlier versions lack it, and are of MNIST.
    data_dir : str or None
        The folder of the data, or the text; None is where they are looked for by themselves.
    started : str
        The time in ISO 8601.
    seconds : list of float
        The duration of each epoch, its test included.
    rate : float
        Training images per second, without tests.
    memory : str or None
        The peak memory of the process.
    stopped : str
        Why training ended.
    environment : dict of str
        Versions, processor, accelerators.
    steps : dict
        ``"epoch"``, ``"loss"``, ``"lr"``: the lists of a `StepCurve`, of equal lengths.
    """

    command: str
    title: str
    classes: int
    backend: str
    seed: int
    epochs: int
    batch_size: int
    images: int
    test_images: int
    data_dir: str | None
    started: str
    seconds: list[float]
    rate: float
    memory: str | None
    stopped: str
    environment: dict[str, str]
    steps: dict[str, list[float]]
    data: str = "mnist"

    @property
    def knows_all_steps(self) -> bool:
        """Whether `steps` cover the whole run; False after a resume."""
        return bool(self.steps["epoch"]) and self.steps["epoch"][0] < 1

    def save(self, folder: Path) -> None:
        """Write the description to `folder`.

        Raises
        ------
        DataError
            The file cannot be written.
        """
        content = asdict(self)
        if self.data == "mnist":  # as earlier versions wrote it
            del content["data"]
        write_text(folder / RECORD, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read the description in `folder`.

        Raises
        ------
        DataError
            The folder or its ``run.json`` is missing, or it is malformed.
        """
        path = folder / RECORD
        text = read_file(folder, RECORD)
        try:
            content = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            msg = f"{str(path)!r} is no JSON ({error}); train again"
            raise DataError(msg) from None
        hints = get_type_hints(cls)
        names = [field.name for field in fields(cls)]
        found = content if isinstance(content, dict) else {}
        if content is found:
            found = {"data": "mnist"} | found
        wrong = [name for name in names if name not in found or not _fits(found[name], hints[name])]
        run = None if wrong else cls(**{name: found[name] for name in names})
        if run is not None and (
            set(run.steps) != set(CURVES) or len(set(map(len, run.steps.values()))) > 1
        ):
            wrong = ["steps"]
        if run is not None and not _is_time(run.started):
            wrong = ["started"]
        if run is not None and run.data not in (TEXT, *LABELLED_IMAGES):
            wrong = ["data"]
        if run is None or wrong:
            msg = f"{str(path)!r} is no record of a run ({', '.join(wrong)} missing or wrong)"
            raise DataError(f"{msg}; train again")
        return run


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type, for the types that occur in `Run`."""
    match get_origin(hint):
        case None if hint is float:
            return type(value) in (int, float) and abs(value) < 1e300
        case None:
            return type(value) is (type(None) if hint is None else hint)
        case origin if origin is UnionType:
            return any(_fits(value, each) for each in get_args(hint))
        case origin if origin is list:
            return type(value) is list and all(_fits(item, get_args(hint)[0]) for item in value)
    return type(value) is dict and all(_fits(item, get_args(hint)[1]) for item in value.values())


def _refuse(constant: str) -> None:
    msg = f"{constant} is no number of JSON's"
    raise ValueError(msg)


def read_file(folder: Path, name: str) -> str:
    """A text file of a run in `folder`, of moderate size.

    Raises
    ------
    DataError
        The folder or file is missing or unreadable, or the file is no text or too long.
    """
    path = folder / name
    require_folder(folder, "one that xbp train has written")
    if not kind_of(path):
        msg = f"{str(folder)!r} holds no {name}; give a folder that xbp train has written"
        raise DataError(msg)
    try:
        with open_file(path, "a file of text") as file:
            content = file.read(LARGEST + 1)
        if len(content) <= LARGEST:
            return content.decode("utf-8")
        why = f"is larger than {LARGEST:,} bytes"
    except UnicodeDecodeError as error:
        why = f"is no text in UTF-8 ({error})"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    msg = f"{str(path)!r} {why}; train again"
    raise DataError(msg)


def load_history(folder: Path) -> History:
    """The history of the run in `folder`.

    Raises
    ------
    DataError
        The history is missing, empty or malformed.
    """
    path, history = folder / HISTORY, History()
    text = read_file(folder, HISTORY)
    try:
        for row in csv.DictReader(text.splitlines(), strict=True, restval=""):
            record = {name: float(text) for name, text in row.items() if text}
            if not {"epoch", "lr", "loss"} <= set(record) or not all(
                math.isfinite(value) for value in record.values()
            ):
                msg = "numbers are missing"
                raise ValueError(msg)
            history.records.append(record)
        if not history.records:
            msg = "there is no epoch in it"
            raise ValueError(msg)
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        msg = f"{str(path)!r} is no history of a run ({error}); train again"
        raise DataError(msg) from None
    return history


CURVES = ("epoch", "loss", "lr")


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


def surroundings() -> dict[str, str]:
    """All versions, the processor, and the accelerators in use."""
    return machine.surroundings() | {"accelerators": accelerators.status()}
