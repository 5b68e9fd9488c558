"""A short training, for callbacks that write what it does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.training import Callback, LambdaCallback


def data() -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 48)
    return rng.normal(size=(48, 2)) + np.eye(3)[y][:, :2], y


def make_trainer() -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 3, dtype="float64", rng=0))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)


def fit(*callbacks: Callback, epochs: int = 3, **options: Any) -> xbp.History:
    """Three epochs of three steps."""
    options = {"validation_data": data(), "batch_size": 16} | options
    return make_trainer().fit(*data(), epochs=epochs, callbacks=callbacks, **options)


def stop_at(steps: int) -> Callback:
    """Stop after a step, counted over all epochs."""

    def stop(trainer: xbp.Trainer, step: int) -> None:
        if trainer.optimizer.steps == steps:
            trainer.stop("interrupted by Ctrl-C")

    return LambdaCallback(on_step_end=stop)
