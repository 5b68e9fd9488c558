"""The command line: its files, repeatability, and one sentence for each mistake."""

import csv
import gzip
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from processes import search_path

import xbp
from xbp import nn
from xbp.backend import LIBRARIES, why_unavailable
from xbp.cli import COMMANDS, app, drivers, main
from xbp.cli.display import EpochLines, Stopwatch
from xbp.datasets import load_mnist, standardize_images
from xbp.errors import InputError
from xbp.models import lenet1998
from xbp.nn.summary import summary
from xbp.training import History, load_weights
from xbp.training.metrics.confusion import confusion_matrix

ROOT = Path(xbp.__file__).parents[1]
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
COLUMNS = ["epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy"]
DATA_FILES = {"history.csv", "model.safetensors"}
RECORD = {"run.json"}  # times are in it, so it never repeats
PICTURES = {"learning_curves.png", "confusion_matrix.png"}


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_backend(monkeypatch):
    """The command sets the backend of its process; here the process goes on."""
    monkeypatch.delenv("XBP_BACKEND", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with xbp.use_backend("numpy"):
        yield


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``xbp …`` in this process, by the function that the console script calls."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["xbp", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return Result(exit_.value.code or 0, *capsys.readouterr())

    return run


def fresh(*args: object, python: str = "", **environment: object) -> Result:
    """Run ``python -m xbp …`` in an interpreter of its own, or the statements `python` there."""
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set of the first 300 training and 100 test images of MNIST."""
    (x, y), (x_test, y_test) = load_mnist()
    folder = tmp_path_factory.mktemp("data") / "small"
    return write_set(folder, (x[:300], y[:300]), (x_test[:100], y_test[:100]))


@pytest.fixture
def broken(small, tmp_path):
    """A copy of the small set, for a test to spoil."""
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
    """Exit status 2 and one sentence on the standard error that has all `parts`."""
    assert result.code == 2, result
    assert "Traceback" not in result.err
    assert result.err.startswith("Error: "), result.err
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    for part in parts:
        assert part in result.err


# --- xbp train lenet5 ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run in a process of its own: (its folder, its output)."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "folder"
    result = fresh(*options(small, folder))
    assert result.code == 0, result
    assert result.err == ""
    return folder, result.out


class TestTraining:
    def test_history(self, trained):
        folder, _ = trained
        with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
            assert next(csv.reader(file)) == COLUMNS
        assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
        schedule = xbp.optim.OneCycleLR(0.004, total_steps=10)
        assert [float(row["lr"]) for row in rows(folder)] == [schedule(4), schedule(9)]
        assert float(rows(folder)[1]["loss"]) < float(rows(folder)[0]["loss"])

    def test_weights_give_the_printed_accuracy(self, trained, small):
        folder, out = trained
        model = xbp.models.LeNet5(rng=1)
        model.load_state_dict(load_weights(folder / "model.safetensors"))
        optimizer = xbp.optim.SGD(model.parameters(), lr=0)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"])
        _, (x, y) = load_mnist(small)
        measured = trainer.evaluate(standardize_images(x), y)
        assert float(rows(folder)[-1]["val_accuracy"]) == measured["accuracy"]
        assert float(rows(folder)[-1]["val_loss"]) == measured["loss"]
        shown = (
            f"test loss {measured['loss']:.4f}, test accuracy {100 * measured['accuracy']:.2f} %"
        )
        assert shown in out

    def test_summary(self, trained):
        _, out = trained
        assert re.search(r"LeNet-5 on numpy \(cpu\)", out)
        assert re.search(r"^ +3 +Conv2d +16 × 10 × 10 +2,416 *$", out, re.MULTILINE)
        assert re.search(r"^ +total +61,706 *$", out, re.MULTILINE)

    def test_log_has_a_plain_line_for_each_epoch(self, trained):
        folder, out = trained
        assert "\x1b" not in out
        for number, row in enumerate(rows(folder), start=1):
            shown = (
                f"epoch {number}/2: loss {float(row['loss']):.4f}, "
                f"accuracy {100 * float(row['accuracy']):.2f} % "
                f"(test {float(row['val_loss']):.4f}, {100 * float(row['val_accuracy']):.2f} %)"
            )
            assert shown in out

    def test_class_table(self, trained, small):
        _, out = trained
        _, (_, labels) = load_mnist(small)
        table = re.findall(r"^ +(\d) +(\d+) +(\d+) +(\d+\.\d\d) % ", out, re.MULTILINE)
        assert [int(images) for _, images, _, _ in table] == np.bincount(labels).tolist()
        for _, images, correct, share in table:
            assert share == f"{100 * int(correct) / int(images):.2f}"
        total = sum(int(correct) for _, _, correct, _ in table)
        assert f"test accuracy {total:.2f} %" in out  # there are 100 test images

    def test_time_rate_and_memory(self, trained):
        _, out = trained
        match = re.search(r"trained in (\S+) s, .* at (\S+) images/s(; peak memory (\S+) MB)?", out)
        assert match is not None
        assert float(match[2].replace(",", "")) >= 2 * 300 / (float(match[1]) + 0.05)
        if sys.platform != "win32":
            # It is that of this process, which may have run other tests: only the unit is sure.
            assert 20 < int(match[4].replace(",", "")) < 20_000

    def test_pictures(self, trained):
        pytest.importorskip("matplotlib")
        folder, out = trained
        assert {path.name for path in folder.iterdir()} == DATA_FILES | RECORD | PICTURES
        for name in PICTURES:
            assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
            assert name in out.splitlines()[-1]

    def test_same_seed_same_bytes_in_another_process(self, trained, command, small, tmp_path):
        folder, _ = trained
        assert command(*options(small, tmp_path)).code == 0
        for name in DATA_FILES:
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

    @pytest.mark.parametrize(
        "changed",
        [
            {"seed": 1},
            {"lr": 0.001},
            {"limit": 200},
            {"dtype": "float64"},
            {"batch_size": 60},
            {"activation": "tanh"},
            {"pool": "average"},
        ],
    )
    def test_each_option_changes_the_run(self, trained, command, small, tmp_path, changed):
        folder, _ = trained
        assert command(*options(small, tmp_path, **changed)).code == 0
        for name in DATA_FILES:
            assert (tmp_path / name).read_bytes() != (folder / name).read_bytes()

    def test_older_results_are_replaced_and_other_files_kept(self, command, small, tmp_path):
        for name in ("history.csv", "notes.txt"):
            (tmp_path / name).write_text("mine")
        assert command(*options(small, tmp_path, epochs=1)).code == 0
        assert len(rows(tmp_path)) == 1
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert {path.name for path in tmp_path.iterdir()} - PICTURES - RECORD == DATA_FILES | {
            "notes.txt"
        }

    def test_bundled_mnist_and_limit(self, command, tmp_path):
        """Without --data-dir it is MNIST; the whole test set is the test, whatever the limit."""
        result = command("train", "lenet5", "--limit", 32, "--epochs", 1, "--output", tmp_path)
        assert result.code == 0, result
        assert "32 training images, 10,000 test images, seed 0\n" in result.out

    def test_more_classes(self, command, broken, tmp_path):
        write_idx(broken / TRAIN_LABELS, np.arange(300) % 12)
        result = command(*options(broken, tmp_path / "out", epochs=1, classes=12))
        assert result.code == 0, result
        assert load_weights(tmp_path / "out" / "model.safetensors")["11.bias"].shape == (12,)

    def test_the_network_of_1998_has_its_own_loss(self, command, small, tmp_path):
        result = command(*options(small, tmp_path, variant=1998, epochs=1))
        assert result.code == 0, result
        assert re.search(r"^ +total +60,000 *$", result.out, re.MULTILINE)
        model = xbp.models.LeNet5(variant="1998")
        model.load_state_dict(load_weights(tmp_path / "model.safetensors"))
        _, (x, y) = load_mnist(small)
        value, _ = lenet1998.RejectingCrossEntropyLoss()(model(standardize_images(x)), y)
        # One batch here, another order of summation there, in float32.
        assert float(rows(tmp_path)[-1]["val_loss"]) == pytest.approx(float(value), rel=1e-5)

    @pytest.mark.parametrize("name", ["array_api_strict", "torch", "cupy"])
    def test_other_backends_agree(self, trained, command, small, tmp_path, name):
        reason = why_unavailable(name)
        if reason:
            pytest.skip(reason)
        folder, _ = trained
        result = command(*options(small, tmp_path, backend=name))
        assert result.code == 0, result
        assert f"LeNet-5 on {name} (" in result.out
        for own, reference in zip(rows(tmp_path), rows(folder), strict=True):
            assert float(own["loss"]) == pytest.approx(float(reference["loss"]), rel=1e-3)

    def test_backend_from_the_environment(self, command, small, tmp_path, monkeypatch):
        monkeypatch.setenv("XBP_BACKEND", "no-such")
        assert_sentence(command(*options(small, tmp_path)), "'no-such'", "'numpy'")
        # What is said explicitly wins, and the other is not even looked at.
        assert command(*options(small, tmp_path, backend="numpy", epochs=1)).code == 0

    def test_terminal(self, command, small, tmp_path, monkeypatch):
        """Where a person watches, the same lines appear, above a progress bar."""
        monkeypatch.setattr("xbp.cli.fitting.on_terminal", lambda: True)
        result = command(*options(small, tmp_path))
        assert result.code == 0, result
        assert len(re.findall(r"epoch \d/2: loss .* \(test .* %\), .* s\n", result.out)) == 2


class TestWithoutMatplotlib:
    def test_said_and_nothing_else_imported(self, small, tmp_path):
        """The rest is written; and no other array library was imported on the way."""
        statements = """
import sys
sys.modules["matplotlib"] = None
from xbp.cli import main
try:
    main()
finally:
    print([m for m in ("cupy", "torch", "array_api_strict", "scipy") if m in sys.modules])
"""
        result = fresh(*options(small, tmp_path, epochs=1), python=statements)
        assert result.code == 0, result
        lines = result.out.splitlines()
        assert "pip install matplotlib" in lines[-3]
        assert lines[-2] == f"wrote history.csv, model.safetensors, run.json to {tmp_path}"
        assert lines[-1] == "[]"
        assert {path.name for path in tmp_path.iterdir()} == DATA_FILES | RECORD

    def test_matplotlib_is_imported_only_for_pictures(self):
        statements = "import sys; from xbp.cli import main; print('matplotlib' in sys.modules)"
        assert fresh(python=statements).out == "False\n"


class TestInterrupt:
    def test_within_training_keeps_what_was_learned(self, command, small, tmp_path, monkeypatch):
        ordinary = Stopwatch.on_step_end

        def press(self, trainer, step):
            ordinary(self, trainer, step)
            if self.steps == 7:  # of 5 an epoch
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Stopwatch, "on_step_end", press)
        result = command(*options(small, tmp_path, epochs=9))
        assert result.code == 0, result
        assert "training ended early: interrupted by Ctrl-C\n" in result.out
        assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
        assert rows(tmp_path)[1]["val_loss"] == ""
        assert "test accuracy" in result.out
        assert "wrote history.csv, model.safetensors" in result.out

    def test_elsewhere_is_quiet(self, command, small, tmp_path, monkeypatch):
        def press(folder):
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr("xbp.datasets.labelled.load_mnist", press)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
        try:
            assert command(*options(small, tmp_path)) == Result(130, "", "")
        finally:
            signal.signal(signal.SIGINT, before)


# --- mistakes ------------------------------------------------------------------------------------


class TestMistakes:
    @pytest.mark.parametrize(
        ("option", "value", "parts"),
        [
            ("epochs", -1, ("--epochs", "at least 1", "-1")),
            ("epochs", 0, ("--epochs", "at least 1", "0")),
            ("batch_size", 0, ("--batch-size", "at least 1", "0")),
            ("lr", "nan", ("--learning-rate", "finite", "nan")),
            ("lr", "inf", ("--learning-rate", "finite", "inf")),
            ("lr", -1, ("--learning-rate", "from 0", "-1")),
            ("seed", -1, ("--seed", "at least 0", "-1")),
            ("dtype", "int8", ("--dtype", "'float32'", "'float64'", "'int8'")),
            ("limit", 0, ("--limit", "at least 1", "0")),
            ("classes", 1, ("--classes", "at least 2", "1")),
            ("activation", "sine", ("activation", "'relu'", "'tanh'", "'sine'")),
            ("pool", "min", ("pool", "'max'", "'average'", "'min'")),
            ("variant", 1989, ("variant", "'1998'", "'1989'")),
            ("backend", "no-such", ("'no-such'", "'numpy'", "'cupy'")),
            ("device", "cuda:1", ("'numpy'", "'cuda:1'", "'cpu'")),
        ],
    )
    def test_value(self, command, small, tmp_path, option, value, parts):
        output = tmp_path / "out"
        result = command(*options(small, output, **{option: value}))
        assert_sentence(result, *parts)
        assert result.out == ""
        assert not output.exists()

    @pytest.mark.parametrize(
        ("args", "part"),
        [
            (["train", "lenet5", "--epochs", "many"], "--epochs"),
            (["train", "lenet5", "--no-such"], "--no-such"),
            (["train", "lenet5", "extra"], "extra"),
            (["train", "no-such"], "no-such"),
            (["no-such"], "no-such"),
        ],
    )
    def test_usage(self, command, args, part):
        result = command(*args)
        assert (result.code, result.out) == (2, "")
        assert part in result.err
        assert "Traceback" not in result.err

    def test_cupy_without_a_gpu(self, command, small, tmp_path):
        if why_unavailable("cupy") is None:
            pytest.skip("there is a GPU")
        assert_sentence(command(*options(small, tmp_path, backend="cupy")), "'cupy'", "CUDA")

    def test_a_backend_that_is_broken(self, command, small, tmp_path, monkeypatch):
        def explode():
            raise RuntimeError("first\nsecond")

        monkeypatch.setattr(LIBRARIES["cupy"], "namespace", explode)
        result = command(*options(small, tmp_path, backend="cupy"))
        assert_sentence(result, "'cupy'", "RuntimeError: first)")

    def test_missing_folder(self, command, tmp_path):
        missing = tmp_path / "missing"
        assert_sentence(
            command(*options(missing, tmp_path / "out")), repr(str(missing)), TEST_LABELS
        )

    def test_missing_file(self, command, broken, tmp_path):
        (broken / TEST_IMAGES).unlink()
        assert_sentence(command(*options(broken, tmp_path / "out")), TEST_IMAGES)

    def test_truncated_gzip(self, command, broken, tmp_path):
        path = broken / TRAIN_IMAGES
        content = gzip.compress(path.read_bytes())
        path.unlink()
        cut = path.with_name(f"{path.name}.gz")
        cut.write_bytes(content[: len(content) // 2])
        result = command(*options(broken, tmp_path / "out"))
        assert_sentence(result, repr(str(cut)), "truncated")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "count", "part"), [(TRAIN_LABELS, 300, "training"), (TEST_LABELS, 100, "test")]
    )
    def test_label_out_of_range(self, command, broken, tmp_path, name, count, part):
        labels = np.zeros(count)
        labels[-1] = 12  # beyond every --limit
        write_idx(broken / name, labels)
        result = command(*options(broken, tmp_path / "out", limit=10))
        assert_sentence(result, f"the {part} set", repr(str(broken)), "label 12", "0 to 9")

    def test_image_size(self, command, tmp_path):
        x, y = np.zeros((3, 32, 30)), np.arange(3)
        folder = write_set(tmp_path / "large", (x, y), (x, y))
        result = command(*options(folder, tmp_path / "out"))
        assert_sentence(result, repr(str(folder)), "32 × 30", "28 × 28", "LeNet-5")

    def test_no_test_images(self, command, broken, tmp_path):
        write_idx(broken / TEST_IMAGES, np.zeros((0, 28, 28)))
        write_idx(broken / TEST_LABELS, np.zeros(0))
        assert_sentence(command(*options(broken, tmp_path / "out")), "test set", "empty")

    def test_output_is_a_file(self, command, small, tmp_path):
        path = tmp_path / "file"
        path.write_text("mine")
        for output, reason in ((path, "is a file"), (path / "below", "Not a directory")):
            result = command(*options(small, output))
            assert_sentence(result, repr(str(output)), reason, "--output")
            assert result.out == ""
        assert path.read_text() == "mine"

    def test_output_cannot_be_written(self, command, small, tmp_path):
        output = tmp_path / "locked"
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            output = Path("/proc")  # nobody can write there, root included
            if not output.exists():
                pytest.skip("root may write everywhere")
        else:
            output.mkdir(mode=0o500)
        result = command(*options(small, output))
        assert_sentence(result, repr(str(output)), "--output")
        assert result.out == ""

    def test_a_folder_in_place_of_a_file(self, command, small, tmp_path):
        (tmp_path / "model.safetensors").mkdir()
        result = command(*options(small, tmp_path))
        assert_sentence(result, repr(str(tmp_path / "model.safetensors")), "is a folder")
        assert result.out == ""

    def test_output_vanishes_during_training(self, command, small, tmp_path, monkeypatch):
        output = tmp_path / "out"
        monkeypatch.setattr(EpochLines, "on_epoch_end", lambda *_: shutil.rmtree(output))
        result = command(*options(small, output, epochs=1))
        assert_sentence(result, repr(str(output / "history.csv")))

    def test_not_enough_memory(self, command, small, tmp_path, monkeypatch):
        def full(*_args, **_kwargs):
            raise MemoryError("7 GiB")

        monkeypatch.setattr("xbp.cli.classify.fit", full)
        assert_sentence(command(*options(small, tmp_path)), "7 GiB", "--batch-size")

    def test_learning_rate_that_gives_nan(self, small, tmp_path):
        """In a fresh process, where numpy's warnings would be seen."""
        (tmp_path / "history.csv").write_text("of an older run")
        result = fresh(*options(small, tmp_path, lr=1e30))
        assert_sentence(result, "epoch 1, step 2", "layer '", "learning rate")
        assert (tmp_path / "history.csv").read_text() == "of an older run"
        assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]

    def test_a_run_that_diverges_looks_like_no_good_one(
        self, command, small, tmp_path, monkeypatch
    ):
        """Nothing of it stands beside an older model; and a good run takes its traces away."""
        assert command(*options(small, tmp_path, epochs=1)).code == 0
        older = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def poison(self, trainer, epoch, record):
            trainer.model[7].weight.data[0, 0] = float("nan")

        with monkeypatch.context() as patch:
            patch.setattr(EpochLines, "on_epoch_end", poison)
            assert_sentence(command(*options(small, tmp_path)), str(tmp_path / "diverged.csv"))
        assert {name: (tmp_path / name).read_bytes() for name in older} == older
        assert {path.name for path in tmp_path.iterdir()} == {*older, "diverged.csv"}
        assert command(*options(small, tmp_path, epochs=1)).code == 0
        assert {path.name for path in tmp_path.iterdir()} == set(older)

    def test_nor_one_that_its_last_step_spoils(self, command, small, tmp_path):
        """Such that only the test after it sees that."""
        (tmp_path / "history.csv").write_text("of an older run")
        result = command(*options(small, tmp_path, lr=1e38, epochs=1, limit=64))
        assert_sentence(result, "the test loss is nan", "--learning-rate", "diverged.csv")
        assert (tmp_path / "history.csv").read_text() == "of an older run"
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"history.csv", "diverged.csv"}

    def test_a_report_of_an_older_run_goes(self, command, small, tmp_path):
        for name in ("report.html", "diverged.csv"):
            (tmp_path / name).write_text("of an older run")
        assert command(*options(small, tmp_path, epochs=1)).code == 0
        assert not (tmp_path / "report.html").exists()
        assert not (tmp_path / "diverged.csv").exists()

    def test_a_model_that_only_guesses_gets_a_hint(self, command, small, tmp_path):
        hint = "the model has learned nothing that helps"
        result = command(*options(small, tmp_path, lr=1000, epochs=1))
        assert result.code == 0
        assert f"{hint}: one who always says the same class is right for " in result.out
        assert "try a --learning-rate below 1000" in result.out
        assert hint not in command(*options(small, tmp_path, epochs=4)).out

    def test_nan_in_a_later_epoch_keeps_the_earlier_ones(
        self, command, small, tmp_path, monkeypatch
    ):
        def poison(self, trainer, epoch, record):
            trainer.model[7].weight.data[0, 0] = float("nan")

        monkeypatch.setattr(EpochLines, "on_epoch_end", poison)
        result = command(*options(small, tmp_path))
        assert_sentence(result, "epoch 2, step 1", "layer '7', Linear")
        with (tmp_path / "diverged.csv").open(newline="", encoding="utf-8") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
        assert not (tmp_path / "history.csv").exists()
        assert not (tmp_path / "model.safetensors").exists()

    def test_the_system_refuses_something(self, command, small, tmp_path, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied", "some-file")

        monkeypatch.setattr("xbp.cli.classify.fit", refuse)
        assert_sentence(command(*options(small, tmp_path)), "Permission denied", "some-file")

    def test_nobody_reads_the_output(self):
        """As in ``xbp … | head``: no traceback, also not from the interpreter's own end."""
        for args in (["--help"], ["--version"]):
            process = subprocess.Popen(
                [sys.executable, "-m", "xbp", *args],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            process.stdout.close()
            assert process.stderr.read() == ""
            process.stderr.close()
            assert process.wait() == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    def test_output_goes_to_a_full_disk(self):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "xbp", "--version"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert_sentence(Result(done.returncode, "", done.stderr), "No space left")


# --- xbp, xbp --help, xbp --version, xbp info ----------------------------------------------------


class TestInfo:
    def test_version(self, command):
        assert command("--version") == Result(0, f"xbp {xbp.__version__}\n", "")

    def test_without_a_command(self, command):
        result = command()
        assert (result.code, result.out) == (2, command("--help").out)

    def test_a_command_that_there_is_not(self, command):
        result = command("inf")
        assert result.code == 2
        assert "No such command 'inf'." in result.err
        if hasattr(typer.main.get_command(app), "suggest_commands"):  # not yet in 0.15.4
            assert "Did you mean 'info'?" in result.err

    @pytest.mark.parametrize("name", COMMANDS)
    def test_the_list_of_commands_says_what_each_says_of_itself(self, name):
        group = typer.main.get_command(app)
        own, _, _ = group.get_command(None, name).help.partition("\n\n")
        assert " ".join(own.split()) == COMMANDS[name][2]

    @pytest.mark.parametrize(
        ("args", "parts"),
        [
            (["--help"], ["train", "info", "--version"]),
            (["train", "-h"], ["lenet5"]),
            (
                ["train", "lenet5", "--help"],
                ["--backend", "--epochs", "0.004", "runs/lenet5", "XBP_BACKEND"],
            ),
        ],
    )
    def test_help(self, command, args, parts):
        result = command(*args)
        assert (result.code, result.err) == (0, "")
        for part in parts:
            assert part in result.out

    def test_info(self, command):
        result = command("info")
        assert (result.code, result.err) == (0, "")
        for name in ("numpy", "array-api-compat", "safetensors"):
            assert re.search(rf"{name} +{importlib.metadata.version(name)}\b", result.out)
        assert re.search(rf"xbp +{re.escape(xbp.__version__)}\b", result.out)
        assert platform.python_version() in result.out
        for name in LIBRARIES:
            reason = why_unavailable(name)
            usable = "no" if reason else "yes"
            assert re.search(rf"^ +{name} +{usable}\b", result.out, re.MULTILINE)
            if reason:
                assert f"{name}: {reason}\n" in result.out  # whole, on one line
        assert re.search(r"numpy +yes +cpu\b", result.out)

    @pytest.mark.parametrize(
        "content",
        ["raise RuntimeError('odd')", "raise SystemExit('odd')", "raise ImportError('odd')", ""],
    )
    def test_broken_cupy(self, tmp_path, content):
        """Whatever CuPy's import does, numpy works and the reason is told."""
        (tmp_path / "cupy.py").write_text(content)
        (tmp_path / "torch.py").write_text("raise ImportError('not today')")
        result = fresh("info", first_path=tmp_path, XBP_BACKEND="no-such")
        assert (result.code, result.err) == (0, ""), result
        assert re.search(r"numpy +yes +cpu\b", result.out)
        assert re.search(r"cupy +no\b", result.out)
        reason = next(line for line in result.out.splitlines() if line.startswith("cupy: "))
        assert "'cupy' backend" in reason
        assert "install" in reason
        assert "odd" in reason or not content

    def test_devices_and_what_is_wrong_with_them(self, command, monkeypatch):
        """With two imagined GPUs and a wheel that is too new for their driver."""
        gpus = (
            drivers.Device("Imagined GPU", (9, 0), 140 * 2**30),
            drivers.Device("Another one", (8, 6), 24 * 2**30),
        )
        facts = drivers.Facts(
            drivers.Driver(12040, devices=gpus), wheels={"cupy-cuda13x": "14.2.0"}
        )
        monkeypatch.setattr(drivers, "look", lambda: facts)
        result = command("info")
        assert (result.code, result.err) == (0, "")
        assert re.search(r"CUDA of the driver +up to 12\.4\b", result.out)
        lines = result.out.splitlines()
        assert "cuda:0: Imagined GPU, compute capability 9.0, 140 GiB" in lines
        assert "cuda:1: Another one, compute capability 8.6, 24 GiB" in lines
        assert [f"GPU: {line}" for line in drivers.diagnose(facts)] == lines[-1:]

    def test_nothing_is_wrong_without_a_gpu(self, command, monkeypatch):
        monkeypatch.setattr(drivers, "look", drivers.Facts)
        result = command("info")
        assert not re.search("^(GPU|cuda)", result.out, re.MULTILINE)
        assert "CUDA of the driver" not in result.out

    def test_two_wheels_warn_in_a_sentence_only(self, command, monkeypatch, recwarn):
        def find(name):
            warnings.warn("\n----\n\n  CuPy may not function correctly because …", stacklevel=1)
            return xbp.get_backend()

        wheels = {"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}
        monkeypatch.setattr(drivers, "look", lambda: drivers.Facts(wheels=wheels))
        monkeypatch.setattr("xbp.cli.info.LIBRARIES", {"torch": None})
        monkeypatch.setattr("xbp.cli.info.find_backend", find)
        result = command("info")
        assert (result.code, result.err) == (0, "")
        assert "GPU: cupy-cuda12x and cupy-cuda13x are installed at once" in result.out
        assert not recwarn

    def test_facts_of_a_cupy_that_works(self, command, monkeypatch):
        facts = {"device": "Imagined GPU", "driver": "580.1", "CUDA runtime": "13.2"}
        monkeypatch.setattr("xbp.cli.info.LIBRARIES", {"cupy": None})
        monkeypatch.setattr("xbp.cli.info.find_backend", lambda name: xbp.get_backend())
        monkeypatch.setattr("xbp.cli.info.facts_of", lambda name: facts)
        result = command("info")
        assert "cupy: device Imagined GPU, driver 580.1, CUDA runtime 13.2\n" in result.out

    def test_terminal_without_unicode(self, small, tmp_path):
        result = fresh(*options(small, tmp_path, epochs=1), PYTHONIOENCODING="ascii")
        assert (result.code, result.err) == (0, "")
        assert "61,706" in result.out


# --- what the command line is made of ------------------------------------------------------------


class TestSummary:
    def test_shared_parameters_count_once(self):
        linear = nn.Linear(3, 3, rng=0)
        model = nn.Sequential(linear, nn.Sequential(nn.ReLU(), linear))
        found = summary(model, (3,))
        assert [(row.name, row.parameters) for row in found] == [("0", 12), ("1.0", 0), ("1.1", 0)]

    @pytest.mark.parametrize("name", ["numpy", "array_api_strict"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_follows_the_model(self, name, dtype):
        """Where new arrays are born does not matter; where the model lives does."""
        if why_unavailable(name):
            pytest.skip(why_unavailable(name))
        model = xbp.models.LeNet5(rng=0, dtype=dtype).to(name)
        assert sum(row.parameters for row in summary(model, (1, 28, 28))) == 61706

    def test_one_layer(self):
        assert summary(nn.ReLU(), (2, 3)) == [("", "ReLU", (2, 3), 0)]

    @pytest.mark.parametrize("shape", [3, (0,), (2.5,), (1, 1)])
    def test_wrong_shape(self, shape):
        with pytest.raises(InputError):
            summary(nn.Sequential(nn.Conv2d(1, 1, 3, rng=0)), shape)


class TestConfusionMatrix:
    def test_rows_are_true_classes(self):
        labels, predictions = np.array([0, 0, 0, 2], np.uint8), np.array([0, 1, 1, 0])
        matrix = confusion_matrix(labels, predictions, 3)
        assert matrix.tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 0]]
        assert matrix.dtype == np.int64

    def test_small_integers_do_not_overflow(self):
        labels = np.full(5, 99, np.uint8)
        assert confusion_matrix(labels, labels, 100)[99, 99] == 5

    def test_other_libraries(self):
        strict = pytest.importorskip("array_api_strict")
        labels = strict.asarray([1, 0], device=strict.Device("device1"))
        assert confusion_matrix(labels, labels, 2).tolist() == [[1, 0], [0, 1]]

    @pytest.mark.parametrize(
        ("labels", "predictions", "part"),
        [
            ([0, 2], [0, 1], "labels must be from 0 to 1 for 2 classes, got 2"),
            ([0, 1], [0, -1], "predictions must be from 0 to 1 for 2 classes, got -1"),
            ([0, 1, 1], [0, 1], "3 labels but 2 predictions"),
            ([0.0, 1.0], [0, 1], "labels must be integers"),
            ([[0, 1]], [0, 1], "labels must be integers"),
        ],
    )
    def test_refuses(self, labels, predictions, part):
        with pytest.raises(InputError, match=re.escape(part)):
            confusion_matrix(np.array(labels), np.array(predictions), 2)


class TestPlots:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_learning_curves(self):
        from xbp.training.plots import plot_learning_curves

        history = History()
        history.records = [
            {"epoch": 1, "lr": 1.0, "loss": 2.0, "accuracy": 0.5, "val_loss": 3.0},
            {"epoch": 2, "lr": 1.0, "loss": 1.0, "accuracy": 0.75},  # interrupted
        ]
        loss, accuracy = plot_learning_curves(history).axes
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss")
        assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy")
        curves = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
        assert curves == {"training": [[1, 2], [2, 1]], "validation": [[1, 3]]}
        assert [text.get_text() for text in accuracy.get_legend().texts] == ["training"]

    @pytest.mark.parametrize("classes", [1, 2, 10, 47])
    def test_confusion_matrix(self, classes, tmp_path):
        from xbp.training.plots import plot_confusion_matrix

        matrix = np.diag(np.full(classes, 20))
        matrix[0, -1] += 3
        figure = plot_confusion_matrix(matrix)
        axes = figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
        if classes == 10:
            cells = {text.get_position(): text.get_text() for text in axes.texts}
            assert cells == {(9, 0): "3"} | {(i, i): "20" for i in range(10)}
            assert axes.get_title() == "3 of 203 wrong"
        figure.savefig(tmp_path / "matrix.png")

    def test_no_global_state(self):
        """Neither pyplot nor a choice of backend: a notebook's own figures stay as they are."""
        statements = """
import sys
import numpy as np
from xbp.training.plots import plot_confusion_matrix
plot_confusion_matrix(np.eye(2, dtype=int))
print("matplotlib.pyplot" in sys.modules)
"""
        assert fresh(python=statements).out == "False\n"
