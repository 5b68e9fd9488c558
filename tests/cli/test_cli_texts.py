"""``xbp train text``, and other commands on its run."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from cli.running import assert_sentence, rows

from xbp.cli.display import Stopwatch
from xbp.datasets import load_labelled_texts
from xbp.models import TextClassifier
from xbp.report.run import Run
from xbp.report.texts import Lexicon, logits_of, split_texts
from xbp.training import load_model

NOUNS = {"animals": ["cat", "dog", "cow"], "plants": ["oak", "fir", "elm", "rose"]}


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Sentences about a noun, which says the class."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        label = str(rng.choice(list(NOUNS)))
        rest = " ".join(rng.choice(["the", "old", "and", "very"], rng.integers(0, 5)))
        made.append((f"{rng.choice(NOUNS[label])} {rest}, yes.", label))
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    lines = ["text,label", *(f'"{text}",{label}' for text, label in sentences(120, 0))]
    path.write_text("\n".join(lines))
    return path


def words(table: Path, output: Path, *more: object, epochs: int = 25) -> list[object]:
    sizes = ["--width", 8, "--hidden", 8, "--batch-size", 16, "--length", 20, "--dropout", 0.1]
    start = ["train", "text", "--texts", table, "--output", output, "--epochs", epochs]
    return [*start, *sizes, "--learning-rate", 0.05, *more]


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The folder of the run of `trained`, made once."""
    return []


@pytest.fixture
def trained(command, table, made, tmp_path_factory):
    if not made:
        folder = tmp_path_factory.mktemp("trained") / "run"
        result = command(*words(table, folder, "--report"))
        assert result.code == 0, result
        assert "108 training texts, 12 test texts" in result.out
        made.append(folder)
    return made[0]


def test_it_learns_and_its_accuracy_is_that_of_the_texts_left_out(trained, table):
    model = load_model(trained / "model.safetensors")
    assert isinstance(model, TextClassifier)
    lexicon = Lexicon.load(trained, model)
    assert lexicon.length == 8 and lexicon.classes == ["animals", "plants"]  # noun, 4, marks, yes
    assert not {"oak", "the", ","} - {*lexicon.vocabulary}
    _, test = split_texts(load_labelled_texts(table), 0)
    right = np.mean(logits_of(model, lexicon, test.texts).argmax(axis=1) == test.labels)
    assert float(rows(trained)[-1]["val_accuracy"]) == pytest.approx(right)
    assert right > 0.9
    run = Run.load(trained)
    assert (run.classes, run.images, run.data, run.test_images) == (2, 108, "texts", 12)


def test_predict_classifies_files_and_texts(trained, command, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("The old OAK!")
    result = command("predict", trained, path, "--text", "cow and cat, yes.", "--json", "-")
    assert result.code == 0, result
    first, second = json.loads(result.out)
    assert first["file"] == str(path) and first["class"] == "plants"
    assert second["text"].startswith("cow") and second["class"] == "animals"
    assert second["classes"] == ["animals", "plants"]
    assert second["probability"] == max(second["probabilities"]) > 0.5
    result = command("predict", trained, tmp_path / "none.txt", "--text", "a rose")
    assert result.code == 2 and "plants" in result.out
    assert "none.txt' does not exist; give the path of a text file" in result.err
    assert_sentence(command("predict", trained), "give files of text, or --text")


def test_the_report_shows_confusions_and_texts(trained, command, table, tmp_path):
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "What it confuses" in page and "what a text is" in page.replace("Rows are ", "")
    assert ">animals<" in page and "What it sees" not in page and "LSTM" in page
    assert command("report", trained).code == 0
    assert (trained / "report.html").read_text(encoding="utf-8") == page
    moved = tmp_path / "moved.csv"
    moved.write_text("text,label\n" + "oak,plants\n" * 10)
    failed = command("report", trained, "--data-dir", moved, "--output", tmp_path / "page.html")
    assert_sentence(failed, "is not the one of this run, with 12 texts")


def test_mistakes_are_shown_as_texts(command, table, tmp_path):
    """A test set whose labels are all wrong."""
    swapped = table.read_text().replace("plants", "x").replace("animals", "plants")
    (tmp_path / "test.csv").write_text(swapped.replace(",x", ",animals"))
    output = tmp_path / "run"
    result = command(*words(table, output, "--test", tmp_path / "test.csv", "--report"))
    assert result.code == 0 and "120 test texts" in result.out, result
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "Texts that were read wrongly" in page and ", yes." in page


def test_it_is_exported(trained, command, tmp_path):
    pytest.importorskip("onnxruntime")
    result = command("export", trained, "--onnx", tmp_path / "model.onnx")
    assert result.code == 0, result
    assert "input (N, 8)" in result.out and "in onnxruntime outputs differ" in result.out
    failed = command("export", trained / "model.safetensors", "--onnx", tmp_path / "model.onnx")
    assert_sentence(failed, "give the run's folder")


def test_it_resumes_as_if_it_had_never_been_interrupted(
    trained,
    command,
    table,
    tmp_path,
    monkeypatch,
):
    ordinary = Stopwatch.on_step_end

    def press(self, trainer, step):
        ordinary(self, trainer, step)
        if self.steps == 17:
            signal.raise_signal(signal.SIGINT)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "on_step_end", press)
        result = command(*words(table, output, "--checkpoint-every", 5))
        assert result.code == 0 and "training ended early" in result.out, result
    result = command("train", "text", "--texts", table, "--resume", output, "--output", output)
    assert result.code == 0 and "going on after step 17" in result.out, result
    whole, resumed = (load_model(f / "model.safetensors").state_dict() for f in (trained, output))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_folder_of_classes_is_read(command, tmp_path):
    for index, (text, label) in enumerate(sentences(30, 1)):
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / label / f"{index}.txt").write_text(text)
    result = command(*words(tmp_path / "set", tmp_path / "run", "--limit", 5, epochs=1))
    assert result.code == 0 and "5 training texts, 3 test texts" in result.out, result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": ["animals"]}, "with 16 words and 2 classes; train again"),
        ({"vocabulary": []}, "train again"),
        ({"length": 0}, "train again"),
        ({"length": True}, "train again"),
        ({"test": 3}, "train again"),
        ({"unit": "characters"}, "train again"),
        ({"classes": [["a"], "b"]}, "train again"),
        ({"more": 1}, "train again"),
    ],
)
def test_a_wrong_vocabulary_is_one_sentence(
    trained,
    command,
    tmp_path,
    content,
    message,
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    assert_sentence(command("predict", folder, "--text", "oak"), message)


def test_what_cannot_be_trained_on_is_one_sentence(command, table, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("text,label\na,b\n")
    assert_sentence(command(*words(few, tmp_path / "run")), "give 10 or more")
    (tmp_path / "test.csv").write_text("text,label\noak,stones\n")
    failed = command(*words(table, tmp_path / "run", "--test", tmp_path / "test.csv"))
    assert_sentence(failed, "has the label 'stones', where one of 2 classes was expected")
    assert_sentence(command(*words(table, tmp_path / "run", "--words", 2)), "--words must be")
    assert not (tmp_path / "run").exists()
