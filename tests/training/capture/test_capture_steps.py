"""Captured steps equal eager steps, bit for bit: optimizers, networks, metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training.capture.trainers import check_same, fit, replayed, result, trainer_of

import xbp
from xbp import nn, optim
from xbp.testing.cases import RULES, Rule
from xbp.training import Metric, rows


@pytest.mark.parametrize("place", ["torch"], indirect=True)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_optimizer(rule: Rule) -> None:
    assert replayed(check_same(fit, optimizer=lambda model: rule(model.parameters())))


def convolutional() -> nn.Layer:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, rng=1),
        nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3, rng=2),
    )  # fmt: skip


def recurrent() -> nn.Layer:
    return nn.Sequential(
        nn.RNN(4, 6, rng=0), nn.LastTimeStep(), nn.Dropout(0.2), nn.Linear(6, 3, rng=1)
    )


def lstm() -> nn.Layer:
    return nn.Sequential(nn.LSTM(4, 6, rng=0), nn.LastTimeStep(), nn.Linear(6, 3, rng=1))


MODELS = [(convolutional, (1, 8, 8)), (recurrent, (5, 4)), (lstm, (5, 4))]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_every_kind_of_network(make: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(14, *shape)).astype("float32")
    results = []
    for capture in (False, True):
        trainer = trainer_of(capture, make())
        trainer.fit(x, np.arange(14) % 3, epochs=3, batch_size=4)
        results.append((result(trainer), trainer.history.records))
    assert results[0] == results[1]
    assert replayed(trainer)


def test_more_steps_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS", 5)
    check_same(fit)


def test_random_words_of_a_late_step() -> None:
    """A step number whose high word is not 0."""

    def late(trainer: xbp.Trainer) -> Any:
        trainer.optimizer.steps = 2**32 - 5
        return fit(trainer)

    check_same(late, optimizer=lambda model: optim.SGD(model.parameters(), 0.1, momentum=0.9))


@pytest.mark.parametrize("metrics", [["f1", "accuracy"], [xbp.training.accuracy], []])
def test_metrics(metrics: Any) -> None:
    fast = check_same(fit, metrics=metrics)
    for metric in fast.metrics.values():
        assert metric.compute() == fast.history[metric.name][-1]


class Kept(Metric):
    """A metric that keeps its arguments."""

    name = "spread"

    def reset(self) -> None:
        self.kept: list[Any] = []

    def update(self, prediction: Any, target: Any) -> None:
        self.kept.append((prediction, target))

    def compute(self) -> float:
        rows = [xbp.to_numpy(p)[:, 0] * xbp.to_numpy(t) for p, t in self.kept]
        return float(np.concatenate(rows).sum())


def test_a_metric_that_keeps_predictions_keeps_those_of_its_step() -> None:
    check_same(fit, metrics=[Kept()])
