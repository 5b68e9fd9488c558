"""One sentence for each mistake in ``xbp train lenet5``."""

import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.running import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    Result,
    assert_sentence,
    fresh,
    options,
    write_idx,
    write_set,
)

from xbp.backend import LIBRARIES, why_unavailable
from xbp.cli.display import EpochLines


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
            ("precision", "half", ("--precision", "'float32'", "'bfloat16'", "'half'")),
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
            output = Path("/proc")  # not writable, even for root
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
        """A new process, in which numpy's warnings would be visible."""
        (tmp_path / "history.csv").write_text("of an older run")
        result = fresh(*options(small, tmp_path, lr=1e30))
        assert_sentence(result, "epoch 1, step 2", "layer '", "learning rate")
        assert (tmp_path / "history.csv").read_text() == "of an older run"
        assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]

    def test_a_run_that_diverges_looks_like_no_good_one(
        self, command, small, tmp_path, monkeypatch
    ):
        """Its files do not mix with an older model's, and the next good run removes them."""
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
        """Only the test after training notices it."""
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
        """A closed pipe, as in ``xbp … | head``, gives no traceback, also at the end of Python."""
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
