"""``xbp predict``: its output and files; a bad file does not stop the others."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from PIL import Image

import xbp
from xbp.datasets import load_mnist
from xbp.training import save_weights


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Files of a 7, a 2 and a 1: the first test images, which are easy."""
    monkeypatch.chdir(tmp_path)
    _, (x, y) = load_mnist()
    paths = []
    for image, digit in zip(x[:3], y, strict=False):
        paths.append(Path(f"[{digit}].png"))  # looks like rich's markup
        Image.fromarray(255 - image).resize((112, 112)).save(paths[-1])
    return paths


def test_table(trained, command, pictures):
    result = command("predict", trained.folder, *pictures)
    assert (result.code, result.err) == (0, "")
    rows = re.findall(r"(\[\d\]\.png) +(\d) +(\d+\.\d\d) %", result.out)
    assert [(name, digit) for name, digit, _ in rows] == [
        ("[7].png", "7"),
        ("[2].png", "2"),
        ("[1].png", "1"),
    ]


def test_json(trained, command, pictures, tmp_path):
    path = tmp_path / "out.json"
    assert command("predict", trained.folder, *pictures, "--json", path).code == 0
    answers = json.loads(path.read_text())
    assert [answer["file"] for answer in answers] == [str(path) for path in pictures]
    assert [answer["digit"] for answer in answers] == [7, 2, 1]
    for answer in answers:
        assert sum(answer["probabilities"]) == pytest.approx(1)
        assert answer["probability"] == max(answer["probabilities"])
        assert answer["probabilities"].index(answer["probability"]) == answer["digit"]
    result = command("predict", trained.folder, *pictures, "--json", "-")
    assert json.loads(result.out) == answers


def test_others_are_still_read(trained, command, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (50, 50), 200).save(tmp_path / "empty.png")
    bad = [tmp_path / "none.png", tmp_path / "text.png", tmp_path / "empty.png"]
    result = command("predict", trained.folder, bad[0], pictures[0], *bad[1:], pictures[1])
    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == 3
    for line, path, part in zip(lines, bad, ("not exist", "neither", "no digit"), strict=True):
        assert line.startswith(f"Error: {str(path)!r} ")
        assert part in line
    assert len(re.findall(r"\[\d\]\.png +\d ", result.out)) == 2
    result = command("predict", trained.folder, bad[0], pictures[0], "--json", "-")
    assert result.code == 2
    error, answer = json.loads(result.out)
    assert set(error) == {"file", "error"}
    assert answer["digit"] == 7


def test_nothing_can_be_read(trained, command, tmp_path):
    result = command("predict", trained.folder, tmp_path / "none.png")
    assert (result.code, result.out) == (2, "")


class TestMistakes:
    def refused(self, result, *parts):
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("Error: ")
        assert result.err.count("\n") == 1, result.err
        for part in parts:
            assert part in result.err

    def test_folders(self, command, pictures, tmp_path):
        self.refused(command("predict", tmp_path / "none", *pictures), "is no folder")
        self.refused(command("predict", tmp_path, *pictures), "model.safetensors")

    def test_another_model(self, command, pictures, tmp_path):
        model = xbp.models.MLP(784, 10, rng=0)
        save_weights(model.state_dict(), tmp_path / "model.safetensors", model=model)
        self.refused(command("predict", tmp_path, *pictures), "MLP", "LeNet-5")

    def test_pillow_is_missing(self, trained, command, pictures, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL", None)
        self.refused(command("predict", trained.folder, pictures[0]), "pip install pillow")

    def test_where_to_write(self, trained, command, pictures, tmp_path):
        result = command("predict", trained.folder, *pictures, "--json", tmp_path)
        self.refused(result, repr(str(tmp_path)))

    def test_usage(self, trained, command):
        result = command("predict", trained.folder)
        assert result.code == 2
        assert "give pictures as arguments" in result.err


def test_another_backend(trained, command, pictures):
    pytest.importorskip("array_api_strict")
    words = ["predict", trained.folder, *pictures, "--json", "-"]
    reference, other = (
        [answer["probabilities"] for answer in json.loads(command(*words, *more).out)]
        for more in ([], ["--backend", "array_api_strict"])
    )
    assert np.allclose(other, reference, atol=1e-5)  # float32, in another order of summation
