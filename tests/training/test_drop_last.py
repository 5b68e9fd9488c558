"""The last, smaller batch of an epoch: left out where asked, refused where it cannot be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import data, nn, optim
from xbp.errors import InputError
from xbp.random import permutation
from xbp.testing import emulated_graphs
from xbp.training import Checkpoints, LambdaCallback

SAMPLES, BATCH = 17, 8
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(SAMPLES, 5)), np.arange(SAMPLES) % 3


def trainer_of(norm: bool = True, **options: Any) -> xbp.Trainer:
    norms = [nn.BatchNorm1d(4)] if norm else []
    model = nn.Sequential(nn.Linear(5, 4, rng=0), *norms, nn.ReLU(), nn.Linear(4, 3, rng=1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=7, **options)


def fit(trainer: xbp.Trainer, *given: Any, **options: Any) -> dict[str, Any]:
    options = {"epochs": 3, "batch_size": BATCH} | options
    trainer.fit(*given, verbose=False, **options)
    return {name: np.asarray(a) for name, a in trainer.model.state_dict().items()}


def by_hand(step: int) -> dict[str, Any]:
    """A loop over the full batches of each epoch."""
    trainer = trainer_of()
    whole = SAMPLES // step * step
    for epoch in range(3):
        for rows in permutation(7, epoch, SAMPLES)[:whole].reshape(-1, step):
            logits, backward = trainer.model.forward(X[rows].astype("float32"), training=True)
            backward(trainer.loss(logits, Y[rows])[1])
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return trainer.model.state_dict()


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("given", [(X, Y), (data.Arrays(X, Y),)], ids=["arrays", "source"])
def test_only_whole_batches_are_trained_on(given: Any) -> None:
    trainer = trainer_of()
    assert_equal(fit(trainer, *given, drop_last=True), by_hand(BATCH))
    assert trainer.steps_per_epoch == 2 and trainer.optimizer.steps == 6


def test_captured_steps_leave_it_out_too() -> None:
    with (
        xbp.use_backend("torch")
        if xbp.backend.why_unavailable("torch") is None
        else pytest.skip("torch is not installed")
    ):
        eager = fit(trainer_of(capture=False), X, Y, drop_last=True)
        with emulated_graphs():
            captured = fit(trainer_of(capture=True), X, Y, drop_last=True, epochs=3)
    assert_equal(eager, captured)


def test_a_resumed_run_leaves_out_the_same_and_no_other_is_resumed(tmp_path: Path) -> None:
    whole = fit(trainer_of(norm=False), X, Y, drop_last=True)
    stop = LambdaCallback(
        on_step_end=lambda t, _: t.stop("enough") if t.optimizer.steps == 3 else 0
    )
    fit(trainer_of(norm=False), X, Y, drop_last=True, callbacks=[stop, Checkpoints(tmp_path)])
    with pytest.raises(InputError, match="drop_last"):
        fit(trainer_of(norm=False), X, Y, resume=tmp_path)
    assert_equal(whole, fit(trainer_of(norm=False), X, Y, drop_last=True, resume=tmp_path))


@pytest.mark.parametrize("given", [(X, Y), (data.Arrays(X, Y),)], ids=["arrays", "source"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 4, "accumulate": 2}])
def test_one_sample_that_cannot_be_trained_is_refused_before_the_first_step(
    given: Any, options: dict[str, Any]
) -> None:
    trainer = trainer_of()
    before = trainer.model.state_dict()
    with pytest.raises(
        InputError, match=r"one sample, the rest of 17 .*BatchNorm1d.*drop_last=True"
    ):
        fit(trainer, *given, **options)
    assert_equal(before, trainer.model.state_dict())
    fit(trainer, *given, **options, drop_last=True)


def test_one_sample_of_a_source_is_tried_where_the_model_is() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), pytest.raises(InputError, match="drop_last=True"):
        fit(trainer_of(), data.Arrays(X, Y))


def test_what_can_be_trained_is_not_refused() -> None:
    fit(trainer_of(norm=False), X, Y)  # one sample, and no BatchNorm
    fit(trainer_of(), X, Y, batch_size=7)  # three samples
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer)
    fit(trainer, RNG.normal(size=(SAMPLES, 1, 4, 4)), Y)  # four pixels of one sample


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ((X, Y), {"batch_size": 18}, "fewer than 18 samples, and there are 17 in all"),
    ((data.Arrays(X, Y),), {"batch_size": 18}, "fewer than 18 samples, and there are 17 in all"),
    (([(X, Y)],), {}, "drop_last needs arrays or a source"),
    ((X, Y), {"drop_last": 1}, "drop_last must be True or False, got"),
]


@pytest.mark.parametrize(("given", "options", "message"), BAD)
def test_bad_arguments_are_one_sentence(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(trainer_of(), *given, **{"drop_last": True} | options)
