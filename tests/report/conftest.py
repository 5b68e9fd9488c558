"""A short training with its report, made once."""

import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from console import runner

import xbp
from xbp.cli import main
from xbp.datasets import load_mnist


class Trained(NamedTuple):
    folder: Path
    data: Path


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.delenv("XBP_BACKEND", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with xbp.use_backend("numpy"):
        yield runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """LeNet-5 after 3 epochs of 4,000 images, with names that look like markup."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    home = tmp_path_factory.mktemp("report")
    data, folder = home / 'set <b>"&amp;', home / "run"
    data.mkdir()
    for part, (x, y), size in zip(("train", "t10k"), load_mnist(), (4000, 500), strict=True):
        for name, array in (("images-idx3", x[:size]), ("labels-idx1", y[:size])):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (data / f"{part}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    words = ["xbp", "train", "lenet5", "--backend", "numpy", "--epochs", "3", "--batch-size", "50"]
    words += ["--data-dir", str(data), "--output", str(folder), "--report"]
    with pytest.MonkeyPatch.context() as patch, xbp.use_backend("numpy"):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert not exit_.value.code
    return Trained(folder, data)
