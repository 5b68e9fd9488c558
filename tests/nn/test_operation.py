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
