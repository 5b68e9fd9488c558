"""``xbp train resnet20`` and similar commands, on a small data set in CIFAR-10's format."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from cli.running import assert_sentence, rows
from nightly import NIGHTLY

from xbp.cli.display import Stopwatch
from xbp.datasets import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, cifar, load_cifar10
from xbp.datasets import standardize_images as standardized
from xbp.datasets.known import CIFAR10_TRAIN
from xbp.report.run import Run
from xbp.training import load_model
from xbp.training.views import over_views

TRAIN, TEST = 8, 20
"""The number of images in each of the five training files, and in the test file."""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "RECORDS", {"data_batch": TRAIN, "test_batch": TEST})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images with one colour for each class."""
    folder, rng = tmp_path_factory.mktemp("data") / "cifar10", np.random.default_rng(0)
    folder.mkdir()
    colours = rng.integers(40, 216, (10, 3))
    for name in (*CIFAR10_TRAIN, "test_batch.bin"):
        labels = rng.integers(0, 10, TEST if name == "test_batch.bin" else TRAIN)
        noise = rng.integers(-40, 40, (len(labels), 3, 32, 32))
        images = (colours[labels][:, :, None, None] + noise).astype(np.uint8)
        content = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], axis=1)
        (folder / name).write_bytes(content.astype(np.uint8).tobytes())
    return folder


