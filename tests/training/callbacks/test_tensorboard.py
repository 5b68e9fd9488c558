"""What TensorBoard is given."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.callbacks.fitting import data, fit, make_trainer

from xbp.errors import DataError
from xbp.training import LambdaCallback, TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, from the records of all event files in a folder.

    A record is the length (uint64), its checksum (4 bytes), the data, their checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[16 + size :]
    return found


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    history = fit(TensorBoard(tmp_path))
    train, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    assert list(train) == ["lr", "loss", "accuracy"]
    assert list(validation) == ["loss", "accuracy"]
    for run, prefix in ((train, ""), (validation, "val_")):
        for name, points in run.items():
            steps, values = zip(*points, strict=True)
            assert steps == (1, 2, 3)
            assert values == tuple(np.float32(history[prefix + name]))  # as in the files


def test_tensorboard_shows_an_epoch_when_it_is_over(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    seen = []
    count = LambdaCallback(on_epoch_end=lambda *_: seen.append(scalars(tmp_path / "train")))
    fit(TensorBoard(tmp_path), count)
    assert [len(found["loss"]) for found in seen] == [1, 2, 3]


def test_one_tensorboard_for_two_fits(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    trainer, board = make_trainer(), TensorBoard(tmp_path)
    for _ in range(2):
        trainer.fit(*data(), epochs=2, callbacks=[board])
    assert [step for step, _ in scalars(tmp_path / "train")["loss"]] == [1, 2, 3, 4]


def test_a_log_dir_that_is_a_file_gets_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "train").write_text("")
    with pytest.raises(DataError, match=r"cannot write to .*train"):
        fit(TensorBoard(tmp_path))


@pytest.mark.parametrize("name", ["file", "file/runs"])
def test_a_log_dir_that_cannot_be_made_is_found_before_the_first_step(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").write_text("")
    trainer = make_trainer()
    with pytest.raises(DataError, match=r"file.*' \((File exists|Not a directory)\)"):
        trainer.fit(*data(), callbacks=[TensorBoard(tmp_path / name)])
    assert trainer.optimizer.steps == 0


@pytest.mark.parametrize("method", ["close", "flush"])
def test_a_disk_that_fails_gets_one_sentence(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("tensorboardX.event_file_writer").EventsWriter
    real, failed = getattr(writer, method), []

    def fail(self: Any) -> None:
        real(self)
        if method == "flush" and failed:
            return
        failed.append(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, method, fail)
    with pytest.raises(DataError, match=r"cannot write to .* \(No space left on device\)"):
        fit(TensorBoard(tmp_path))
    assert len(failed) == (2 if method == "close" else 1)  # each of them is closed
