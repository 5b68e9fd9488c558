"""The description of a run: it comes back, and is refused when it is malformed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xbp import accelerators, machine
from xbp.errors import DataError
from xbp.models import MLP
from xbp.training import History, load_weights
from xbp.training.files.run import (
    CURVES,
    OWN,
    TEXT,
    TEXTS,
    Run,
    load_history,
    read_file,
    save_run,
    surroundings,
)

RUN = Run(
    command="xbp train",
    title="MLP",
    classes=3,
    backend="numpy (cpu)",
    seed=1,
    epochs=2,
    batch_size=8,
    images=20,
    test_images=10,
    data_dir=None,
    started="2026-01-02T03:04:05+00:00",
    seconds=[1.5, 2],
    rate=100.0,
    memory="1 MB",
    stopped="all 2 epochs done",
    environment={"numpy": "2.0"},
    steps={"epoch": [0.5, 1.5], "loss": [1.0, 0.5], "lr": [0.1, 0.1]},
)
LAYERS = [["0", "Linear", "3", "15"]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder than the current one, which is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


class TestRecord:
    @pytest.mark.parametrize(
        ("run", "left_out"),
        [
            (RUN, {"data", "mirror", "shift", "layers", "sample_shape"}),
            (
                replace(RUN, mirror=True, data_dir="/data"),
                {"data", "shift", "layers", "sample_shape"},
            ),
            (
                replace(RUN, shift=1, data_dir="/data"),
                {"data", "mirror", "layers", "sample_shape"},
            ),
            (replace(RUN, data=TEXT), {"mirror", "shift", "layers", "sample_shape"}),
            (replace(RUN, data=TEXTS, sample_shape=[1, 7]), {"mirror", "shift", "layers"}),
            (replace(RUN, data=OWN, sample_shape=[4], layers=LAYERS), {"mirror", "shift"}),
        ],
    )
    def test_comes_back(self, run: Run, left_out: set[str], folder: Path) -> None:
        """Without what earlier versions did not write."""
        run.save(folder)
        text = (folder / "run.json").read_text(encoding="utf-8")
        assert vars(run).keys() - json.loads(text).keys() == left_out
        assert text.endswith("}\n")
        assert Run.load(folder) == run

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("title", 3),
            ("classes", 3.0),
            ("classes", True),
            ("data_dir", 3),
            ("memory", []),
            ("rate", True),
            ("rate", "fast"),
            ("rate", 1e300),  # a number that overflows as soon as one computes with it
            ("rate", -1e301),
            ("seconds", {}),
            ("seconds", [1.0, "long"]),
            ("environment", []),
            ("environment", {"numpy": 2.0}),
            ("steps", {"epoch": [1.0], "loss": [1.0]}),
            ("steps", RUN.steps | {"more": [1.0, 1.0]}),
            ("steps", RUN.steps | {"lr": [0.1]}),
            ("steps", RUN.steps | {"lr": ["0.1", "0.1"]}),
            ("started", "yesterday"),
            ("started", "2026-01-02T03:04:05"),  # in no time zone
            ("data", "other"),
            ("mirror", 1),
            ("shift", -1),
            ("shift", True),
            ("sample_shape", [3, 0]),
            ("layers", [[*LAYERS[0], "0"]]),
            ("layers", [LAYERS[0][:3]]),
            ("layers", [["0", "Linear", "3", "many"]]),
        ],
    )
    def test_with_a_wrong_entry(self, name: str, value: Any, folder: Path) -> None:
        RUN.save(folder)
        content = json.loads((folder / "run.json").read_text(encoding="utf-8")) | {name: value}
        (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match=rf"no record of a run \({name} missing or wrong\)"):
            Run.load(folder)

    @pytest.mark.parametrize(
        ("content", "missing"), [("{}", "command, title, .*, steps"), ("[]", "command, .*, layers")]
    )
    def test_without_entries(self, content: str, missing: str, folder: Path) -> None:
        (folder / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=rf"run/run.json' .*\({missing} missing or wrong\)"):
            Run.load(folder)

    @pytest.mark.parametrize("content", ["{", '{"rate": NaN}', "[" * 100_000])
    def test_that_is_no_json(self, content: str, folder: Path) -> None:
        (folder / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"run/run.json' is no JSON"):
            Run.load(folder)

    @pytest.mark.parametrize(
        ("epochs", "all_steps"), [([], False), ([0.5], True), ([1.0], False), ([1.5, 2.5], False)]
    )
    def test_knows_all_steps(self, epochs: list[float], all_steps: bool) -> None:
        """A first window that ends after the first epoch is that of a resumed run."""
        assert replace(RUN, steps=dict.fromkeys(CURVES, epochs)).knows_all_steps is all_steps


class TestHistory:
    def test_comes_back(self, folder: Path) -> None:
        history = History()
        history.records = [{"epoch": 1, "lr": 0.1, "loss": 1 / 3, "val_loss": 2e-9},
                           {"epoch": 2, "lr": 0.1, "loss": 0.25}]  # fmt: skip
        history.to_csv(folder / "history.csv")
        assert load_history(folder).records == history.records

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "there is no epoch"),
            ("epoch,lr,loss\n", "there is no epoch"),
            ("epoch,lr\n1,2\n", "numbers are missing"),
            ("epoch,lr,loss\n1,2,nan\n", "numbers are missing"),
            ("epoch,lr,loss\n1,2,small\n", "could not convert"),
            ("epoch,lr,loss\n1,2,3,4\n", ""),
        ],
    )
    def test_that_is_none(self, text: str, why: str, folder: Path) -> None:
        (folder / "history.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=rf"run/history.csv' is no history of a run \(.*{why}"):
            load_history(folder)


class TestFile:
    def test_is_text_in_utf_8(self, folder: Path) -> None:
        (folder / "a.txt").write_bytes("ü\n".encode())
        assert read_file(folder, "a.txt") == "ü\n"
        (folder / "a.txt").write_bytes(b"\xff")
        with pytest.raises(DataError, match=r"a.txt' is no text in UTF-8"):
            read_file(folder, "a.txt")

    def test_is_of_moderate_size(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xbp.training.files.run.LARGEST", 4)
        (folder / "a.txt").write_text("1234")
        assert read_file(folder, "a.txt") == "1234"
        (folder / "a.txt").write_text("12345")
        with pytest.raises(DataError, match="larger than 4 bytes"):
            read_file(folder, "a.txt")

    def test_is_there(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"run' holds no a\.txt"):
            read_file(folder, "a.txt")


def test_the_surroundings_of_a_run() -> None:
    found = surroundings()
    assert found == machine.surroundings() | {"accelerators": accelerators.status()}
    assert {"accelerators", "numpy"} <= found.keys()


class TestSave:
    def trainer(self) -> Any:
        history = History()
        history.records = [{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.1, "loss": 1}]
        history.seconds, history.stopped = [3600.0, 1800.0], "done"
        model = MLP(4, 5, 3, rng=0)
        return SimpleNamespace(
            history=history, model=model, sample_shape=(4,), seed=7, batch_size=8, samples=20
        )

    def test_all_that_is_known(self, folder: Path) -> None:
        trainer, spent = self.trainer(), timedelta(hours=1.5)
        first = datetime.now(UTC).replace(microsecond=0)
        save_run(trainer, folder / "of" / "two")
        last = datetime.now(UTC)
        assert not list(Path.cwd().iterdir())
        folder = folder / "of" / "two"
        run = Run.load(folder)
        assert first - spent <= datetime.fromisoformat(run.started) <= last - spent
        assert (run.title, run.seed, run.epochs, run.batch_size) == ("MLP", 7, 2, 8)
        assert (run.images, run.test_images, run.classes, run.rate) == (20, 0, 0, 0.0)
        assert (run.seconds, run.stopped, run.data) == ([3600.0, 1800.0], "done", OWN)
        assert run.sample_shape == [4]
        assert run.layers == [["0", "Linear", "5", "25"], ["1", "ReLU", "5", "0"],
                              ["2", "Linear", "3", "18"]]  # fmt: skip
        assert load_history(folder).records == trainer.history.records
        weights = load_weights(folder / "model.safetensors")
        for name, value in trainer.model.state_dict().items():
            np.testing.assert_array_equal(weights[name], value)

    def test_the_files_of_an_older_run_are_removed(self, folder: Path) -> None:
        for name in ("report.html", "vocabulary.json", "sample.txt", "kept"):
            (folder / name).touch()
            Path(name).touch()
        save_run(self.trainer(), folder)
        names = {path.name for path in folder.iterdir()}
        assert names == {"run.json", "history.csv", "model.safetensors", "kept"}
        assert len(list(Path.cwd().iterdir())) == 4
