"""`Trainer.save`: the files of a user's own training, and their readers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.running import Result, assert_sentence, command, own_backend  # noqa: F401

import xbp
from xbp import data, models, nn, optim
from xbp.errors import DataError, InputError
from xbp.models.registry import REGISTERED
from xbp.report.run import Run, load_history
from xbp.training import load_model, load_weights

OWN = """
from xbp import models, nn

@models.register
class Small(nn.Sequential):
    def __init__(self, width, rng=None):
        self.arguments = {"width": width}
        first, last = nn.Linear(784, width, rng=rng), nn.Linear(width, 10, rng=rng)
        super().__init__(nn.Flatten(), first, last)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's class in a module of the current folder, registered during the test."""
    (tmp_path / "small_of_a_user.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(REGISTERED, "Small", nn.Layer)
    space: dict[str, Any] = {}
    exec(OWN, space)
    yield space["Small"]
    sys.modules.pop("small_of_a_user", None)


def fitted(model: nn.Layer, *shape: int, source: bool = False) -> xbp.Trainer:
    x = np.random.default_rng(0).normal(size=(12, *shape)).astype("float32")
    y = np.arange(12) % 3
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.01), ["accuracy"], rng=0
    )
    given = (data.Arrays(x, y),) if source else (x, y)
    trainer.fit(*given, epochs=2, batch_size=5, validation_data=(x, y))
    return trainer


@pytest.mark.parametrize("source", [False, True])
def test_a_run_comes_back(tmp_path: Path, source: bool) -> None:
    trainer = fitted(models.MLP(4, 5, 3, rng=0), 4, source=source)
    folder = tmp_path / "new" / "folder"
    trainer.save(folder)
    run = Run.load(folder)
    assert (run.title, run.images, run.epochs, run.batch_size) == ("MLP", 12, 2, 5)
    assert run.sample_shape == [4] and run.seconds == trainer.history.seconds
    assert [row[1] for row in run.layers] == ["Linear", "ReLU", "Linear"]
    assert load_history(folder).records == trainer.history.records
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(load_model(folder / "model.safetensors")(x), trainer.model(x))


def test_a_registered_class_comes_back(small: Any, tmp_path: Path) -> None:
    trainer = fitted(small(6, rng=0), 1, 28, 28)
    trainer.save(tmp_path / "run")
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    assert type(loaded) is small
    x = np.ones((2, 1, 28, 28), np.float32)
    np.testing.assert_array_equal(loaded(x), trainer.model(x))


def test_report_export_and_predict_read_it(small: Any, command: Any, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "run"
    fitted(small(6, rng=0), 1, 28, 28).save(folder)
    del REGISTERED["Small"]
    assert_sentence(command("export", folder, "--onnx", "a.onnx"), "'Small'", "register")
    if pytest.importorskip("jinja2") and pytest.importorskip("matplotlib"):
        result = command("report", folder)  # this needs no class
        assert result.code == 0, result
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "Small" in page and "What it confuses" not in page
        assert "accuracy on validation data" in page and "The command that" not in page
    if pytest.importorskip("onnxruntime"):
        words = ["--onnx", "a.onnx", "--module", "small_of_a_user"]
        result = command("export", folder, *words)
        assert result.code == 0, result
        assert "input (N, 1, 28, 28), output (N, 10)" in result.out
    image = pytest.importorskip("PIL.Image")
    (x, _), _ = xbp.datasets.load_mnist()
    image.fromarray(255 - np.pad(x[0], 10)).save(tmp_path / "digit.png")
    result = command("predict", folder, "digit.png", "--module", "small_of_a_user")
    assert result.code == 0, result
    assert_sentence(command("predict", folder, "digit.png", "--module", "nosuch"), "'nosuch'")


def test_a_model_of_nobody_keeps_its_weights(command: Any, tmp_path: Path) -> None:  # noqa: F811
    model = nn.Sequential(nn.Linear(4, 3, rng=0))
    fitted(model, 4).save(tmp_path)
    with pytest.raises(DataError, match="load_weights"):
        load_model(tmp_path / "model.safetensors")
    weights = load_weights(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(weights["0.weight"], model.state_dict()["0.weight"])
    if pytest.importorskip("jinja2") and pytest.importorskip("matplotlib"):
        assert command("report", tmp_path).code == 0


def test_mistakes(small: Any, tmp_path: Path) -> None:
    model = models.MLP(4, 3, rng=0)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1))
    with pytest.raises(InputError, match="after fit"):
        trainer.save(tmp_path)
    trainer = fitted(model, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        trainer.save(tmp_path / "file")
    with pytest.raises(InputError, match="a subclass of"):
        models.register(3)  # type: ignore[type-var]
    with pytest.raises(InputError, match="one of xbp's"):
        models.register(type("MLP", (nn.Sequential,), {}))
    own = small(6, rng=0)
    own.arguments = {"width": np.float32(6)}
    with pytest.raises(InputError, match="JSON"):
        fitted(own, 1, 28, 28).save(tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"sample_shape": [\n  4\n ]', '"sample_shape": [0]'),
        ('"ReLU"', "3"),
        ('"25"', '"many"'),
        ('"own"', '"other"'),
    ],
)
def test_a_record_that_is_none(old: str, new: str, tmp_path: Path) -> None:
    fitted(models.MLP(4, 5, 3, rng=0), 4).save(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert old in text
    (tmp_path / "run.json").write_text(text.replace(old, new))
    with pytest.raises(DataError, match="no record"):
        Run.load(tmp_path)


def test_a_report_of_an_older_run_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(
        DataError, match=r"report\.html' cannot be removed \(.+\); remove it by hand"
    ):
        fitted(models.MLP(4, 5, 3, rng=0), 4).save(tmp_path)
