"""The files of a run, and its description in ``run.json``: more than history and weights say.

It is read as data, and refused if it is malformed.
"""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from xbp import accelerators, machine
from xbp.backend import get_backend
from xbp.datasets.labelled import LABELLED_IMAGES
from xbp.errors import DataError, InputError, XBPError
from xbp.nn import Layer
from xbp.nn.summary import summary
from xbp.paths import kind_of, open_file, path_of, require_folder
from xbp.training.files.weights import save_weights
from xbp.training.files.writing import remove, write_text
from xbp.training.history import History

RECORD, HISTORY, WEIGHTS, REPORT = "run.json", "history.csv", "model.safetensors", "report.html"
VOCABULARY, SAMPLE = "vocabulary.json", "sample.txt"
"""Files of a language model: its vocabulary, and a generated text."""

TEXT, TEXTS, OWN = "text", "texts", "own"
"""Kinds of data without a set's name: a text; labelled texts; a user's data, of `Trainer.save`."""

NO_VIEWS: dict[str, Any] = {"mirror": False, "shift": 0}
"""Entries on a test over views of images, and their values where there are none."""

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
        A set of `xbp.datasets.labelled`; or `TEXT`, for windows of a text in place of images; or
        `TEXTS`, for labelled texts; or `OWN`, for a user's own samples, which cannot be loaded.
        Records of earlier versions lack it; their data are MNIST.
    data_dir : str or None
        The folder of the data, or the text; None for the default place.
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
    mirror : bool
        Whether the test is that of each image and its mirror image.
    shift : int
        The pixels by which the test moves images; 0 for none. See `Trainer.predict`.
    sample_shape : list of int
        With `OWN` and `TEXTS`: that of one sample; empty where there are several inputs.
    layers : list of list of str
        With `OWN`: name, kind, shape of the output, and number of parameters of each layer.
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
    mirror: bool = False
    shift: int = 0
    sample_shape: list[int] = field(default_factory=list)
    layers: list[list[str]] = field(default_factory=list)

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
        if self.data != OWN:
            del content["layers"]
        if self.data not in (OWN, TEXTS):
            del content["sample_shape"]
        for name, without in NO_VIEWS.items():
            if content[name] == without:
                del content[name]
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
            found = {"data": "mnist", "sample_shape": [], "layers": []} | NO_VIEWS | found
        wrong = [name for name in names if name not in found or not _fits(found[name], hints[name])]
        run = None if wrong else cls(**{name: found[name] for name in names})
        if run is not None and (
            set(run.steps) != set(CURVES) or len(set(map(len, run.steps.values()))) > 1
        ):
            wrong = ["steps"]
        if run is not None and not _is_time(run.started):
            wrong = ["started"]
        if run is not None and run.shift < 0:
            wrong = ["shift"]
        if run is not None and run.data not in (OWN, TEXT, TEXTS, *LABELLED_IMAGES):
            wrong = ["data"]
        if run is not None and min(run.sample_shape, default=1) < 1:
            wrong = ["sample_shape"]
        if run is not None and not all(len(row) == 4 and row[3].isdecimal() for row in run.layers):
            wrong = ["layers"]
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


def surroundings() -> dict[str, str]:
    """All versions, the processor, and the accelerators in use."""
    return machine.surroundings() | {"accelerators": accelerators.status()}


CURVES = ("epoch", "loss", "lr")


def save_run(trainer: Any, folder: str | os.PathLike[str]) -> None:
    """See `Trainer.save`."""
    if not len(trainer.history):
        msg = "there is no epoch to save; call save after fit"
        raise InputError(msg)
    place = path_of(folder, "the folder of a run")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{str(place)!r} cannot be made ({error.strerror}); choose another folder"
        raise DataError(msg) from None
    history, model, shape = trainer.history, trainer.model, trainer.sample_shape or ()
    now, spent = datetime.now(UTC), timedelta(seconds=sum(history.seconds))
    run = Run(
        command="",
        title=type(model).__name__,
        classes=0,
        backend=str(model.backend() or get_backend()),
        seed=trainer.seed,
        epochs=len(history),
        batch_size=trainer.batch_size,
        images=trainer.samples,
        test_images=0,
        data_dir=None,
        started=(now - spent).isoformat(timespec="seconds"),
        seconds=history.seconds,
        rate=0.0,
        memory=None,
        stopped=history.stopped,
        environment=surroundings(),
        steps={name: [] for name in CURVES},
        data=OWN,
        sample_shape=list(shape),
        layers=_layers(model, shape),
    )
    save_weights(model.state_dict(), place / WEIGHTS, model=model)
    history.to_csv(place / HISTORY)
    run.save(place)
    for name in (REPORT, VOCABULARY, SAMPLE):  # of an older run
        remove(place / name)


def _layers(model: Layer, shape: tuple[int, ...]) -> list[list[str]]:
    """The rows of the model's table, as text; none if it takes several inputs."""
    try:
        rows = summary(model, shape)
    except (XBPError, TypeError, AttributeError):
        return []
    return [[row.name, row.kind, row.sizes, str(row.parameters)] for row in rows]
