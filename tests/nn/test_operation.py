"""Layers that are one operation: checks of a batch, and what chains of them remember."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xbp import nn, primitives
from xbp.errors import InputError
from xbp.nn.operation import OperationChain


class Pairs(nn.OperationLayer):
    """ReLU of at least two samples in training."""

    def operation(self) -> nn.Operation:
        return nn.Operation(primitives.rectify)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def check_batch(self, shape: tuple[int, ...]) -> None:
        if shape[0] < 2:
            msg = "pairs need two samples"
            raise InputError(msg)


@pytest.mark.parametrize("chained", [False, True])
def test_a_batch_with_too_few_samples_is_refused_in_training_alone(chained: bool) -> None:
    layer: Any = OperationChain([Pairs(), Pairs()]) if chained else Pairs()
    for n, training in ((1, False), (2, False), (2, True)):
        assert layer.forward(np.ones((n, 3)), training=training)[0].shape == (n, 3)
    with pytest.raises(InputError, match="pairs need two samples"):
        layer.forward(np.ones((1, 3)), training=True)


@pytest.mark.parametrize("training", [False, True])
def test_a_shape_is_checked_once(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Any] = []
    usual = Pairs.output_shape
    monkeypatch.setattr(
        Pairs, "output_shape", lambda self, shape: checked.append(shape) or usual(self, shape)
    )
    chain = OperationChain([nn.Linear(3, 4, dtype="float64"), Pairs()])
    for n in (2, 2, 5, 2, 5):
        chain.forward(np.ones((n, 3)), training)
    assert checked == [(2, 4), (5, 4)]
    chain.forward(np.ones((2, 3)), not training)
    assert checked[2:] == [(2, 4)]


def test_a_chain_with_running_statistics_holds_until_a_layer_changes() -> None:
    norm = nn.BatchNorm1d(3, dtype="float64")
    chain = OperationChain([norm, Pairs()])
    chain.forward(np.arange(6.0).reshape(2, 3), True)[1](np.ones((2, 3)))
    assert chain.holds()
    norm.eps = 0.1
    assert not chain.holds()


def test_arrays_of_another_type_are_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype alone does not tell CuPy's arrays from numpy's; a subclass is a stand-in for them."""

    class Own(np.ndarray[Any, Any]):
        pass

    checked: list[Any] = []
    usual = nn.Linear.check_input
    monkeypatch.setattr(
        nn.Linear, "check_input", lambda self, x: checked.append(type(x)) or usual(self, x)
    )
    chain = OperationChain([Pairs(), nn.Linear(3, 4, dtype="float64")])
    for kind in (np.ndarray, np.ndarray, Own, Own):
        chain.forward(np.ones((2, 3)).view(kind))
    assert checked == [np.ndarray, Own, Own]


def test_a_chain_lends_the_same_arrays_until_a_parameter_has_a_new_one() -> None:
    first, last = nn.Linear(3, 4, dtype="float64", rng=0), nn.Linear(4, 2, dtype="float64", rng=1)
    chain, x = OperationChain([first, nn.Tanh(), last]), np.ones((2, 3))
    for training in (False, True):
        lender = chain.lenders[training]
        y = chain.forward(x, training)[0]
        lent, beside = lender.lend(x)
        assert beside and lender.lend(x)[0] is lent
        assert not lender.lend(x.astype("float32"))[1] and not lender.lend([1.0])[1]
        last.bias.data = last.bias.data + 1
        np.testing.assert_allclose(chain.forward(x, training)[0], y + 1, rtol=1e-15)
        assert lender.lend(x)[0] is not lent


def test_a_parameter_of_another_dtype_is_refused_by_a_chain_that_has_run() -> None:
    first, last = nn.Linear(3, 4, dtype="float64", rng=0), nn.Linear(4, 2, dtype="float64", rng=1)
    chain, x = OperationChain([first, nn.Tanh(), last]), np.ones((2, 3))
    chain.forward(x)
    last.astype("float32")
    for _ in range(2):
        with pytest.raises(InputError, match="float64 input, but its parameters are float32"):
            chain.forward(x)


def test_the_backward_of_a_chain_adds_nothing_if_a_parameter_has_changed() -> None:
    first, last = nn.Linear(3, 4, dtype="float64", rng=0), nn.Linear(4, 2, dtype="float64", rng=1)
    y, backward = nn.Sequential(first, nn.Tanh(), last).forward(np.ones((2, 3)), training=True)
    last.bias.changed()  # is only added
    nn.for_parameters(backward)(np.ones_like(y))
    grads = [p.grad.copy() for p in (first.weight, last.weight)]
    first.weight.changed()
    with pytest.raises(InputError, match="changed between a forward and its backward"):
        backward(np.ones_like(y))
    for parameter, grad in zip((first.weight, last.weight), grads, strict=True):
        assert parameter.grad.tobytes() == grad.tobytes()
