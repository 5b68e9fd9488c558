"""One update from one batch, whole and by parts, and which rows and how many batches there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.random import RandomStream
from xbp.testing import assert_no_host_sync
from xbp.training.results import CheckedLoss
from xbp.training.share import Whole
from xbp.training.steps import EagerSteps, batch_indices, steps_of, update

SAMPLES = 6
PARTS = {0: [], 4: [6, 6], 6: [], 7: []}
"""By samples of a part: the totals that its parts are told; a batch of one part is whole."""


class Noted(Whole):
    """The share of all rows, which keeps what a step asks for."""

    def __init__(self, spoiled: bool = False) -> None:
        self.drawn: list[tuple[int, int]] = []
        self.parts: list[int] = []
        self.is_spoiled = spoiled

    def draw(self, rng: RandomStream, start: int, total: int) -> None:
        self.drawn.append((start, total))

    def loss_of_part(self, loss: Any, prediction: Any, target: Any, total: int) -> Any:
        self.parts.append(total)
        return super().loss_of_part(loss, prediction, target, total)

    def spoiled(self, value: Any) -> bool:
        return self.is_spoiled


def trainer_of(**options: Any) -> xbp.Trainer:
    model = nn.Linear(3, 2, dtype="float64", rng=0)
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), rng=0)
    trainer.share = Noted(**options)
    return trainer


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(SAMPLES, 3)), rng.normal(size=(SAMPLES, 2))


def updated(trainer: xbp.Trainer, x: Any, y: Any, **options: Any) -> tuple[Any, Any]:
    return update(trainer, CheckedLoss(trainer.loss), x, y, RandomStream(0), **options)


def by_hand(weight: Any, bias: Any, x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """Prediction, loss, and the parameters after a step of mean squares."""
    prediction = x @ weight.T + bias
    d = 2 * (prediction - y) / y.size
    value = np.mean((prediction - y) ** 2)
    return prediction, value, weight - 0.1 * d.T @ x, bias - 0.1 * d.sum(axis=0)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_an_update_is_that_of_the_formula(part: int, augmented: bool) -> None:
    trainer, (x, y) = trainer_of(), data()
    before = [parameter.data.copy() for parameter in trainer.optimizer.parameters]
    if augmented:
        trainer.augment = lambda x, y, *, rng: (x + 1, y - 1)
    expected = by_hand(*before, *((x + 1, y - 1) if augmented else (x, y)))
    options = {"part": part} if part else {}
    prediction, value = updated(trainer, x, y, **options)
    found = [prediction, value, *(p.data for p in trainer.optimizer.parameters)]
    for own, wanted in zip(found, expected, strict=True):
        assert own.dtype == "float64"
        np.testing.assert_allclose(own, wanted, rtol=1e-13)  # sums of six
    assert all(parameter.grad is None for parameter in trainer.optimizer.parameters)
    assert trainer.optimizer.steps == 1
    assert trainer.share.parts == PARTS[part]
    assert trainer.share.drawn[0] == (0, SAMPLES)


@pytest.mark.parametrize("part", [0, 4])
def test_where_the_loss_is_not_finite_nothing_is_updated(part: int) -> None:
    trainer, (x, y) = trainer_of(), data()
    before = trainer.model.state_dict()
    y[1, 0] = np.nan
    prediction, value = updated(trainer, x, y, part=part)
    done = part or SAMPLES
    expected = trainer.model(x[:done])
    assert prediction.dtype == value.dtype == "float64" and np.isnan(value)
    np.testing.assert_allclose(prediction[:done], expected, rtol=1e-14)
    assert trainer.optimizer.steps == 0
    assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("part", [0, 4])
def test_a_step_that_another_rank_spoils_is_not_made(part: int) -> None:
    trainer, other, (x, y) = trainer_of(spoiled=True), trainer_of(), data()
    before = trainer.model.state_dict()
    prediction, value = updated(trainer, x, y, part=part)
    expected = updated(other, x, y, part=part)
    assert prediction.dtype == value.dtype == "float64"
    assert np.array_equal(prediction, expected[0]) and value == expected[1]
    assert trainer.optimizer.steps == 0
    assert all(parameter.grad is None for parameter in trainer.optimizer.parameters)
    assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("part", [0, 4])
@pytest.mark.parametrize("spoiled", [False, True])
def test_no_update_waits_for_the_device(spoiled: bool, part: int) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        trainer = trainer_of(spoiled=spoiled)
        x, y = (xbp.asarray(array) for array in data())
        with assert_no_host_sync():
            updated(trainer, x, y, part=part)
            steps = EagerSteps(trainer, (x, y))
            steps.begin(xbp.asarray(np.arange(SAMPLES)))
            trainer.batch_size = 4
            steps.step(2, 2)
            assert steps.loss() is trainer.state.loss


def test_the_rows_of_a_step() -> None:
    """Also beyond the end of the order, as of a ring of slots; they keep their dtype and values."""
    order = 2**24 + 1 + np.arange(12)  # no float32
    for k, first in ((1, 0), (2, 4), (3, 8), (4, 0), (9, 8)):
        rows = batch_indices(order, k, 4, 3)
        assert rows.dtype == order.dtype
        assert np.array_equal(rows, order[first : first + 3])


@pytest.mark.parametrize(
    ("samples", "dropped", "kept"), [(4, 1, 1), (5, 1, 2), (8, 2, 2), (11, 2, 3)]
)
def test_how_many_batches_there_are(samples: int, dropped: int, kept: int) -> None:
    assert (steps_of(samples, 4, True), steps_of(samples, 4, False)) == (dropped, kept)


def test_all_samples_may_not_be_left_out() -> None:
    assert steps_of(3, 4, False) == 1
    with pytest.raises(InputError, match=r"fewer than 4 samples, and there are 3 in all"):
        steps_of(3, 4, True)
