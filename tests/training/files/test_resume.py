"""What a snapshot of a training says, and what is done with it, point by point.

That resumed runs end with the bits of uninterrupted ones is shown in test_checkpoints.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import DataError
from xbp.testing.helpers import replaced
from xbp.training import Callback, Checkpoints, LambdaCallback
from xbp.training.files.checkpoints import checkpoints_in
from xbp.training.files.resume import snapshot, write_snapshot
from xbp.training.files.tensors import TensorFile, write_tensors
from xbp.training.interrupt import INTERRUPTED


def make(*groups: dict[str, Any], lr: Any = 0.01) -> xbp.Trainer:
    """A trainer of one layer; `groups` are options of its weight and its bias."""
    model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0))
    parts = zip(model.parameters(), groups, strict=True) if groups else ()
    given = [{"params": [p], **own} for p, own in parts] or model.parameters()
    return xbp.Trainer(model, nn.MSELoss(), optim.SGD(given, lr, momentum=0.9), rng=0)


def fit(
    trainer: xbp.Trainer, *callbacks: Callback, epochs: int = 2, batch_size: int = 4, **more: Any
) -> None:
    """Epochs of two steps each, if not told otherwise."""
    x = np.random.default_rng(0).normal(size=(8, 2))
    trainer.fit(x, x[:, :1], epochs, batch_size, callbacks=callbacks, **more)


def documents(trainer: xbp.Trainer, *callbacks: Callback) -> list[dict[str, Any]]:
    """Those of snapshots within an epoch and after it."""
    taken: list[dict[str, Any]] = []
    within = LambdaCallback(on_step_end=lambda trainer, step: taken.append(snapshot(trainer)[1]))
    after = LambdaCallback(on_epoch_end=lambda trainer, *_: taken.append(snapshot(trainer)[1]))
    with replaced(trainer, elapsed=lambda: 2.5):
        fit(trainer, *callbacks, within, after, epochs=1)
    return [taken[0], taken[-1]]


def stopped_after(step: int, folder: Path, trainer: xbp.Trainer, *callbacks: Callback) -> Path:
    """The checkpoint of a run of two epochs that ends after a step."""

    def end(trainer: Any, _: int) -> None:
        if trainer.optimizer.steps == step:
            trainer.stop(INTERRUPTED)

    fit(trainer, *callbacks, LambdaCallback(on_step_end=end), Checkpoints(folder))
    return checkpoints_in(folder)[-1]


class TestSnapshot:
    def test_seconds_are_those_of_the_epoch_under_way(self) -> None:
        seconds = [document["position"]["seconds"] for document in documents(make())]
        assert seconds == [2.5, 0.0]

    @pytest.mark.parametrize(
        ("reason", "kept"), [("enough", "enough"), (INTERRUPTED, ""), (None, "")]
    )
    def test_a_run_that_a_callback_ended_stays_ended(self, reason: str | None, kept: str) -> None:
        """One that Ctrl-C ended goes on."""

        def end(trainer: Any, step: int) -> None:
            if reason is not None and step == 2:
                trainer.stop(reason)

        _, after = documents(make(), LambdaCallback(on_step_end=end))
        assert after["position"]["stopped"] == kept

    def test_rates_of_groups(self) -> None:
        def schedule(step: int) -> float:
            return 0.25

        for groups, rates in [((), None), (({}, {"lr": 0.5}), [None, 0.5]),
                              (({"lr": 0.125}, {"lr": schedule}), [0.125, None])]:  # fmt: skip
            _, after = documents(make(*groups))
            assert after.get("own_rates") == rates
            assert ("own_rates" in after) == bool(groups)

    def test_all_ranks_join_what_they_measured(self, tmp_path: Path) -> None:
        calls: list[str] = []
        averages = SimpleNamespace(join=lambda: calls.append("join"))
        other: Any = SimpleNamespace(share=SimpleNamespace(first=False), measured=lambda: averages)
        write_snapshot(other, tmp_path / "a.safetensors")
        assert calls == ["join"] and not list(tmp_path.iterdir())


class TestRestored:
    @pytest.mark.parametrize(("step", "begun"), [(2, [2, 3]), (3, [2, 3])])
    def test_each_epoch_begins_once(self, step: int, begun: list[int], tmp_path: Path) -> None:
        path, seen = stopped_after(step, tmp_path, make()), []
        told = LambdaCallback(on_epoch_begin=lambda trainer, epoch: seen.append(epoch))
        fit(make(), told, epochs=3, resume=path)
        assert seen == begun

    @pytest.mark.parametrize("step", [2, 3])
    def test_rates_that_a_callback_has_set(self, step: int, tmp_path: Path) -> None:
        def halve(trainer: Any, _: int) -> None:
            trainer.optimizer.set_own_rates([None, trainer.optimizer.own_rates()[1] / 2])

        trainer = make({}, {"lr": 0.5})
        path = stopped_after(step, tmp_path, trainer, LambdaCallback(on_step_end=halve))
        again = make({}, {"lr": 0.5})
        fit(again, resume=path)
        assert again.optimizer.own_rates() == [None, 0.5 / 2**step]

    def test_a_state_that_a_callback_does_not_understand(self, tmp_path: Path) -> None:
        class Odd(Callback):
            def state_dict(self) -> dict[str, Any]:
                return {"value": 1}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                raise LookupError("no such value")

        path = stopped_after(2, tmp_path, make(), Odd())
        with pytest.raises(DataError, match=r"does not fit this run \(no such value\)"):
            fit(make(), Odd(), resume=path)

    def test_a_parameter_too_many(self, tmp_path: Path) -> None:
        path = stopped_after(2, tmp_path, make())
        file = TensorFile(path)
        write_tensors(path, file.read() | {"optimizer.2.m": np.ones(1)}, file.document)
        with pytest.raises(DataError, match=r"its 'optimizer.2.m' is float64 \(1,\), where"):
            fit(make(), resume=path)

    def test_an_epoch_of_one_step_has_no_middle(self, tmp_path: Path) -> None:
        fit(make(), Checkpoints(tmp_path), epochs=1, batch_size=8)
        path = checkpoints_in(tmp_path)[-1]
        file = TensorFile(path)
        sums = {"epoch.loss.values": np.ones(1), "epoch.loss.sizes": np.ones(1, np.int64)}
        position = file.document["position"] | {"steps_done": 1}
        write_tensors(path, file.read() | sums, file.document | {"position": position})
        with pytest.raises(DataError, match="stands at step 1 of an epoch of 1 steps"):
            fit(make(), batch_size=8, resume=path)
