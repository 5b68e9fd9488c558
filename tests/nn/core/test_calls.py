"""Forward and backward: any number of calls, in any order."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nn.core.blocks import equal, mlp
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import nn
from xbp.testing import oracles


def linear_chain(layer: nn.Linear) -> nn.Sequential:
    """The same layer twice."""
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied_chain(layer: nn.Linear) -> nn.Sequential:
    """Another layer with the same parameters."""
    other = nn.Linear(3, 3, dtype="float64")
    other.weight, other.bias = layer.weight, layer.bias
    return nn.Sequential(layer, nn.Tanh(), other)


@pytest.mark.parametrize("chain", [linear_chain, tied_chain])
def test_weights_that_are_used_twice_get_the_sum_of_both_gradients(
    chain: Callable[[nn.Linear], nn.Sequential],
) -> None:
    layer = nn.Linear(3, 3, dtype="float64", rng=0)
    model = chain(layer)
    rng = default_rng(1)
    x, dy = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    start = layer.state_dict()
    assert len(model.parameters()) == 2

    dx = model.forward(x)[1](dy)
    found = {name: xbp.to_numpy(p.grad) for name, p in layer.named_parameters()}
    for name, value in start.items():

        def loss(changed: oracles.F64, name: str = name) -> float:
            layer.load_state_dict(start | {name: changed})
            return float(np.sum(dy * model(x)))

        # The oracle's error is about 1e-10 for derivatives of order one; these are up to ten.
        np.testing.assert_allclose(found[name], oracles.numeric_gradient(loss, value), atol=1e-8)
    layer.load_state_dict(start)
    expected = oracles.numeric_gradient(lambda changed: float(np.sum(dy * model(changed))), x)
    np.testing.assert_allclose(dx, expected, atol=1e-8)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_calls_of_one_layer_have_two_backwards_in_any_order(order: tuple[int, int]) -> None:
    model, rng = mlp(), default_rng(1)
    xs, dys = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2))

    def gradients() -> list[NDArray[Any]]:
        found = [xbp.to_numpy(parameter.grad) for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.zero_grad()
        return found

    separate = []
    for x, dy in zip(xs, dys, strict=True):
        dx = model.forward(x, training=True, rng=7)[1](dy)
        separate.append((dx, gradients()))

    backwards = [model.forward(x, training=True, rng=7)[1] for x in xs]
    for index in order:
        assert backwards[index](dys[index]).tolist() == separate[index][0].tolist()
    for total, first, second in zip(gradients(), separate[0][1], separate[1][1], strict=True):
        assert total.tolist() == (first + second).tolist()  # a sum of two terms has one order


def test_a_backward_that_runs_twice_adds_twice() -> None:
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    x, dy = default_rng(1).normal(size=(4, 3)), default_rng(2).normal(size=(4, 2))
    backward = layer.forward(x)[1]
    backward(dy)
    once = xbp.to_numpy(layer.weight.grad)
    backward(dy)
    assert xbp.to_numpy(layer.weight.grad).tolist() == (2 * once).tolist()


def test_a_call_leaves_nothing_on_the_layers_and_its_arrays_as_they_were() -> None:
    model = mlp()
    layers = [model, *model, *model[2].layers]  # type: ignore[attr-defined]
    before = [copy.copy(vars(layer)) for layer in layers]
    x, dy = default_rng(1).normal(size=(4, 3)), default_rng(2).normal(size=(4, 2))
    kept = x.tolist(), dy.tolist(), model.state_dict()
    model.forward(x, training=True, rng=0)[1](dy)
    model(x)
    assert [vars(layer) for layer in layers] == before
    assert (x.tolist(), dy.tolist()) == kept[:2]
    assert equal(model.state_dict(), kept[2])


def test_calling_a_layer_is_its_forward_in_inference() -> None:
    model, x = mlp(), default_rng(1).normal(size=(4, 3))
    assert model(x).tolist() == model.forward(x)[0].tolist()
    assert model(x).tolist() != model.forward(x, training=True, rng=0)[0].tolist()


class TwoDropouts(nn.Layer):
    """A forward by hand, which gives both the same `rng`."""

    def __init__(self) -> None:
        self.one, self.two = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        (y, back), (z, back_too) = (
            drop.forward(x, training=training, rng=rng) for drop in (self.one, self.two)
        )
        return y - z, lambda dy: back(dy) - back_too(dy)


class TwoDropoutsMasked(TwoDropouts):
    """The same with an argument of its own."""

    def forward(self, x: Any, mask: Any = None, *, training: bool = False, rng: Any = None) -> Any:
        return super().forward(x, training=training, rng=rng)


@pytest.mark.parametrize("kind", [TwoDropouts, TwoDropoutsMasked])
@pytest.mark.parametrize("seed", [3, np.int64(3), lambda: np.random.default_rng(3)])
def test_a_seed_given_to_a_forward_by_hand_is_shared_by_its_layers(kind: Any, seed: Any) -> None:
    """Each would drop the same entries, if it began with the same bits."""
    given = [seed() if callable(seed) else seed for _ in range(2)]
    y, _ = kind().forward(np.ones(64), training=True, rng=given[0])
    assert np.any(y != 0)
    stream = xbp.random.RandomStream(given[1])
    np.testing.assert_array_equal(y, kind().forward(np.ones(64), training=True, rng=stream)[0])
