"""Small trainers, and a check that `fit` fails before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError

N = 12
LABELS = np.arange(N) % 3
ONE_HOT = np.eye(3)[LABELS]
NUMBERS = np.random.default_rng(1).normal(size=(N, 3))


def inputs(n: int = N) -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=(n, 2))


def network(outputs: int = 3, *last: nn.Layer, dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, outputs, dtype=dtype, rng=0), *last)


def make(outputs: int = 3, loss: Any = None, metrics: Any = (), lr: Any = 0.1) -> xbp.Trainer:
    model = network(outputs)
    loss = loss or nn.CrossEntropyLoss()
    return xbp.Trainer(model, loss, optim.SGD(model.parameters(), lr), metrics, rng=0)


def mean_square(prediction: Any, target: Any) -> Any:
    """A user's loss, which broadcasts."""
    return np.mean((prediction - target) ** 2), 2 * (prediction - target) / prediction.size


def refused(trainer: xbp.Trainer, sentence: str, *args: Any, **options: Any) -> None:
    """Check that `fit` gives one sentence and makes no step."""
    before = trainer.model.state_dict()
    with pytest.raises(InputError, match=sentence) as error:
        trainer.fit(*args, **options)
    assert "\n" not in str(error.value)
    assert trainer.optimizer.steps == 0
    assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())
