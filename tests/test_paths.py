"""Paths that lead to no plain file, or to one without permission, give one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nobody import as_nobody

import xbp
from xbp import nn, optim
from xbp.cli.export import weights_of
from xbp.cli.predict import reader_of
from xbp.datasets import load_text, read_cifar, read_idx
from xbp.errors import DataError, InputError
from xbp.paths import kind_of, same_place
from xbp.report.run import Run, load_history
from xbp.training import (
    Callback,
    Checkpoints,
    CSVLogger,
    ModelCheckpoint,
    load_model,
    load_weights,
    save_weights,
)
from xbp.training.files.checkpoints import open_checkpoint
from xbp.training.files.writing import check_writable, write_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="special files are POSIX")


def picture(path: Path) -> Any:
    pytest.importorskip("PIL")
    from xbp.images import read_grey

    return read_grey(path)


FILES: dict[str, Callable[[Path], Any]] = {
    "an IDX file": read_idx,
    "a file of CIFAR's binary version": read_cifar,
    "a text file": load_text,
    "weights": load_weights,
    "a model": load_model,
    "a checkpoint": open_checkpoint,
    "a picture": picture,
}
FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {  # and a file in it
    "a set": (xbp.datasets.load_mnist, "train-images-idx3-ubyte"),
    "a record": (Run.load, "run.json"),
    "a history": (load_history, "history.csv"),
    "a classifier": (reader_of, "model.safetensors"),
    "weights": (lambda folder: load_weights(weights_of(folder)), "model.safetensors"),
    "the last checkpoint": (open_checkpoint, "step-00000001.safetensors"),
}
MNIST = [f"{a}-{b}-ubyte" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]


def once(sentence: str, path: Path) -> None:
    """One sentence, which names the path once."""
    assert sentence.count(str(path)) == 1 and sentence.isprintable(), sentence


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL = [
    (fifo, "a FIFO"),
    (Path.mkdir, "a folder"),
    (loop, "(Too many levels of symbolic links)"),
]


@pytest.mark.parametrize(("make", "said"), SPECIAL)
@pytest.mark.parametrize("what", FILES)
def test_what_is_no_file(
    tmp_path: Path, what: str, make: Callable[[Path], None], said: str
) -> None:
    if (what, said) == ("a checkpoint", "a folder"):
        pytest.skip("that is where checkpoints are")
    path = tmp_path / "it.safetensors"
    make(path)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        FILES[what](path)
    once(str(error.value), path)


@pytest.mark.parametrize(("make", "said"), [SPECIAL[0], SPECIAL[2]])
@pytest.mark.parametrize("what", FOLDERS)
def test_what_is_no_file_in_a_folder(
    tmp_path: Path, what: str, make: Callable[[Path], None], said: str
) -> None:
    load, name = FOLDERS[what]
    for other in MNIST:
        (tmp_path / other).write_bytes(b"")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(DataError, match=re.escape(said)) as error:
        load(tmp_path)
    once(str(error.value), tmp_path / name)


@pytest.mark.parametrize(("make", "said"), [SPECIAL[0], SPECIAL[2]])
@pytest.mark.parametrize("what", [name for name in FOLDERS if "weights" not in name])
def test_what_is_no_folder(
    tmp_path: Path, what: str, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "it")
    with pytest.raises(DataError, match=re.escape(said)) as error:
        FOLDERS[what][0](tmp_path / "it")
    once(str(error.value), tmp_path / "it")


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_may_not_be_read_is_not_said_to_be_missing(
    open_folder: Path, what: str, where: str
) -> None:
    if what == "a picture":
        pytest.importorskip("PIL.Image")
    folder = open_folder / "folder"
    folder.mkdir()
    path = folder / "it.safetensors"
    path.write_bytes(b"x")
    (path if where == "file" else folder).chmod(0)
    try:
        said = as_nobody(lambda: FILES[what](path))
    finally:
        folder.chmod(0o755)
    assert said.startswith("DataError") and "(Permission denied)" in said
    once(said, path)


@pytest.mark.parametrize("what", FOLDERS)
def test_nor_is_a_folder(open_folder: Path, what: str) -> None:
    (open_folder / "private" / "run").mkdir(parents=True)
    (open_folder / "private").chmod(0)
    try:
        said = as_nobody(lambda: FOLDERS[what][0](open_folder / "private" / "run"))
    finally:
        (open_folder / "private").chmod(0o755)
    assert said.startswith("DataError") and "(Permission denied)" in said
    once(said, open_folder / "private" / "run")


def test_a_name_with_a_null_byte() -> None:
    with pytest.raises(DataError, match=r"cannot be read .*null"):
        kind_of("a\0b")


def test_a_corrupt_model_is_said_so_once(tmp_path: Path) -> None:
    """The refusal of the reader is not wrapped in another one."""
    path = tmp_path / "m.safetensors"
    model = xbp.models.MLP(2, 2, rng=0)
    xbp.training.save_weights(model.state_dict(), path, model=model)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is corrupt") as error:
        load_model(path)
    once(str(error.value), path)


# --- one folder, spelled in two ways -------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["relative", "dots", "link"])
def test_one_folder_spelled_in_two_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a"
    (tmp_path / "link").symlink_to(folder)
    other = {"relative": Path("a"), "dots": tmp_path / "b" / ".." / "a", "link": Path("link")}

    def fit(epochs: int, where: Path, resume: Path) -> xbp.History:
        x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
        model = xbp.models.MLP(2, 2, rng=0)
        trainer = xbp.Trainer(
            model, xbp.nn.MSELoss(), xbp.optim.SGD(model.parameters(), 0.1), rng=0
        )
        return trainer.fit(x, x, epochs, callbacks=[Checkpoints(where)], resume=resume)

    (tmp_path / "b").mkdir()
    fit(1, folder, folder)
    assert len(fit(2, other[spelling], folder)) == 2
    assert len(fit(3, folder, other[spelling])) == 3
    assert same_place(folder, other[spelling]) and not same_place(folder, tmp_path)
    assert same_place("none/x", tmp_path / "none" / "x")


WRITERS: dict[str, Callable[[Any], object]] = {
    "new weights": lambda path: save_weights({"w": np.ones(2)}, path),
    "text": lambda path: write_text(path, "text"),
    "a check": check_writable,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_name_that_ends_in_a_slash_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ends in a slash"):
        WRITERS[name](f"{tmp_path}/new/")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", [nn.ReLU(), [np.ones(2)], None, {1: np.ones(2)}, np.ones(2)])
def test_only_a_state_is_saved(state: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a dict of names to arrays, .*; got "):
        save_weights(state, tmp_path / "w.safetensors")


def fit(*callbacks: Callback) -> None:
    model = nn.Linear(2, 1, rng=0)
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    trainer.fit(np.ones((2, 2)), np.ones((2, 1)), epochs=1, callbacks=callbacks)


@pytest.mark.parametrize(
    "one", [Checkpoints, CSVLogger, lambda path: ModelCheckpoint(path, "loss")], ids=["a", "b", "c"]
)
def test_two_callbacks_may_not_write_to_one_place(one: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real, link = tmp_path / "real" / "it", f"{tmp_path}/link/../real/./it"
    with pytest.raises(InputError, match="write to one place"):
        fit(one(real), one(link))
    fit(one(real), one(tmp_path / "other"))


def test_a_csv_file_does_not_cut_what_standard_output_leads_to(tmp_path: Path) -> None:
    """``python train.py > log.txt`` is a plain file, too."""
    log = tmp_path / "log.txt"
    log.write_text("said before\n")
    with log.open("a") as file:
        link = tmp_path / "link.csv"
        link.symlink_to(f"/dev/fd/{file.fileno()}")
        for path in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}", link):
            with pytest.raises(DataError, match="is an open file of this process"):
                fit(CSVLogger(path))
    assert log.read_text() == "said before\n"
