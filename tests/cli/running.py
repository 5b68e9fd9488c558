"""The command line in this process or in a new one, on a small data set."""

import csv
import os
import shutil
import struct
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from console import Result, runner
from processes import search_path

import xbp
from xbp.datasets import load_mnist

ROOT = Path(xbp.__file__).parents[1]
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
COLUMNS = ["epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy"]
DATA_FILES = {"history.csv", "model.safetensors"}
RECORD = {"run.json"}  # it has times, which differ
PICTURES = {"learning_curves.png", "confusion_matrix.png"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def own_backend(monkeypatch):
    """Restores the backend of this process, which the command sets."""
    monkeypatch.delenv("XBP_BACKEND", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with xbp.use_backend("numpy"):
        yield


@pytest.fixture(autouse=True)
def pictures_without_drawing(monkeypatch):
    """PNG files of this process are heads without pictures: drawing takes four fifths of a short
    training. Runs of a new process draw.
    """
    if util.find_spec("matplotlib"):
        from matplotlib.figure import Figure

        def savefig(figure, file, **options):
            assert figure.axes
            if options["format"] != "png":
                return draw(figure, file, **options)
            return Path(file).write_bytes(PNG)

        draw = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def command(monkeypatch, capsys):
    return runner(monkeypatch, capsys)


def fresh(*args: object, python: str = "", **environment: object) -> Result:
    """Run ``python -m xbp …``, or the statements `python`, in a new interpreter."""
    start = ["-c", python] if python else ["-m", "xbp"]
    first = environment.pop("first_path", ROOT)
    env = os.environ | {"PYTHONPATH": search_path(first), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        env=env | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_set(folder: Path, train, test) -> Path:
    folder.mkdir()
    names = ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS))
    for (images, labels), (x, y) in zip(names, (train, test), strict=True):
        write_idx(folder / images, x)
        write_idx(folder / labels, y)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A set of the first 300 training and 100 test images of MNIST."""
    (x, y), (x_test, y_test) = load_mnist()
    folder = tmp_path_factory.mktemp("data") / "small"
    return write_set(folder, (x[:300], y[:300]), (x_test[:100], y_test[:100]))


@pytest.fixture
def broken(small, tmp_path):
    """A copy of the small set that a test may change."""
    return Path(shutil.copytree(small, tmp_path / "broken"))


def options(data: Path, output: Path, **others: object) -> list[object]:
    """A training of 5 steps an epoch."""
    chosen = {"data_dir": data, "output": output, "epochs": 2, "batch_size": 64} | others
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in chosen.items())
    return ["train", "lenet5", *(item for pair in pairs for item in pair)]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_sentence(result: Result, *parts: str) -> None:
    """Check for exit status 2 and one sentence on the standard error with all `parts`."""
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert result.err.startswith("Error: "), result.err
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err
