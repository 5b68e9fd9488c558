"""Recordings of steps, driven one by one: their rows, results, sizes and states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import array_namespace
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.training.metrics.averages import Averages
from xbp.training.recordings import Phase, Recordings


@pytest.fixture(autouse=True)
def place() -> Iterator[str]:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), emulated_graphs():
        yield "array_api_strict"


class Half(nn.Layer):
    """A layer with a parameter that has a gradient in every step, and one that never has."""

    def __init__(self) -> None:
        self.used = nn.Parameter(xbp.asarray(np.ones(2)))
        self.unused = nn.Parameter(xbp.asarray(np.ones(2)))

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        def backward(dy: Any) -> Any:
            self.used.add_grad(array_namespace(x).sum(x * dy, axis=0))
            return self.used.data * dy

        return self.used.data * x, backward


def recorded(
    monkeypatch: pytest.MonkeyPatch, steps_per_epoch: int = 7, metrics: Any = (), rows: int = 3
) -> tuple[Any, Recordings]:
    """A trainer of `Half` with samples 0 … 15 as rows, and recordings of its steps of two."""
    monkeypatch.setattr("xbp.training.rows.ROWS", rows)
    model = Half()
    optimizer = optim.SGD(model.parameters(), lr=optim.StepLR(0.1, 1, gamma=0.5))
    trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, metrics, rng=0)
    trainer.batch_size, trainer.steps_per_epoch = 2, steps_per_epoch
    x = xbp.asarray(np.arange(32.0).reshape(16, 2) / 32)
    recordings = Recordings(trainer, (x, x), (x, x))
    trainer.state.averages = Averages(trainer.loss, trainer.metrics, trainer.share)
    recordings.begin(xbp.asarray(np.arange(16)[::-1].copy()))
    return trainer, recordings


def stepped(trainer: Any, recordings: Recordings, steps: Any, size: int = 2) -> None:
    for k in steps:
        assert recordings.step(k, size, trainer.optimizer.rates_at(trainer.optimizer.steps))


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [(7, [(1, 7), (4, 4), (7, 1)]), (0, [(k, 1) for k in range(1, 8)])],
)
def test_rows_are_filled_for_the_steps_that_are_left(
    monkeypatch: pytest.MonkeyPatch, steps_per_epoch: int, expected: Any
) -> None:
    """Of an epoch without a known end, for one step at a time."""
    trainer, recordings = recorded(monkeypatch, steps_per_epoch)
    moves: list[tuple[int, int]] = []
    move = recordings.rows.move
    monkeypatch.setattr(recordings.rows, "move", lambda *at: moves.append(at) or move(*at))
    stepped(trainer, recordings, range(1, 8))
    assert moves == expected


def by_hand(steps: int, size: int = 2) -> tuple[list[float], Any]:
    """Losses and the weight of `Half` after some steps, whose target is their input."""
    weight, losses, x = np.ones(2) * 1.0, [], (np.arange(32.0).reshape(16, 2) / 32)[::-1]
    weight = weight.copy()
    for k in range(steps):
        rows = x[2 * k : 2 * k + size]
        d = (weight - 1.5) * rows
        losses.append(np.mean(d**2))
        weight -= 0.1 * 0.5**k * (2 * d / d.size * rows).sum(axis=0)
    return losses, weight


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_replayed_steps_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    trainer, recordings = recorded(monkeypatch, metrics=[mean_absolute])
    model, optimizer = trainer.model, trainer.optimizer
    y = 1.5 * recordings.data[0]
    recordings.data = recordings.data[0], y
    used, unused = optimizer.parameters
    before = unused.version
    for k in range(1, steps + 1):
        version = used.version
        stepped(trainer, recordings, [k])
        assert used.version > version and unused.version == before
        assert trainer.state.loss is None
        loss = recordings.last_loss()
        assert float(xbp.to_numpy(loss)) == pytest.approx(by_hand(k)[0][-1], rel=1e-12)
    losses, weight = by_hand(steps)
    np.testing.assert_allclose(xbp.to_numpy(model.used.data), weight, rtol=1e-12)
    assert (optimizer.steps, [*optimizer.counts]) == (steps, [steps, 0])
    recordings.flush()
    assert recordings.unflushed == []
    averages = trainer.state.averages
    assert averages.result()["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert averages.loss.values == pytest.approx(losses, rel=1e-12)
    recordings.flush()
    assert len(averages.loss.values) == steps
    assert {*recordings.by_size[2].rows} == {"loss", "metric mean_absolute"}
    x = (np.arange(32.0).reshape(16, 2) / 32)[::-1]
    weights = [by_hand(k)[1] for k in range(steps)]
    found = [np.mean(np.abs(w - 1.5) * x[2 * k : 2 * k + 2]) for k, w in enumerate(weights)]
    assert averages.result()["mean_absolute"] == pytest.approx(np.mean(found), rel=1e-12)


def mean_absolute(prediction: Any, target: Any) -> Any:
    xp = array_namespace(target)
    return xp.mean(xp.abs(prediction - target))


def test_a_recording_of_each_size_and_new_rows_for_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, recordings = recorded(monkeypatch, rows=50)
    recordings.data = recordings.data[0], 1.5 * recordings.data[0]
    stepped(trainer, recordings, [1, 2, 3])
    assert recordings.unflushed == [2, 2, 2]
    stepped(trainer, recordings, [4], size=1)
    assert recordings.unflushed == [1] and {*recordings.by_size} == {1, 2}
    assert recordings.used is recordings.by_size[1]
    recordings.flush()
    averages = trainer.state.averages
    found = averages.result()["loss"]
    expected = np.average(averages.loss.values, weights=[2, 2, 2, 1])
    assert found == pytest.approx(expected, rel=1e-12) and expected > 0


def test_a_loss_that_was_read_is_no_longer_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, recordings = recorded(monkeypatch, rows=1)
    recordings.data = recordings.data[0], 1.5 * recordings.data[0]
    stepped(trainer, recordings, [1])
    first = recordings.last_loss()
    before = float(xbp.to_numpy(first))
    stepped(trainer, recordings, [2, 3])
    assert float(xbp.to_numpy(first)) == before
    with assert_no_host_sync():
        recordings.last_loss()
        recordings.flush()


def test_a_loss_of_other_weights_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weighted(nn.MSELoss):
        def denominator(self, prediction: Any, target: Any, weight: Any = None) -> Any:
            return array_namespace(target).sum(3.0 * target)

    trainer, recordings = recorded(monkeypatch)
    trainer.loss = Weighted()
    trainer.state.averages = Averages(trainer.loss, trainer.metrics, trainer.share)
    recordings = Recordings(trainer, recordings.given, recordings.data)
    x, y = recordings.data[0], 1.5 * recordings.data[0]
    recordings.data = x, y
    recordings.begin(xbp.asarray(np.arange(16)))
    stepped(trainer, recordings, range(1, 5))
    recordings.flush()
    found = trainer.state.averages.result()["loss"]
    weights = xbp.to_numpy(y)[:8].reshape(4, 4).sum(axis=1)
    expected = np.average(trainer.state.averages.loss.values, weights=weights)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_new_recording_knows_what_the_model_has_been_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, recordings = recorded(monkeypatch)
    stepped(trainer, recordings, [1])
    added = trainer.model.added = nn.Parameter(xbp.asarray(np.ones(2)))
    stepped(trainer, recordings, [2])
    assert any(parameter is added for parameter in recordings.frozen.parameters)


def test_recordings_that_go_stale_unused_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, recordings = recorded(monkeypatch, steps_per_epoch=20)
    for k in range(1, 4):
        stepped(trainer, recordings, [k])
        trainer.optimizer.weight_decay += 0.1
        assert recordings.unused == k - 1
    stepped(trainer, recordings, [4])
    assert (recordings.unused, recordings.by_size[2].phase) == (3, Phase.RECORD)
    stepped(trainer, recordings, [5])  # used
    assert (recordings.unused, recordings.by_size[2].phase) == (0, Phase.REPLAY)
    for k in range(6, 12):
        trainer.optimizer.weight_decay += 0.1  # the first one was used
        stepped(trainer, recordings, [k])
        assert recordings.unused == k - 6
    trainer.optimizer.weight_decay += 0.1
    with pytest.raises(InputError, match=r"option of the optimizer, changes from step to step$"):
        stepped(trainer, recordings, [12])
