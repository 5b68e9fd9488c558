"""``xbp train lenet5``: its files, repeatability, and Ctrl-C."""

import csv
import re
import signal
import sys

import numpy as np
import pytest
from cli.running import (
    COLUMNS,
    DATA_FILES,
    PICTURES,
    RECORD,
    TRAIN_LABELS,
    Result,
    assert_sentence,
    fresh,
    options,
    rows,
    write_idx,
)

import xbp
from xbp import nn
from xbp.backend import why_unavailable
from xbp.cli.display import Stopwatch
from xbp.datasets import load_mnist, standardize_images
from xbp.models import lenet1998
from xbp.training import load_weights


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run in a new process: (its folder, its output)."""
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
            # The peak of this process, which may have run other tests: only the unit is certain.
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
            {"precision": "bfloat16"},
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
        """MNIST without --data-dir; a limit does not change the test set."""
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
        # One batch, or another order of summation, in float32.
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
        # The explicit option wins, and the other is not read.
        assert command(*options(small, tmp_path, backend="numpy", epochs=1)).code == 0

    def test_terminal(self, command, small, tmp_path, monkeypatch):
        """A terminal gets the same lines, above a progress bar."""
        monkeypatch.setattr("xbp.cli.fitting.on_terminal", lambda: True)
        result = command(*options(small, tmp_path))
        assert result.code == 0, result
        assert len(re.findall(r"epoch \d/2: loss .* \(test .* %\), .* s\n", result.out)) == 2


class TestWithoutMatplotlib:
    def test_said_and_nothing_else_imported(self, small, tmp_path):
        """All other files are written, and no other array library is imported."""
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
