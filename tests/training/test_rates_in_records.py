"""Records hold the rate of each group that has one of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing import emulated_graphs
from xbp.training.callbacks.progress import epoch_line


def trainer_of(groups: bool = True, metrics: Any = (), **options: Any) -> xbp.Trainer:
    model = nn.Sequential(*(nn.Linear(2, 2, rng=seed) for seed in range(4)))
    parts = [layer.parameters() for layer in model.layers]  # type: ignore[attr-defined]
    own = [{}, {"lr": optim.ExponentialLR(0.1, 0.5)}, {}, {"lr": 0.3}]
    given: Any = [{"params": p, **o} for p, o in zip(parts, own, strict=True)]
    lr = optim.LinearLR(0.2, 0.0, 1.0, 4)
    optimizer = optim.SGD(given if groups else model.parameters(), lr)
    return xbp.Trainer(model, nn.MSELoss(), optimizer, metrics, rng=0, **options)


X = np.ones((4, 2), np.float32)


@pytest.mark.parametrize("capture", [False, True])
def test_they_are_those_of_the_last_step(capture: bool) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), emulated_graphs():
        trainer = trainer_of(capture=capture)
        history = trainer.fit(X, X, 2, 2, verbose=False)
    schedule = optim.LinearLR(0.2, 0.0, 1.0, 4)
    for record, step in zip(history.records, (1, 3), strict=True):
        assert list(record) == ["epoch", "lr", "lr_1", "lr_3", "loss"]
        expected = schedule(step), 0.1 * 0.5**step, 0.3
        assert tuple(record[name] for name in ("lr", "lr_1", "lr_3")) == pytest.approx(expected)
    assert "lr" not in epoch_line(trainer, 2, history.records[1])


def test_without_groups_there_is_one() -> None:
    (record,) = trainer_of(groups=False).fit(X, X, 1, 2, verbose=False).records
    assert [name for name in record if name.startswith("lr")] == ["lr"]


def test_no_metric_has_the_name_of_a_rate() -> None:
    def lr_1(prediction: Any, target: Any) -> Any:
        return (prediction * target).sum()

    with pytest.raises(InputError, match="'lr_1'"):
        trainer_of(metrics=[lr_1]).fit(X, X, 1, 2, verbose=False)
