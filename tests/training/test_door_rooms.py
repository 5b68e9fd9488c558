"""Data at the door, function by function: where they go, what is converted, what is tried."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync
from xbp.training import Callback, CSVLogger, Metric
from xbp.training.door import data as door
from xbp.training.door import pieces as at_pieces
from xbp.training.door.callbacks import adds_names, callbacks_of, expected_names
from xbp.training.door.schedule import check_schedule, steps_to_come


def linear(dtype: str = "float64", outputs: int = 2) -> nn.Layer:
    return nn.Linear(3, outputs, dtype=dtype, rng=0)


def trainer_of(model: nn.Layer | None = None) -> Any:
    model = model or linear()
    return xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)


# --- data ---


def test_x_is_converted_to_the_dtype_of_all_parameters_alone() -> None:
    x = np.full((2, 3), 1 / 3)
    converted = door.fitted(linear("float32"), x)
    assert converted.dtype == "float32" and np.array_equal(converted, x.astype("float32"))
    back = door.fitted(linear(), x.astype("float32"))
    assert back.dtype == "float64" and np.array_equal(back, x.astype("float32"))
    assert door.fitted(linear(), x) is x
    tokens = np.ones((2, 3), "int64")
    assert door.fitted(linear(), tokens) is tokens
    both = nn.Sequential(linear("float32"), linear("float64"))
    assert door.fitted(both, x) is x  # of two dtypes
    assert door.fitted(nn.ReLU(), x) is x  # of none


def test_what_lies_on_the_device_stays_there_without_a_wait() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model, x = linear(), xbp.asarray(np.ones((2, 3)))
        with assert_no_host_sync():
            assert door.fitted(model, x) is x
            door.place(model, x)
            door.admit_alone(model, x, None)
            door.one_output(model, x)


def test_one_sample_is_shown_to_the_model() -> None:
    seen: list[Any] = []

    class Look(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            seen.append(x)
            return x / 3, lambda dy: dy

    x = np.arange(1.0, 7.0).reshape(2, 3) / 3
    found = door.one_output(Look(), x)
    assert seen[0].dtype == "float64" and np.array_equal(seen[0], x[:1])
    assert found.dtype == "float64" and np.array_equal(found, x[:1] / 3)
    assert np.array_equal(door.admit_alone(Look(), x, None), x)


def test_tokens_are_looked_at_where_data_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(door, "check_tokens", lambda *given: seen.append(given))
    trainer, x = trainer_of(), np.ones((2, 3))
    door.admit_alone(trainer.model, x, None)
    (pair, _) = door.admit(trainer, x, np.ones((2, 2)))
    assert [model for model, _ in seen] == [trainer.model] * 2
    assert seen[0][1] is x and seen[1][1] is pair[0]


def test_pieces_that_were_replaced_are_checked_before_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(door, "check_pieces", lambda *given: seen.append(given))
    trainer, result = trainer_of(), object()

    @door.on_device_of_model
    def method(trainer: Any, *args: Any, **options: Any) -> Any:
        seen.append((args, options))
        return result

    assert method(trainer, 1, two=2) is result
    assert seen == [(trainer.model, trainer.loss, trainer.optimizer), ((1,), {"two": 2})]


class Twice(Metric):
    """A metric with the name of another quantity."""

    name = "loss"

    def names(self, prediction: Any) -> list[str]:
        return ["loss"]

    def numbers(self, *given: Any) -> dict[str, float]:
        return {"loss": 1.0}


def test_no_quantity_has_the_name_of_another() -> None:
    trainer = trainer_of()
    assert door.quantities_of(trainer, np.ones((1, 2))) == ["loss"]
    trainer.metrics = {"twice": Twice()}
    with pytest.raises(InputError, match="two quantities would be called 'loss'"):
        door.quantities_of(trainer, np.ones((1, 2)))
    parameters = [nn.Parameter(np.ones(1)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}]
    optimizer = optim.SGD(groups, lr=0.1)
    assert expected_names(optimizer, ["loss"], validated=True) == [
        "epoch", "lr", "lr_1", "loss", "val_loss",
    ]  # fmt: skip
    with pytest.raises(InputError, match="two quantities would be called 'lr_1'"):
        expected_names(optimizer, ["loss", "lr_1"], validated=False)


# --- callbacks ---


@pytest.mark.parametrize("kind", [str, Path])
def test_two_callbacks_do_not_write_to_one_place(kind: Any, tmp_path: Path) -> None:
    first, second = (CSVLogger(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert callbacks_of([first, second]) == [first, second]
    for logger in (first, second):
        logger.path = kind(tmp_path / "a.csv")
    with pytest.raises(InputError, match=r"a CSVLogger and a CSVLogger write to one place, '.*a"):
        callbacks_of([first, second])


class Adding(Callback):
    def on_epoch_end(self, trainer: Any, epoch: int, record: Any) -> None:
        record["more"] = 1.0


class Unnamed(Metric):
    """A metric that does not say its names."""

    def numbers(self, *given: Any) -> dict[str, float]:
        return {"more": 1.0}


def test_who_may_add_names_to_a_record() -> None:
    assert not adds_names([Twice()], [])  # it says its names
    assert adds_names([Unnamed()], [])
    assert not adds_names([], [CSVLogger("a.csv")])
    assert adds_names([], [Adding()])


# --- pieces ---


def test_the_first_samples_lie_where_the_model_does() -> None:
    x = np.arange(9.0).reshape(3, 3)
    for count, rows in ((1, 1), (2, 2), (5, 3)):
        found = at_pieces.first_samples(linear(), (x, x[:, 0]), count)
        assert np.array_equal(found[0], x[:rows]) and np.array_equal(found[1], x[:rows, 0])
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):  # which refuses slices beyond the end
        assert at_pieces.first_samples(nn.ReLU(), xbp.asarray(x), 5).shape == (3, 3)


def test_a_forward_written_by_hand_is_tried_on_two_samples() -> None:
    seen: list[Any] = []

    class Own(nn.Layer):
        def __init__(self) -> None:
            self.inner = linear()

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            seen.append((x.shape, training))
            return self.inner.forward(x, training=training, rng=rng)

    at_pieces.check_forward(Own(), np.ones((5, 3)))
    assert seen == [((2, 3), True)]
    at_pieces.check_forward(linear(), np.ones((5, 7)))  # xbp's own is not run


@pytest.mark.parametrize("shape", [(1,), (1, 1, 4), (1, 2)])
def test_a_softmax_of_a_single_output_alone_is_warned_of(
    shape: tuple[int, ...], recwarn: pytest.WarningsRecorder
) -> None:
    model = nn.Sequential(linear(), nn.Softmax())
    at_pieces.check_single(model, nn.MSELoss(), np.ones(shape))
    at_pieces.check_single(model, nn.MSELoss(), 1.0)
    at_pieces.check_single(linear(), nn.MSELoss(), np.ones((1, 1)))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="a softmax over a single output is always 1"):
        at_pieces.check_single(model, nn.MSELoss(), np.ones((1, 1)))


def test_a_few_of_the_parameters_that_an_optimizer_lacks_are_named() -> None:
    for count, names in ((2, "1.weight, 1.bias"), (4, "1.weight, 1.bias, 2.weight, …")):
        model = nn.Sequential(*(linear(outputs=3) for _ in range(1 + count // 2)))
        optimizer = optim.SGD(model.layers[0].parameters(), 0.1)
        with pytest.warns(UserWarning, match=rf"lacks {count} of .* \({names}\)"):
            at_pieces.compare(model, nn.MSELoss(), optimizer)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    with pytest.warns(UserWarning, match=r"\(1.weight, 1.bias, 2.weight\)"):
        at_pieces.compare(model, nn.MSELoss(), optim.SGD(model.layers[0].parameters(), 0.1))


def test_the_parameters_of_a_loss_may_be_the_optimizers(recwarn: pytest.WarningsRecorder) -> None:
    model, loss = linear(), nn.MSELoss()
    own = loss.own = nn.Parameter(np.ones(2))  # type: ignore[attr-defined]
    at_pieces.compare(model, loss, optim.SGD([*model.parameters(), own], 0.1))
    assert not recwarn.list


def test_a_loss_with_its_own_softmax_or_sigmoid_says_which() -> None:
    for loss, end, name in (
        (nn.CrossEntropyLoss(), nn.Softmax(), "softmax"),
        (nn.BCEWithLogitsLoss(), nn.Sigmoid(), "sigmoid"),
    ):
        with pytest.warns(UserWarning, match=rf"takes logits and has a {name} of its own"):
            at_pieces._check_end(nn.Sequential(linear(), end), loss)


# --- schedules ---


def test_the_steps_to_come_after_a_checkpoint() -> None:
    """Two epochs of seven steps and two steps of the 28 of this fit are made; 25 in all."""
    assert steps_to_come(5, 28, 7, None) == range(5, 33)
    resumed: Any = SimpleNamespace(steps=25, epochs_done=3, first_epoch=1, steps_done=2)
    assert steps_to_come(5, 28, 7, resumed) == range(25, 25 - 16 + 28)


@pytest.mark.parametrize(("open_end", "expected"), [(False, [5, 32]), (True, [5])])
def test_a_schedule_is_asked_for_the_first_and_the_last_step(
    open_end: bool, expected: list[int]
) -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.1

    optimizer = optim.SGD(linear().parameters(), lr=schedule)
    check_schedule(optimizer, [], range(5, 33), open_end=open_end)
    assert asked == expected
