"""Parameters with ``trainable=False``."""

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import backend_of


class Moved(nn.Layer):
    """y = x + c, with a constant c."""

    def __init__(self, *c: float) -> None:
        self.c = nn.Parameter(xbp.asarray(c, dtype="float32"), trainable=False)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        self.namespace(x)
        return x + self.c.data, lambda dy: dy


def test_a_constant_moves_and_is_saved_but_is_not_learned() -> None:
    pytest.importorskip("array_api_strict")
    layer = nn.Sequential(Moved(1, -1))
    assert layer.parameters() == [] and list(layer.named_parameters()) == []
    assert layer.state_dict()["0.c"].tolist() == [1, -1]
    assert layer.backend() == backend_of(np.zeros(1))
    layer.to("array_api_strict").astype("float64")
    with xbp.use_backend("array_api_strict") as strict:
        assert layer.backend() == strict
        assert xbp.to_numpy(layer(xbp.asarray([[1.0, 0.0]]))).tolist() == [[2, -1]]
    layer.load_state_dict({"0.c": np.zeros(2)})
    assert layer.state_dict()["0.c"].tolist() == [0, 0]
    with pytest.raises(xbp.errors.InputError, match=r"'0\.c' is missing"):
        layer.load_state_dict({})


def test_a_frozen_layer_keeps_its_weights_and_passes_the_gradient_on() -> None:
    def step(frozen: bool) -> tuple[nn.Sequential, Any]:
        model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Tanh(), nn.Linear(4, 2, rng=1))
        for parameter in model[2].parameters() if frozen else []:
            parameter.trainable = False
        optimizer = optim.SGD(model.parameters(), lr=1.0)
        y, backward = model.forward(np.ones((5, 3), np.float32), training=True)
        dx = backward(np.ones_like(y))
        optimizer.step()
        return model, dx

    (free, free_dx), (half, half_dx) = step(False), step(True)
    start = nn.Linear(4, 2, rng=1).state_dict()
    assert np.array_equal(half.state_dict()["2.weight"], start["weight"])
    assert half[2].weight.grad is None  # type: ignore[attr-defined]
    assert not np.array_equal(free.state_dict()["2.weight"], start["weight"])
    assert np.array_equal(half_dx, free_dx)
    assert np.array_equal(half.state_dict()["0.weight"], free.state_dict()["0.weight"])


def test_frozen_parameters_can_be_found_and_freed() -> None:
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.BatchNorm1d(3))
    names = [name for name, _ in model.named_parameters()]
    for parameter in model[0].parameters():
        parameter.trainable = False
    assert [name for name, _ in model.named_parameters()] == ["1.weight", "1.bias"]
    assert [name for name, _ in model.named_parameters(frozen=True)] == names
    for parameter in model.parameters(frozen=True):
        parameter.trainable = True
    assert [name for name, _ in model.named_parameters()] == names


def test_input_must_fit_a_constant_too() -> None:
    with pytest.raises(xbp.errors.InputError, match=r"float64 input.*astype"):
        Moved(1, -1)(np.zeros((1, 2)))
