"""Evaluation and prediction, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import OutOfMemoryError
from xbp.testing import assert_no_host_sync
from xbp.training.evaluation import evaluate, predict
from xbp.training.feeds import Resident, slices
from xbp.training.share import Whole


class Noted(Whole):
    """The share of all rows, which keeps the sizes of the batches under way."""

    def __init__(self) -> None:
        self.totals: list[int] = []

    @contextmanager
    def batch(self, total: int) -> Iterator[None]:
        self.totals.append(total)
        yield

    def gathered(self, arrays: Any) -> Any:
        assert self.totals
        return arrays


def trainer_of(model: nn.Layer | None = None) -> xbp.Trainer:
    model = model or nn.Linear(3, 2, dtype="float64", rng=0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
    trainer.share = Noted()
    return trainer


def data() -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(7, 3)), np.arange(7) % 2


def test_the_mean_over_all_samples_whatever_the_batches() -> None:
    trainer, (x, y) = trainer_of(), data()
    scores = x @ trainer.model.weight.data.T + trainer.model.bias.data
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(7), y]
    expected = {"loss": losses.mean(), "accuracy": np.mean(scores.argmax(axis=1) == y)}
    for size in (3, 7):
        found = evaluate(trainer, Resident((x, y), 512, share=trainer.share), size)
        assert found == pytest.approx(expected, rel=1e-12)
    assert trainer.share.totals == [3, 3, 1, 7]


@pytest.mark.parametrize(("size", "totals"), [(2, [2, 2, 1]), (5, [5])])
@pytest.mark.parametrize("mirror", [False, True])
def test_predictions_are_the_outputs_in_order(mirror: bool, size: int, totals: Any) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, dtype="float64", rng=0))
    trainer, x = trainer_of(flat), np.random.default_rng(0).normal(size=(5, 1, 3, 4))
    weight, bias = (p.data for p in flat.parameters())
    outputs = [views.reshape(5, 12) @ weight.T + bias for views in (x, x[..., ::-1])]
    expected = sum(outputs) / 2 if mirror else outputs[0]
    given = predict(trainer, slices(x, size, trainer.share), size, mirror=mirror)
    assert given.dtype == "float64"
    np.testing.assert_allclose(given, expected, rtol=1e-13, atol=1e-15)
    assert trainer.share.totals == totals


def test_prediction_does_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        trainer = trainer_of()
        with assert_no_host_sync():
            predict(trainer, slices(xbp.asarray(data()[0]), 2, trainer.share), 2)


@pytest.mark.parametrize("what", ["evaluating", "predicting"])
def test_a_batch_that_needs_too_much_memory_is_said(what: str) -> None:
    class Greedy(nn.Linear):
        def __call__(self, x: Any) -> Any:
            if x.shape[0] > 2:
                raise MemoryError
            return super().__call__(x)

    trainer, (x, y) = trainer_of(Greedy(3, 2, dtype="float64", rng=0)), data()
    calls: dict[str, Callable[[], Any]] = {
        "evaluating": lambda: evaluate(trainer, Resident((x, y), 512), 3),
        "predicting": lambda: predict(trainer, slices(x, 3), 3),
    }
    with pytest.raises(OutOfMemoryError, match=rf"{what} .*\b3\b"):
        calls[what]()


def test_outputs_that_do_not_fit_together_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(*arrays: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("xbp.training.evaluation.joined", joined)
    with pytest.raises(OutOfMemoryError, match=r"predicting .*\b3\b"):
        predict(trainer_of(), slices(data()[0], 3), 3)
