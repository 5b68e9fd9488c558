"""A checkpoint as it is opened: what is refused of its document, and which of a folder it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xbp.errors import DataError
from xbp.training.files.checkpoints import FORMAT, Checkpoint, checkpoints_in, open_checkpoint
from xbp.training.files.tensors import write_tensors


def document(steps: int = 4) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": 1,
        "position": {
            "seed": 3,
            "first_epoch": 1,
            "epochs_done": 3,
            "steps_done": 0,
            "steps": steps,
            "seconds": 0.5,
            "stopped": "",
        },
        "run": {"batch_size": 8},
        "callbacks": [],
        "optimizer": {"steps": steps},
        "history": {"records": [{"epoch": 2, "loss": 0.5}, {"epoch": 3}], "seconds": [1, 0.25]},
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    write_tensors(path, {"w": np.ones(2)}, content)
    return path


def test_the_document_is_taken_over(tmp_path: Path) -> None:
    opened = Checkpoint(written(tmp_path / "a.safetensors", document()))
    assert (opened.seed, opened.first_epoch, opened.epochs_done) == (3, 1, 3)
    assert (opened.steps, opened.steps_done, opened.seconds) == (4, 0, 0.5)
    assert opened.records == document()["history"]["records"]
    assert opened.times == [1, 0.25]
    assert (opened.fingerprint, opened.callbacks, opened.own_rates) == ({"batch_size": 8}, [], [])


@pytest.mark.parametrize("name", ["position", "run", "callbacks", "optimizer", "history"])
def test_a_section_of_another_kind(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", document() | {name: "text"})
    with pytest.raises(DataError, match=f"is malformed: its '{name}' is no (dict|list)"):
        Checkpoint(path)


@pytest.mark.parametrize(
    "history",
    [
        {},
        {"records": [{}, {}]},
        {"records": [{}, {}], "seconds": {}},
        {"records": [{}], "seconds": [1.0, 1.0]},
        {"records": [{}, {}, {}], "seconds": [1.0, 1.0, 1.0]},  # of the first epoch too
        {"records": [{}, {}], "seconds": [1.0]},
        {"records": [{}, 2], "seconds": [1.0, 1.0]},
        {"records": [{}, {"loss": "small"}], "seconds": [1.0, 1.0]},
        {"records": [{}, {"loss": True}], "seconds": [1.0, 1.0]},
        {"records": [{}, {}], "seconds": [1.0, "long"]},
    ],
)
def test_a_history_that_does_not_fit(history: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", document() | {"history": history})
    with pytest.raises(DataError, match="its history does not fit its epochs"):
        Checkpoint(path)


def test_a_reason_to_stop_that_is_no_text(tmp_path: Path) -> None:
    content = document()
    content["position"]["stopped"] = 1
    with pytest.raises(DataError, match="its history does not fit its epochs"):
        Checkpoint(written(tmp_path / "a.safetensors", content))


class TestFolder:
    def test_its_checkpoints_by_their_steps(self, tmp_path: Path) -> None:
        names = ["best.safetensors", "step-9.safetensors", "step-10.safetensors"]
        for name in (*reversed(names), "other.safetensors", "step-11.txt", "step-x.safetensors"):
            (tmp_path / name).touch()
        assert [path.name for path in checkpoints_in(tmp_path)] == names

    @pytest.mark.parametrize(("best", "last"), [(2, 4), (8, 4)])
    def test_the_best_may_be_the_last(self, best: int, last: int, tmp_path: Path) -> None:
        """A process was killed after the best one was written and before the last one was."""
        written(tmp_path / "best.safetensors", document(best))
        (tmp_path / "step-00000001.safetensors").write_bytes(b"not opened")
        written(tmp_path / f"step-{last:08}.safetensors", document(last))
        found = open_checkpoint(tmp_path)
        assert found is not None and found.steps == max(best, last)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert open_checkpoint(tmp_path) is None
        assert open_checkpoint(tmp_path / "folder") is None
        with pytest.raises(DataError, match="does not exist"):
            open_checkpoint(tmp_path / "file.safetensors")