def words(data: Path, output: Path, *more: object, network: str = "resnet20") -> list[object]:
    sizes = ["--epochs", 2, "--batch-size", 16, "--learning-rate", 0.01]
    return ["train", network, "--data-dir", data, "--output", output, *sizes, *more]


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The folder of the run of `trained`, made once."""
    return []


@pytest.fixture
def trained(command, data, made, tmp_path_factory):
    if not made:
        folder = tmp_path_factory.mktemp("trained") / "run"
        result = command(*words(data, folder, "--report"))
        assert result.code == 0, result
        made.append(folder)
    return made[0]


def test_what_it_writes_is_what_it_says(trained, data):
    model, run = load_model(trained / "model.safetensors"), Run.load(trained)
    _, (x_test, y_test) = load_cifar10(data)
    logits = model(standardized(x_test, CIFAR10_MEAN, CIFAR10_STD))
    found = float(np.mean(np.argmax(logits, axis=1) == y_test))
    assert float(rows(trained)[-1]["val_accuracy"]) == pytest.approx(found)
    assert (run.title, run.data, run.images, run.test_images) == ("ResNet-20", "cifar10", 40, 20)
    assert run.data_dir == str(data) and run.classes == 10


def test_the_report_shows_colours_and_names(trained, command, tmp_path):
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert 'class="photo"' in page and 'class="ink"' not in page
    for name in CIFAR10_CLASSES:
        assert f'<th scope="row">{name}</th>' in page
    assert "the first test image, a" in page.lower() and "ResNet-20" in page
    result = command("report", trained, "--output", tmp_path / "again.html")
    assert result.code == 0, result
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_it_resumes_as_if_it_had_never_been_interrupted(
    trained,
    command,
    data,
    tmp_path,
    monkeypatch,
):
    """Resuming within the second epoch, with source, augmentation and running statistics."""
    ordinary = Stopwatch.on_step_end

    def press(self, trainer, step):
        ordinary(self, trainer, step)
        if self.steps == 4:
            signal.raise_signal(signal.SIGINT)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "on_step_end", press)
        assert command(*words(data, output, "--checkpoint-every", 1)).code == 0
    assert len(rows(output)) == 2 and not rows(output)[1]["val_loss"]
    result = command("train", "resnet20", "--resume", output)
    assert result.code == 0, result
    assert "going on after step 4, with 1 epochs done\n" in result.out
    for name in ("history.csv", "model.safetensors"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()


def test_it_is_exported(trained, command, tmp_path):
    pytest.importorskip("onnxruntime")
    result = command("export", trained, "--onnx", tmp_path / "model.onnx")
    assert result.code == 0, result
    assert "(N, 3, 32, 32)" in result.out and "in onnxruntime outputs differ" in result.out


def test_the_other_shortcut_and_limit(command, data, tmp_path):
    more = ["--shortcut", "B", "--limit", 16, "--epochs", 1]
    result = command(*words(data, tmp_path, *more))
    assert result.code == 0, result
    assert "16 training images, 20 test images" in result.out
    model = load_model(tmp_path / "model.safetensors")
    assert model.arguments["shortcut"] == "B"


def test_vgg(command, data, tmp_path):
    more = ["--channels", 2, "--epochs", 1]
    result = command(*words(data, tmp_path, *more, network="vgg11"))
    assert result.code == 0, result
    model = load_model(tmp_path / "model.safetensors")
    assert model.arguments["width"] == 2 and model.arguments["depth"] == 11
    assert_sentence(command(*words(data, tmp_path, "--channels", 0, network="vgg11")), "width")


def test_the_fast_one_whitens_and_resumes(command, data, tmp_path, monkeypatch):
    """Its first layer is computed from the images and not trained."""
    ordinary = Stopwatch.on_step_end

    def press(self, trainer, step):
        ordinary(self, trainer, step)
        if self.steps == 4:
            signal.raise_signal(signal.SIGINT)

    whole, part = tmp_path / "whole", tmp_path / "part"
    assert command(*words(data, whole, network="fastcifar")).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "on_step_end", press)
        more = ["--checkpoint-every", 1]
        assert command(*words(data, part, *more, network="fastcifar")).code == 0
    assert command("train", "fastcifar", "--resume", part).code == 0
    for name in ("history.csv", "model.safetensors"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    model = load_model(whole / "model.safetensors")
    (x, _), _ = load_cifar10(data)
    again = type(model)(rng=0)
    again.whiten(standardized(x, CIFAR10_MEAN, CIFAR10_STD))
    np.testing.assert_array_equal(model[0].weight.data, again[0].weight.data)
    if pytest.importorskip("onnxruntime"):
        assert command("export", whole, "--onnx", tmp_path / "model.onnx").code == 0


OTHER_VIEWS = ["--no-mirror", "--shift", "2"]


def test_the_last_test_of_the_fast_one_is_that_of_views_too(command, data, tmp_path):
    accuracies = []
    for option in ([], OTHER_VIEWS) if NIGHTLY else (OTHER_VIEWS,):
        result = command(*words(data, tmp_path, *option, "--report", network="fastcifar"))
        assert result.code == 0, result
        run, model = Run.load(tmp_path), load_model(tmp_path / "model.safetensors")
        assert run.mirror is ("--no-mirror" not in option)
        assert run.shift == (int(option[-1]) if "--shift" in option else 1)
        assert all(word in run.command for word in option)
        _, (x, y) = load_cifar10(data)
        given = standardized(x, CIFAR10_MEAN, CIFAR10_STD)
        logits = over_views(model, mirror=run.mirror, shift=run.shift)(given)
        right = int((logits.argmax(axis=1) == y).sum())
        accuracies.append(f"{right / len(y):.2%}".replace("%", " %"))
        assert f"test accuracy {accuracies[-1]}" in result.out
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert f"<dt>test accuracy</dt><dd>{accuracies[-1]}</dd>" in page


def test_it_begins_with_the_weights_of_an_earlier_run(trained, command, data, tmp_path):
    """At rate 0, so that parameters stay what they were; running statistics move on."""
    words_ = [*words(data, tmp_path), "--weights", trained / "model.safetensors"]
    result = command(*words_, "--learning-rate", 0, "--epochs", 1)
    assert result.code == 0, result
    before, after = (
        dict(load_model(folder / "model.safetensors").named_parameters())
        for folder in (trained, tmp_path)
    )
    assert before.keys() == after.keys()
    for name, parameter in before.items():
        np.testing.assert_array_equal(after[name].data, parameter.data, err_msg=name)
    assert f"--weights {trained / 'model.safetensors'}" in Run.load(tmp_path).command


def test_weights_of_another_network_are_refused(trained, command, data, tmp_path):
    path = trained / "model.safetensors"
    result = command(*words(data, tmp_path / "run", "--weights", path, network="vgg11"))
    assert_sentence(result, str(path), "no weights of this model", "more")
    result = command(*words(data, tmp_path / "run", "--weights", tmp_path / "none"))
    assert_sentence(result, "none' does not exist", "safetensors")
    assert not (tmp_path / "run").exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("more", "parts"),
        [
            (["--shortcut", "C"], ("shortcut", "'A'", "'B'")),
            (["--epochs", 0], ("--epochs", "at least 1")),
            (["--shift", -1], ("--shift", "at least 0")),
            (["--shift", 32], ("--shift", "size of an image, 32")),
            (["--limit", 0], ("--limit", "at least 1")),
            (["--dtype", "int8"], ("--dtype", "'float32'")),
        ],
    )
    def test_options(self, command, data, tmp_path, more, parts):
        output = tmp_path / "out"
        assert_sentence(command(*words(data, output, *more)), *parts)
        assert not output.exists()

    def test_folders(self, command, data, tmp_path):
        result = command(*words(tmp_path / "none", tmp_path / "out"))
        assert_sentence(result, "data_batch_1.bin", "CIFAR-10", "xbp data fetch cifar10")
        (tmp_path / "cut").mkdir()
        for path in data.iterdir():
            (tmp_path / "cut" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "cut" / "test_batch.bin").write_bytes(b"\0" * 100)
        assert_sentence(command(*words(tmp_path / "cut", tmp_path / "out")), "test_batch.bin")
        assert not (tmp_path / "out").exists()

    def test_predict_is_for_digits(self, trained, command):
        assert_sentence(command("predict", trained, "a.png"), "ResNet", "LeNet-5")

    def test_a_report_of_another_set(self, trained, command, tmp_path):
        for path in trained.iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        record = (tmp_path / "run.json").read_text().replace('"cifar10"', '"no-such"')
        (tmp_path / "run.json").write_text(record)
        assert_sentence(command("report", tmp_path), "run.json", "data")
