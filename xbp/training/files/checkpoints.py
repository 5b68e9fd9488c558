"""Checkpoint files, and folders of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from xbp.arguments import integer, number
from xbp.errors import DataError, InputError
from xbp.paths import kind_of, path_of
from xbp.training.files.tensors import TensorFile

FORMAT = "xbp checkpoint"
STEP = re.compile(r"step-(\d{1,18})\.safetensors")
BEST = "best.safetensors"


class Checkpoint:
    """A checkpoint, opened: its document has been read and checked, its arrays are read later.

    Raises
    ------
    DataError
        The file is missing, malformed or no checkpoint of xbp.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = TensorFile(path)
        self.document = self.file.document
        if self.document.get("format") != FORMAT or self.document.get("version") != 1:
            self.file.refuse("is no checkpoint of this version of xbp; give another file")
        self.position = self.section("position", dict)
        try:
            for name in ("seed", "first_epoch", "epochs_done", "steps_done", "steps"):
                setattr(self, name, integer(f"its {name}", self.position.get(name), least=0))
            self.seconds = number("its seconds", self.position.get("seconds"), least=0)
            lr = self.document.get("lr")
            self.lr = None if lr is None else number("its lr", lr, least=0)
            self.own_rates = [
                None if lr is None else number("its rate of a group", lr, least=0)
                for lr in self.section("own_rates", list, [])
            ]
        except InputError as error:
            self.file.refuse(f"is malformed: {error}")
        self.stopped = self.position.get("stopped")
        self.scaling = self.section("scaling", dict, {})
        self.fingerprint = self.section("run", dict)
        self.callbacks = self.section("callbacks", list)
        self.counts = self.section("optimizer", dict)
        if self.counts.get("steps") != self.steps or self.steps >= 2**53:
            self.file.refuse("is malformed: its optimizer stands at another step")
        self._check_history()

    seed: int
    first_epoch: int
    epochs_done: int
    steps_done: int
    steps: int

    def section(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.document.get(name, default)
        if not isinstance(value, kind):
            self.file.refuse(f"is malformed: its {name!r} is no {kind.__name__}")
        return value

    def _check_history(self) -> None:
        history = self.section("history", dict)
        self.records, self.times = history.get("records"), history.get("seconds")
        right = isinstance(self.stopped, str) and all(
            isinstance(column, list) and len(column) == self.epochs_done - self.first_epoch
            for column in (self.records, self.times)
        )
        right = right and all(isinstance(record, dict) for record in self.records)
        numbers = [value for record in self.records for value in record.values()] if right else []
        if not right or not all(type(value) in (int, float) for value in numbers + self.times):
            self.file.refuse("is malformed: its history does not fit its epochs")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, sorted by their steps; ``best.safetensors`` comes first."""
    names = (path for path in folder.iterdir() if path.name == BEST or STEP.fullmatch(path.name))
    return sorted(names, key=_step)


def _step(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | None:
    """The checkpoint at `path`, or the last one in a folder; None if there is none.

    Raises
    ------
    DataError
        It is malformed, or cannot be read.
    """
    path = path_of(path, "a checkpoint")
    try:
        kind = kind_of(path)
        if kind != "a folder":
            return Checkpoint(path) if kind or path.suffix == ".safetensors" else None
        found = checkpoints_in(path)
    except OSError as error:
        msg = f"{str(path)!r} cannot be read ({error.strerror}); check its path and permissions"
        raise DataError(msg) from None
    try:
        # If the process was killed between the two files of a best epoch, the best is the last.
        return max(map(Checkpoint, found[:1] + found[-1:]), key=lambda c: c.steps, default=None)
    except DataError as error:
        msg = f"{error}; or move it away, to go on from the one before"
        raise DataError(msg) from None
