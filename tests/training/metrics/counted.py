"""Outputs with labels, and what a metric makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.training import (
    Accuracy,
    ConfusionMatrix,
    F1Score,
    Metric,
    Precision,
    Recall,
    TopKAccuracy,
)

Batches = list[tuple[NDArray[Any], NDArray[Any]]]


def batches(classes: int, seed: int = 0, absent: tuple[int, ...] = ()) -> Batches:
    """Outputs and labels in three batches, one of them small; better than chance."""
    rng, found = np.random.default_rng(seed), []
    for n in (40, 33, 1):
        labels = rng.choice([k for k in range(classes) if k not in absent], n)
        outputs = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
        outputs[:, list(absent)] -= 100  # also never predicted
        found.append((outputs.astype(np.float32), labels))
    return found


def measured(metric: Metric, found: Batches) -> Any:
    for outputs, labels in found:
        metric.update(xbp.asarray(outputs), xbp.asarray(labels))
    return metric.compute()


def joined(found: Batches) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Outputs, true labels, predicted labels."""
    outputs = np.concatenate([x for x, _ in found])
    return outputs, np.concatenate([y for _, y in found]), outputs.argmax(1)


def every_metric(classes: int = 4) -> list[Metric]:
    return [
        *(Accuracy(), TopKAccuracy(2), ConfusionMatrix()),
        *(Precision(), Recall(average=None), F1Score(classes, average="weighted")),
    ]


# --- in a Trainer ---


def make_trainer(metrics: Any) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(4, 8, rng=0), nn.Tanh(), nn.Linear(8, 4, rng=1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, metrics, rng=0)


def data(n: int = 100) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, n)
    return (rng.normal(size=(n, 4)) + 2 * np.eye(4)[y]).astype(np.float32), y
