"""``xbp train lenet5 --checkpoint-every N`` and ``--resume DIR``."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from cli.running import assert_sentence, options

from xbp.cli.display import Stopwatch
from xbp.training.files.checkpoints import checkpoints_in
from xbp.training.files.tensors import TensorFile, write_tensors

RESULTS = ("history.csv", "model.safetensors")


@pytest.fixture(scope="module")
def made():
    """The folder of the run of `interrupted`, made once."""
    return []


@pytest.fixture
def interrupted(command, small, made, tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the folder of a run that Ctrl-C ended in its second epoch, after 7 of 10 steps."""
    ordinary = Stopwatch.on_step_end

    def press(self, trainer, step):
        ordinary(self, trainer, step)
        if self.steps == 7:
            signal.raise_signal(signal.SIGINT)

    if not made:
        folder = tmp_path_factory.mktemp("interrupted") / "run"
        with monkeypatch.context() as patch:
            patch.setattr(Stopwatch, "on_step_end", press)
            done = command(*options(small, folder, checkpoint_every=2, activation="tanh"))
        assert done.code == 0, done
        made.append(folder)
    return shutil.copytree(made[0], tmp_path / "run")


def test_it_ends_as_if_it_had_never_been_interrupted(
    command,
    small,
    interrupted,
    tmp_path,
):
    """Activation, data and numbers of steps are those of the run, without options."""
    assert checkpoints_in(interrupted / "checkpoints")[-1].name == "step-00000007.safetensors"
    assert command(*options(small, tmp_path / "whole", activation="tanh")).code == 0
    result = command("train", "lenet5", "--resume", interrupted)
    assert result.code == 0, result
    assert "going on after step 7, with 1 epochs done\n" in result.out
    for name in RESULTS:
        assert (interrupted / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "--resume" not in (interrupted / "run.json").read_text()


def test_options_may_be_repeated_and_another_folder_given(command, small, interrupted, tmp_path):
    """With another output folder, the resumed run stays unchanged."""
    names = sorted(path.name for path in interrupted.rglob("*"))
    again = options(small, tmp_path / "other", activation="tanh")
    result = command(*again, "--resume", interrupted)
    assert result.code == 0, result
    assert sorted(path.name for path in interrupted.rglob("*")) == names
    assert (tmp_path / "other" / "model.safetensors").exists()


def test_on_another_backend(command, interrupted):
    pytest.importorskip("array_api_strict")
    result = command("train", "lenet5", "--resume", interrupted, "--backend", "array_api_strict")
    assert result.code == 0, result
    assert "written on numpy, so equal up to rounding\n" in result.out


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("--epochs", 3, ("--epochs is 3, but 2",)),
        ("--seed", 1, ("--seed is 1, but 0",)),
        ("--lr", 0.1, ("--learning-rate is 0.1, but 0.004",)),
        ("--batch-size", 32, ("--batch-size is 32, but 64",)),
        ("--activation", "relu", ("--activation is relu, but tanh",)),
        ("--limit", 10, ("--limit is 10, but None",)),
        ("--checkpoint-every", 0, ("--checkpoint-every", "at least 1")),
    ],
)
def test_another_run_is_refused(command, interrupted, option, value, parts):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    result = command("train", "lenet5", "--resume", interrupted, option, value)
    assert_sentence(result, *parts)
    assert before == {path: path.read_bytes() for path in before}


def test_other_data_are_refused(command, interrupted, small, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(small).iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        (other / path.name).write_bytes(content)
    result = command("train", "lenet5", "--resume", interrupted, "--data-dir", other)
    assert_sentence(result, "this run is not that of", "x is float32", "SHA-256")


def test_a_folder_without_a_checkpoint(command, small, tmp_path):
    assert_sentence(command("train", "lenet5", "--resume", tmp_path), "holds no checkpoint")


def test_a_folder_with_checkpoints_is_not_begun_anew(command, small, interrupted):
    result = command(*options(small, interrupted, checkpoint_every=2))
    assert_sentence(result, "holds checkpoints of another run", "resume it")


def test_files_are_data(command, interrupted):
    """A checkpoint with other options than those of a run is refused, with any checksum."""
    path = interrupted / "checkpoints" / "step-00000007.safetensors"
    file = TensorFile(path)
    arrays, document = file.read(), file.document
    good = document["notes"]
    for notes, part in [
        (None, "was not written by this command"),
        ({**good, "options": {**good["options"], "classes": 10**12}}, "more classes than weights"),
        ({**good, "options": {**good["options"], "epochs": []}}, "was not written by this command"),
        ({**good, "command": "rm"}, "is of 'rm'"),
        ({"options": good["options"]}, "is of None"),
    ]:
        write_tensors(path, arrays, {**document, "notes": notes})
        assert_sentence(command("train", "lenet5", "--resume", interrupted), part)
    odd = {**good, "options": {**good["options"], "epochs": "many"}}
    write_tensors(path, arrays, {**document, "notes": odd})
    result = command("train", "lenet5", "--resume", interrupted)
    assert (result.code, "--epochs" in result.err, "Traceback" in result.err) == (2, True, False)
    path.write_bytes(np.random.default_rng(0).bytes(999))
    result = command("train", "lenet5", "--resume", interrupted)
    assert_sentence(result, "step-00000007.safetensors", "move it away")
