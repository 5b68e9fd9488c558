"""``xbp train gpt`` and ``xbp sample``."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from cli.running import assert_sentence, rows

from xbp.cli.display import Stopwatch
from xbp.cli.language import windows
from xbp.datasets import encode_text, load_text, text_windows
from xbp.report.run import Run
from xbp.training import load_model

SENTENCES = "the cat sat on the mat; the dog sat on the log.\n" * 12


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SENTENCES + "ü", encoding="utf-8")
    return path


def words(text: Path, output: Path, *more: object, steps: int = 60) -> list[object]:
    sizes = ["--layers", 1, "--heads", 2, "--width", 16, "--context", 8, "--batch-size", 8]
    start = ["train", "gpt", "--text", text, "--output", output, "--steps", steps]
    return [*start, *sizes, "--learning-rate", 0.01, *more]


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The folder of the run of `trained`, made once."""
    return []


@pytest.fixture
def trained(command, text, made, tmp_path_factory):
    if not made:
        folder = tmp_path_factory.mktemp("trained") / "run"
        result = command(*words(text, folder, "--report", "--dropout", 0.1))
        assert result.code == 0, result
        assert "step 60/60: loss" in result.out
        made.append(folder)
    return made[0]


def test_it_learns_and_its_test_loss_is_that_of_the_last_tenth(trained, text):
    """Chance is log 20 = 3.0; the text repeats itself, with an entropy near 0."""
    model = load_model(trained / "model.safetensors")
    tokens, vocabulary = load_text(text)
    last = tokens[len(tokens) * 9 // 10 :]
    x, y = text_windows(last, np.arange(0, len(last) - 8, 8), 8)
    logits = np.asarray(model(x), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -np.mean(np.take_along_axis(log_p, y[..., None], axis=-1))
    found = float(rows(trained)[-1]["val_loss"])
    assert found == pytest.approx(loss, rel=1e-5)  # float32
    assert found < 2
    run = Run.load(trained)
    assert (run.classes, run.images, run.data, run.test_images) == (
        *(len(vocabulary), 60 * 8, "text"),
        len(x),
    )


def test_sample_continues_the_prompt(trained, command):
    result = command("sample", trained, "--prompt", "the ", "--length", 30, "--temperature", 0)
    assert result.code == 0, result
    model = load_model(trained / "model.safetensors")
    vocabulary = json.loads((trained / "vocabulary.json").read_text())["vocabulary"]
    expected = model.generate(encode_text("the ", vocabulary), 30, temperature=0)
    assert result.out == "".join(vocabulary[t] for t in expected) + "\n"
    first = command("sample", trained, "--seed", 1)
    assert first.code == 0 and len(first.out) == 1 + 500 + 1
    assert command("sample", trained, "--seed", 1) == first
    assert command("sample", trained, "--seed", 2) != first


def test_the_report_shows_what_it_wrote(trained, command):
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "What it writes" in page and "What it confuses" not in page
    assert (trained / "sample.txt").read_text()[:10] in page
    assert "TransformerBlock" in page and rows(trained)[-1]["val_loss"][:5] in page
    assert command("report", trained).code == 0
    assert (trained / "report.html").read_text(encoding="utf-8") == page


def test_it_is_exported(trained, command, tmp_path):
    pytest.importorskip("onnxruntime")
    result = command("export", trained, "--onnx", tmp_path / "model.onnx")
    assert result.code == 0, result
    assert "input (N, 8)" in result.out and "in onnxruntime outputs differ" in result.out


def test_it_resumes_as_if_it_had_never_been_interrupted(
    trained,
    command,
    text,
    tmp_path,
    monkeypatch,
):
    ordinary = Stopwatch.on_step_end

    def press(self, trainer, step):
        ordinary(self, trainer, step)
        if self.steps == 25:
            signal.raise_signal(signal.SIGINT)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "on_step_end", press)
        more = ["--checkpoint-every", 10, "--dropout", 0.1]
        result = command(*words(text, output, *more))
        assert result.code == 0, result
        assert "training ended early" in result.out
    result = command("train", "gpt", "--resume", output)
    assert result.code == 0, result
    assert "going on after step 25" in result.out
    for name in ("history.csv", "model.safetensors", "sample.txt", "vocabulary.json"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()
    assert_sentence(command("train", "gpt", "--resume", output, "--width", 32), "--width", "16")


def test_bytes(command, text, tmp_path):
    result = command(*words(text, tmp_path, "--unit", "bytes", "--limit", 300, steps=2))
    assert result.code == 0, result
    assert load_model(tmp_path / "model.safetensors").vocabulary == 256
    assert command("sample", tmp_path, "--prompt", "ü").out.startswith("ü")


class TestMistakes:
    @pytest.mark.parametrize(
        ("more", "parts"),
        [
            (["--steps", 0], ("--steps", "at least 1")),
            (["--layers", 0], ("layers", "at least 1")),
            (["--heads", 3], ("num_heads", "3")),
            (["--context", 0], ("context", "at least 1")),
            (["--context", 400], ("last tenth", "--context")),
            (["--limit", 20], ("last tenth", "longer text")),
            (["--dropout", 2], ("p must be", "2")),
            (["--unit", "words"], ("unit", "'characters'", "'words'")),
            (["--batch-size", 0], ("--batch-size", "at least 1")),
        ],
    )
    def test_options(self, command, text, tmp_path, more, parts):
        output = tmp_path / "out"
        assert_sentence(command(*words(text, output, *more)), *parts)
        assert not output.exists()

    def test_texts(self, command, tmp_path):
        path, output = tmp_path / "text", tmp_path / "out"
        assert_sentence(command(*words(path, output)), repr(str(path)))
        path.write_bytes(b"")
        assert_sentence(command(*words(path, output)), "is empty")
        path.write_bytes(b"a\xff")
        assert_sentence(command(*words(path, output)), "UTF-8")
        assert command("train", "gpt").code == 2

    @pytest.mark.parametrize(
        ("more", "part"),
        [
            (["--prompt", "É"], "'É'"),
            (["--prompt", ""], "--prompt"),
            (["--length", -1], "--length"),
            (["--temperature", -1], "--temperature"),
            (["--top-k", 0], "--top-k"),
            (["--seed", -1], "--seed"),
        ],
    )
    def test_samples(self, trained, command, more, part):
        assert_sentence(command("sample", trained, *more), part)

    @pytest.mark.parametrize(
        "content", ["", "[]", "{", '{"unit": "bytes", "vocabulary": []}', '{"unit": "characters"}']
    )
    def test_a_vocabulary_that_is_none(self, trained, command, tmp_path, content):
        for name in ("model.safetensors", "run.json"):
            (tmp_path / name).write_bytes((trained / name).read_bytes())
        assert_sentence(command("sample", tmp_path), "vocabulary.json")
        (tmp_path / "vocabulary.json").write_text(content)
        assert_sentence(command("sample", tmp_path), "vocabulary.json", "train again")

    def test_folders(self, command, tmp_path):
        assert_sentence(command("sample", tmp_path / "none"), "is no folder")
        assert_sentence(command("sample", tmp_path), "model.safetensors")


def test_windows_of_the_test_do_not_overlap_and_those_of_training_do_not_meet_them():
    train, test = windows(np.arange(100), 4, "text")
    last, _ = train.batch(np.array([len(train) - 1]))
    x, y = test.batch(np.arange(len(test)))
    assert last.max() < 89 < x.min() == 90
    assert x.reshape(-1).tolist() == list(range(90, 98))
    np.testing.assert_array_equal(y, x + 1)
