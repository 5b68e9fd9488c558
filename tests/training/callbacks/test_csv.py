"""The CSV file of a training: whole lines, continued by a later run."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.callbacks.fitting import data, fit, make_trainer, stop_at

import xbp
from xbp.errors import DataError, InputError
from xbp.training import Checkpoints, CSVLogger, LambdaCallback


def test_the_csv_file_is_the_historys(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("an older run\n")
    fit(CSVLogger(path)).to_csv(tmp_path / "expected.csv")
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_line_is_there_as_soon_as_its_epoch_is_over(tmp_path: Path) -> None:
    seen = []
    count = LambdaCallback(on_epoch_end=lambda *_: seen.append((tmp_path / "h.csv").read_text()))
    fit(CSVLogger(tmp_path / "h.csv"), count)
    assert [text.count("\n") for text in seen] == [2, 3, 4]


def test_another_separator(tmp_path: Path) -> None:
    history = fit(CSVLogger(tmp_path / "h.tsv", separator="\t"))
    with (tmp_path / "h.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"]


COLUMNS = b"epoch,lr,loss,accuracy,val_loss,val_accuracy"

THERE = {
    "an empty file": b"",
    "a header": COLUMNS + b"\r\n",
    "a header without a line break": COLUMNS,
    "a line that was cut short": COLUMNS + b"\r\n1,0.1,0.9",
    "a last line without a line break": COLUMNS + b"\n1,0.1,0.9,0.5,0.8,0.5",
    "the mark of an editor": b"\xef\xbb\xbf" + COLUMNS + b"\r\n",
    "other columns, too": b"note," + COLUMNS + b"\r\nmine,1,1,1,1,1,1\r\n",
    "quoted names": b'"' + COLUMNS.replace(b",", b'","') + b'"\n',
}


@pytest.mark.parametrize("there", THERE.values(), ids=list(THERE))
def test_append_keeps_every_byte_and_adds_lines(there: bytes, tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_bytes(there)
    history = fit(CSVLogger(path, append=True), epochs=2)
    content = path.read_bytes()
    assert content.startswith(there)
    added = content[len(there) :].decode().strip().splitlines()[-2:]
    assert [float(line.split(",")[-2]) for line in added] == history["val_loss"]
    lines = content.decode("utf-8-sig").splitlines()
    assert len([line for line in lines if "val_loss" in line]) == 1
    assert added == lines[-2:]


NOT_THERE = {
    "fewer columns": (b"epoch,lr,loss\n1,1,1\n", "none for accuracy, val_loss, val_accuracy"),
    "another separator": (COLUMNS.replace(b",", b";") + b"\n", "none for epoch, lr"),
    "no text": (b"\xff\xfe\x00\n", "is no CSV file in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "is no CSV file in UTF-8"),
    "an empty line": (b"\n" + COLUMNS, "is no CSV file in UTF-8"),
    "prose": (b"Dear reader,\nall is well", "none for epoch"),
}


@pytest.mark.parametrize(("there", "sentence"), NOT_THERE.values(), ids=list(NOT_THERE))
def test_what_cannot_be_continued_is_refused_before_training(
    there: bytes, sentence: str, tmp_path: Path
) -> None:
    path, trainer = tmp_path / "h.csv", make_trainer()
    path.write_bytes(there)
    with pytest.raises(DataError, match=sentence):
        trainer.fit(*data(), 2, 16, data(), [CSVLogger(path, append=True)])
    assert trainer.optimizer.steps == 0
    assert path.read_bytes() == there


def test_a_first_epoch_that_was_stopped_leaves_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    fit(CSVLogger(path, append=True), stop_at(2))
    first = path.read_bytes()
    assert first.splitlines()[0] == COLUMNS
    fit(CSVLogger(path, append=True), epochs=2)
    assert path.read_bytes().startswith(first)
    assert path.read_bytes().count(b"\r\n") == 4


def test_what_callbacks_record_has_its_column(tmp_path: Path) -> None:
    def note(trainer: xbp.Trainer, epoch: int, record: dict[str, Any]) -> None:
        record["twice"] = np.asarray(2 * epoch)

    fit(LambdaCallback(on_epoch_end=note), CSVLogger(tmp_path / "h.csv"))
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [row["twice"] for row in rows] == ["2.0", "4.0", "6.0"]


@pytest.mark.parametrize("separator", ["", ",,", "\n", '"', 1, None])
def test_a_separator_is_one_character(separator: Any) -> None:
    with pytest.raises(InputError, match="separator must be one character"):
        CSVLogger("h.csv", separator)


def test_append_keeps_the_columns_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    fit(CSVLogger(path), epochs=1)
    fit(CSVLogger(path, append=True), epochs=1, validation_data=None)
    first, second = csv.DictReader(path.read_text().splitlines())
    assert second == first | {"val_loss": "", "val_accuracy": ""}
    path.write_text("epoch,loss,lr\n")
    with pytest.raises(DataError, match="has the columns epoch, loss, lr, and none for accuracy"):
        fit(CSVLogger(path, append=True), epochs=1, validation_data=None)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("append", [False, True])
def test_a_resumed_runs_file_is_that_of_an_uninterrupted_one(
    steps: int, append: bool, tmp_path: Path
) -> None:
    path, folder = tmp_path / "h.csv", tmp_path / "checkpoints"
    earlier = b"epoch,lr,loss,accuracy,val_loss,val_accuracy\r\n9,9,9,9,9,9\r\n" if append else b""
    path.write_bytes(earlier)
    fit(CSVLogger(path, append=append), epochs=3)
    expected = path.read_bytes()
    path.write_bytes(earlier)
    fit(CSVLogger(path, append=append), Checkpoints(folder, every=1), stop_at(steps), epochs=3)
    with path.open("a") as file:
        file.write("lines that came after the checkpoint\n")
    fit(CSVLogger(path, append=append), Checkpoints(folder, every=1), resume=folder, epochs=3)
    assert path.read_bytes() == expected


def test_a_file_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    steps: list[int] = []
    count = LambdaCallback(on_step_end=lambda trainer, step: steps.append(step))
    with pytest.raises(DataError, match=r"cannot write .*nowhere.*No such file or directory"):
        fit(count, CSVLogger(tmp_path / "nowhere" / "h.csv"))
    assert steps == []


@pytest.mark.parametrize("room", [0, 5])
def test_a_line_that_does_not_fit_onto_the_disk_leaves_none(
    room: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """A full disk accepts a part of a line, or nothing."""
    path, opened = tmp_path / "h.csv", Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.tell, self.truncate = file, file.tell, file.truncate

        def write(self, line: bytes) -> int:
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(line[:room]))

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

    def full(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        file = opened(self, mode, *args, **keywords)
        return Full(file) if mode == "ab" and self.stat().st_size else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(DataError, match=r"cannot write .*h\.csv.*[Nn]o space left") as error:
            fit(CSVLogger(path))
    assert "\n" not in str(error.value)
    assert path.read_bytes().count(b"\n") == 2  # header and first epoch
    assert path.read_bytes().endswith(b"\r\n")


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[2])
from fitting import fit
from xbp.training import CSVLogger
fit(CSVLogger(sys.argv[1]), epochs=10**6)
"""


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    command = [sys.executable, "-c", ENDLESS, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    while process.poll() is None and (not path.exists() or path.stat().st_size < 10_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert path.read_bytes().endswith(b"\r\n")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(float(row["val_loss"]) > 0 for row in rows)
