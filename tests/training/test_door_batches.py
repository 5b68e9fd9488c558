"""The gate of a stream's batches, and the trial of an augmentation, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.training.door import batches
from xbp.training.door.batches import Gate, check_augmentation


def trainer_of(model: nn.Layer | None = None, loss: Any = None) -> Any:
    model = model or nn.Linear(3, 2, dtype="float64", rng=0)
    return xbp.Trainer(model, loss or nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)


def data(n: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)), rng.normal(size=(n, 2))


def test_the_first_batch_is_shown_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, (x, y) = trainer_of(), data()
    gate, expected = Gate(trainer), trainer.model(x[:1])
    singles: list[Any] = []
    monkeypatch.setattr(batches, "check_single", lambda *given: singles.append(given))
    assert not gate.knows(x)
    pair = gate.admit((x, y))
    assert np.array_equal(pair[0], x) and np.array_equal(pair[1], y)
    ((model, loss, prediction),) = singles
    assert model is trainer.model and loss is trainer.loss
    assert prediction.dtype == expected.dtype and np.array_equal(prediction, expected)
    assert gate.quantities == ["loss"]
    assert gate.knows(x) and not gate.knows(np.ones((5, 4)))
    monkeypatch.setattr(gate, "_show", lambda pair: pytest.fail("shown again"))
    gate.meet((x, y))


def test_complex_targets_are_refused() -> None:
    x, y = data()
    with pytest.raises(InputError, match="complex"):
        Gate(trainer_of())((x, y * 1j))


def test_each_shape_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, x = Gate(trainer_of(nn.PReLU(dtype="float64"))), data()[0]
    shown: list[int] = []
    show = gate._show
    monkeypatch.setattr(gate, "_show", lambda pair: shown.append(pair[0].shape[1]) or show(pair))
    for width in (3, 3, 2, 3, 2):
        gate.meet((x[:, :width], x[:, :width]))
    gate.meet((x[:0, :1], x[:0, :1]))  # the share of a rank without samples
    assert shown == [3, 2]


class Tokens:
    """A gate whose checks of tokens are kept, and refused where a bound is too wide."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 99) -> None:
        self.seen: list[Any] = []
        self.trainer = trainer_of(nn.Embedding(100, 2, dtype="float64", rng=0))
        self.gate = Gate(self.trainer)
        self.most = most
        monkeypatch.setattr(batches, "check_tokens", self.check)

    def check(self, model: Any, ends: Any) -> None:
        assert model is self.trainer.model
        first = ends[0] if isinstance(ends, tuple) else ends
        assert first.dtype == np.int64
        self.seen.append(first.tolist())
        if first[1].sum() > self.most:
            msg = "too wide"
            raise InputError(msg)


def test_tokens_within_those_that_were_shown_are_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = Tokens(monkeypatch)
    gate = tokens.gate
    gate.meet_tokens(np.array([[3, 5], [4, 2]]))
    assert tokens.seen == [[[2, 2], [5, 5]]]
    for inside in ([[2, 2]], [[5, 5]], [[3, 2], [5, 3]]):
        gate.meet_tokens(np.array(inside))
    gate.meet_tokens(np.zeros((0, 2), "int64"))
    assert len(tokens.seen) == 1
    gate.meet_tokens(np.array([[1, 4]]))
    gate.meet_tokens(np.array([[4, 6]]))
    gate.meet_tokens(np.array([[1, 6]]))
    assert tokens.seen[1:] == [[[1, 1], [5, 5]], [[1, 1], [6, 6]]]


def test_where_places_differ_each_has_its_own_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(monkeypatch, most=9)
    gate = tokens.gate
    gate.meet_tokens(np.array([[1, 7], [2, 5]]))
    assert tokens.seen == [[[1, 1], [7, 7]], [[1, 5], [2, 7]]]
    gate.meet_tokens(np.array([[1, 6], [2, 7]]))
    assert len(tokens.seen) == 2
    gate.meet_tokens(np.array([[2, 4]]))
    assert tokens.seen[2:] == [[[1, 1], [7, 7]], [[1, 4], [2, 7]]]
    gate.meet_tokens(np.array([[0, 5]]))
    assert tokens.seen[4:] == [[[0, 0], [7, 7]], [[0, 4], [2, 7]]]
    large = 2**24 + 1  # no float32, no int32
    tokens.most = 2**60
    gate.meet_tokens(np.array([[large, large + 2**32]]))
    assert tokens.seen[-1] == [[0, 0], [large + 2**32] * 2]


def test_of_other_inputs_the_first_sample_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(monkeypatch)
    others: list[Any] = []
    check = tokens.check
    monkeypatch.setattr(
        batches, "check_tokens", lambda model, ends: check(model, ends) or others.append(ends[1])
    )
    x = np.array([[3, 5], [4, 2]]), np.array([[1 / 3, 0.5], [0.25, 0.75]])
    tokens.gate.meet_tokens(x)
    (ends,) = others
    assert ends.dtype == np.float64 and np.array_equal(ends, [x[1][0], x[1][0]])
    tokens.gate.meet_tokens((x[0], -x[1]))  # numbers of another kind have no bounds
    assert len(tokens.seen) == 1


def test_a_loss_checks_targets_on_the_host() -> None:
    pytest.importorskip("array_api_strict")

    def own(prediction: Any, target: Any) -> Any:
        return 0.0, prediction

    assert batches._on_the_host(own) is own
    with xbp.use_backend("array_api_strict"):
        loss: Any = nn.MSELoss()
        loss.kept, loss.scale = xbp.asarray(np.array([1.0, 2.0])), np.float64(0.5)
        twin = batches._on_the_host(loss)
    assert type(twin) is nn.MSELoss and twin is not loss
    assert type(twin.kept) is np.ndarray and twin.kept.tolist() == [1.0, 2.0]
    assert type(loss.kept) is not np.ndarray
    others = {*vars(loss)} - {"kept"}
    assert "scale" in others
    assert all(getattr(twin, name) is getattr(loss, name) for name in others)


def test_an_augmentation_is_tried_on_two_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, (x, y) = trainer_of(), data()
    given: list[Any] = []

    def augment(x: Any, y: Any, *, rng: Any) -> Any:
        given.extend([x, y])
        return x + 1, y - 1

    checked: list[Any] = []
    monkeypatch.setattr(batches, "check_targets", lambda *args: checked.append(args))
    check_augmentation(trainer, (x, y))  # without one
    trainer.augment = augment
    check_augmentation(trainer, (x, y))
    for found, expected in zip(given, (x[:2], y[:2]), strict=True):
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    ((loss, metrics, prediction, target),) = checked
    assert loss is trainer.loss and metrics == ()
    np.testing.assert_array_equal(prediction, trainer.model(x[:1] + 1))
    np.testing.assert_array_equal(target, y[:2] - 1)
