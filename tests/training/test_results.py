"""The checks of what a user's functions return, one by one; in a `fit`, see test_returned.py."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import backend_of
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync
from xbp.training.results import (
    CheckedLoss,
    check_distinct,
    checked_loss,
    counted,
    make_plain,
    number_of,
    numbers_of,
    rate_names,
    value_of,
)

HERE = np.ones((2, 3), "float32")
THIRD = 1 / 3  # no float32

NUMBERS: dict[str, Any] = {
    "float": THIRD,
    "fraction": Fraction(1, 3),
    "float64": np.float64(THIRD),
    "0-d array": np.asarray(THIRD),
}
REFUSED: dict[str, Any] = {
    "None": None,
    "text": "1",
    "too large": 10**400,
    "too large a fraction": Fraction(10**400),
    "one entry": np.ones(1),
    "complex": 1j,
    "0-d text": np.asarray("1"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_value_is_a_number_beside_the_array_given(kind: str) -> None:
    value = value_of("it", NUMBERS[kind], HERE)
    assert (value.shape, value.dtype, float(value)) == ((), np.dtype("float64"), THIRD)
    assert number_of("it", NUMBERS[kind]) == THIRD
    assert type(number_of("it", NUMBERS[kind])) is float


@pytest.mark.parametrize("kind", [int, bool, np.int64, np.bool_, lambda v: np.asarray(int(v))])
def test_whole_numbers_become_floats(kind: Any) -> None:
    value = value_of("it", kind(1), HERE)
    assert (value.dtype, float(value)) == (np.dtype("float64"), 1.0)
    assert number_of("it", kind(1)) == 1.0


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_number_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"^it must return a number or a 0-d array, got "):
        value_of("it", REFUSED[kind], HERE)
    with pytest.raises(InputError, match=r"^it must be a number or a 0-d array, got "):
        number_of("it", REFUSED[kind])


def test_a_value_goes_to_the_device_of_the_array_beside_it() -> None:
    xp = pytest.importorskip("array_api_strict")
    devices = [xp.Device("CPU_DEVICE"), xp.Device("device1")]
    beside = xp.ones(3, device=devices[1])
    for value in (THIRD, np.float32(0.5), xp.asarray(0.5, device=devices[0])):
        found = value_of("it", value, beside)
        assert found.device == devices[1]
        assert float(xbp.to_numpy(found)) == float(value)
    kept = xp.asarray(0.5, device=devices[1])
    with assert_no_host_sync():
        assert value_of("it", kept, beside) is kept
    moved = value_of("it", kept, HERE)
    assert backend_of(moved).name == "numpy" and float(moved) == 0.5


def test_a_record_gets_plain_numbers() -> None:
    record = {"loss": np.float32(0.5), "epoch": 1, "kept": THIRD}
    make_plain(record, "my callback")
    assert record == {"loss": 0.5, "epoch": 1, "kept": THIRD}
    assert {name: type(value) for name, value in record.items()} == {
        "loss": float, "epoch": int, "kept": float,
    }  # fmt: skip
    sentence = r"^what my callback puts into the record as 'x' must be a number or a 0-d array, got"
    with pytest.raises(InputError, match=sentence):
        make_plain({"x": 10**400}, "my callback")
    with pytest.raises(InputError, match=r"must be strings; my callback puts in an int$"):
        make_plain({7: 1.0}, "my callback")  # type: ignore[dict-item]


def test_the_numbers_of_a_metric() -> None:
    assert numbers_of("it", {"a": 1, "b": np.float64(THIRD)}) == {"a": 1, "b": THIRD}
    with pytest.raises(InputError, match=r"^the numbers of it must be a dict of names to numbers"):
        numbers_of("it", [1.0])
    with pytest.raises(InputError, match=r"^what it computes must be a number or a 0-d array, got"):
        numbers_of("it", {"a": None})


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["loss", "a", "a"], r"^two quantities would be called 'a'"),
        (["a", "val_a"], r"^a metric cannot be called 'val_a', as 'a' on validation data"),
        (["val_a", "a"], r"^a metric cannot be called 'val_a', as 'a' on validation data"),
    ],
)
def test_two_names_for_one_quantity_are_refused(names: list[str], sentence: str) -> None:
    check_distinct(["loss", "a", "b", "val_c"])
    with pytest.raises(InputError, match=sentence):
        check_distinct(names)


def a_loss(prediction: Any, target: Any) -> Any:
    return 0.5, prediction


PREDICTION = np.ones((4, 2))
WRONG: dict[str, tuple[Any, str]] = {
    "one number": (0.5, r"^the loss a_loss must return \(value, gradient\), got a float$"),
    "three": ((0.5, PREDICTION, 1), r"^the loss a_loss must return \(value, gradient\), got "),
    "no value": (("x", PREDICTION), r"^the loss a_loss, as its value, must return a number"),
    "two gradients": ((0.5, (PREDICTION, PREDICTION)), r"a gradient for each of 1 outputs, got 2"),
    "a list": ((0.5, "no array"), r"a gradient beside the prediction, got "),
    "shape": (
        (0.5, PREDICTION[:3]),
        r"prediction's shape \(4, 2\) and dtype float64, got \(3, 2\) and float64",
    ),
    "dtype": (
        (0.5, PREDICTION.astype("float32")),
        r"prediction's shape \(4, 2\) and dtype float64, got \(4, 2\) and float32",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_loss_may_not_return(kind: str) -> None:
    returned, sentence = WRONG[kind]
    with pytest.raises(InputError, match=sentence):
        checked_loss(a_loss, returned, PREDICTION)


def test_what_a_loss_may_return() -> None:
    gradients = (PREDICTION, 2 * PREDICTION[:, 0])
    for returned in ((THIRD, gradients), [THIRD, gradients]):
        value, gradient = checked_loss(a_loss, returned, (PREDICTION, PREDICTION[:, 0]))
        assert (float(value), value.dtype) == (THIRD, np.dtype("float64"))
        assert gradient is gradients
    with pytest.raises(InputError, match=r"shape \(4,\) and dtype float64, got \(4, 2\)"):
        checked_loss(a_loss, (0.5, (PREDICTION, PREDICTION)), (PREDICTION, PREDICTION[:, 0]))


def test_a_loss_is_checked_whenever_the_type_of_its_value_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks = []

    def noted(*given: Any) -> Any:
        checks.append(type(given[1][0]))
        return checked_loss(*given)

    monkeypatch.setattr("xbp.training.results.checked_loss", noted)
    values = iter([np.float64(1), np.float64(2), 3.0, 4.0, np.float64(5), np.float32(6)])
    loss = CheckedLoss(lambda prediction, target: (next(values), prediction))
    found = [float(loss(PREDICTION, PREDICTION)[0]) for _ in range(6)]
    assert found == [1, 2, 3, 4, 5, 6]
    # A value that has to be converted is checked each time.
    assert checks == [np.float64, float, float, np.float32]
    checks.clear()
    usual = np.float64(1), PREDICTION
    pairs = iter([usual, usual, [*usual], (*usual, 2)])
    loss = CheckedLoss(lambda prediction, target: next(pairs))
    for _ in range(3):
        loss(PREDICTION, PREDICTION)
    assert checks == [np.float64] * 2
    with pytest.raises(InputError, match=r"must return \(value, gradient\)"):
        loss(PREDICTION, PREDICTION)


@pytest.mark.parametrize("value", [THIRD, np.float64(THIRD)])
def test_a_checked_loss_gives_what_the_loss_gives(value: Any) -> None:
    target, gradient = np.zeros((4, 2)), np.ones((4, 2))

    def asked(*given: Any) -> Any:
        assert given[0] is PREDICTION and given[1] is target
        return value, gradient

    loss = CheckedLoss(asked)
    for _ in range(2):
        found = loss(PREDICTION, target)
        assert found[1] is gradient
        assert (found[0].dtype, float(found[0])) == (np.dtype("float64"), THIRD)


def test_nothing_waits_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        labels = xbp.asarray(np.array([0, 1]))
        weighted = nn.CrossEntropyLoss(weight=[1.0, 2.0, 4.0])
        for rows in (2, 0):
            logits = xbp.asarray(np.zeros((rows, 3)))
            with assert_no_host_sync():
                counted(weighted, logits, labels[:rows])
        logits = xbp.asarray(np.zeros((2, 3)))
        loss = CheckedLoss(weighted)
        with assert_no_host_sync():
            loss.denominator(logits, labels)
            loss(logits, labels)
            loss(logits, labels)
        loss = CheckedLoss(lambda prediction, target: (0.5, prediction))
        with assert_no_host_sync():
            loss(logits, labels)


def test_the_weight_of_a_batch_is_its_samples_or_the_denominator() -> None:
    logits, labels = np.zeros((4, 3)), np.array([0, 1, 2, 1])
    for loss in (a_loss, nn.CrossEntropyLoss()):
        weight = counted(loss, logits, labels)
        assert (weight, type(weight)) == (4, int)
    weight = counted(nn.CrossEntropyLoss(weight=[1.0, 2.0, THIRD]), logits, labels)
    assert not isinstance(weight, int)
    assert (weight.dtype, float(weight)) == (np.dtype("float64"), 1 + 2 + THIRD + 2)
    assert counted(a_loss, logits, (labels[:2], labels)) == 2  # samples of the first target


def test_a_share_without_samples_weighs_nothing_in_the_same_type() -> None:
    none, labels = np.zeros((0, 3)), np.zeros(0, "int64")
    weight = counted(nn.CrossEntropyLoss(), none, labels)
    assert (weight, type(weight)) == (0, int)
    weight = counted(nn.CrossEntropyLoss(weight=[1.0, 2.0, 4.0]), none, labels)
    assert not isinstance(weight, int)
    assert (weight.shape, weight.dtype, float(weight)) == ((), np.dtype("float64"), 0.0)

    class Noted(nn.MSELoss):
        def denominator(self, prediction: Any, target: Any, weight: Any = None) -> Any:
            seen.extend([prediction, target])
            return np.asarray(2.0)

    seen: list[Any] = []
    counted(Noted(), none.astype("float32"), labels)
    assert [(a.shape, a.dtype.name) for a in seen] == [((1, 3), "float32"), ((1,), "int64")]
    assert not any(array.any() for array in seen)  # 0 is a label of every loss


def test_a_checked_loss_has_the_reduction_and_the_denominator_of_its_loss() -> None:
    logits, labels = np.zeros((2, 3)), np.array([0, 1])
    assert CheckedLoss(a_loss).reduction == "mean"
    assert CheckedLoss(nn.CrossEntropyLoss(reduction="sum")).reduction == "sum"
    assert CheckedLoss(a_loss).denominator(logits, labels) is None
    weighted = CheckedLoss(nn.CrossEntropyLoss(weight=[1.0, THIRD, 4.0]))
    found = weighted.denominator(logits, labels)
    assert (found.dtype, float(found)) == (np.dtype("float64"), 1 + THIRD)


def test_rates_have_the_names_of_their_groups() -> None:
    one, two, three = (nn.Parameter(np.ones(2)) for _ in range(3))
    assert rate_names(optim.SGD([one], lr=0.1)) == ["lr"]
    groups = [{"params": [one]}, {"params": [two]}, {"params": [three], "lr": 0.3}]
    assert rate_names(optim.SGD(groups, lr=0.1)) == ["lr", "", "lr_2"]
