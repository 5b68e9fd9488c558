"""Trainers with and without recorded steps, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import why_unavailable
from xbp.testing import emulated_graphs
from xbp.training.capture import Phase, Recordings, recordings_of

SAMPLES, BATCH = 30, 4  # seven steps, and one with the last two samples


@pytest.fixture(autouse=True, params=["array_api_strict", "torch", "cupy", "numpy"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend that records steps: CuPy, its stand-ins, or numpy."""
    if reason := why_unavailable(request.param):
        pytest.skip(reason)
    with xbp.use_backend(request.param), emulated_graphs():
        yield request.param


@pytest.fixture
def device(place: str) -> None:
    """For what is not so on the host: warnings, layers of a user; see test_capture_on_the_host."""
    if place == "numpy":
        pytest.skip("the host refuses what is not xbp's own, and does not warn")


def data(n: int = SAMPLES, features: int = 5) -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return (rng.normal(size=(n, features)) + y[:, None]).astype("float32"), y


def network(*more: nn.Layer, dropout: float = 0.3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8, rng=0), nn.ReLU(), nn.Dropout(dropout), *more, nn.Linear(8, 3, rng=1)
    )


def adam(model: nn.Layer) -> optim.Optimizer:
    return optim.Adam(model.parameters(), lr=optim.OneCycleLR(0.02, 30))


def trainer_of(
    capture: bool | None,
    model: nn.Layer | None = None,
    optimizer: Callable[[nn.Layer], optim.Optimizer] = adam,
    metrics: Any = ("accuracy",),
) -> xbp.Trainer:
    model = model or network()
    loss = nn.CrossEntropyLoss()
    return xbp.Trainer(model, loss, optimizer(model), metrics, rng=7, capture=capture)


def result(trainer: xbp.Trainer) -> dict[str, Any]:
    """The bits of all results of training."""
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    return {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}


def replayed(trainer: xbp.Trainer) -> bool:
    recordings = recorded_by(trainer)
    return recordings is not None and recordings.by_size[BATCH].phase is Phase.REPLAY


def recorded_by(trainer: xbp.Trainer) -> Recordings | None:
    return recordings_of(trainer._stepper)


def check_same(run: Callable[[xbp.Trainer], Any], **options: Any) -> xbp.Trainer:
    """Check that `run` has equal results with and without recorded steps."""
    eager, fast = (trainer_of(capture, **options) for capture in (False, True))
    for trainer in (eager, fast):
        trainer.done = run(trainer)  # type: ignore[attr-defined]
    assert recorded_by(eager) is None
    assert fast.history.records == eager.history.records
    assert fast.history.stopped == eager.history.stopped
    assert result(fast) == result(eager)
    assert fast.done == eager.done  # type: ignore[attr-defined]
    return fast


def fit(trainer: xbp.Trainer, epochs: int = 2, **options: Any) -> Any:
    return trainer.fit(*data(), epochs=epochs, batch_size=BATCH, **options).records
