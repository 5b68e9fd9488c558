"""What a Sequential computes in one pass, and what a first layer need not compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nn.cases import LAYERS

import xbp
from xbp import nn
from xbp.nn.fusion import fused
from xbp.testing import assert_no_host_sync
from xbp.testing.cases import Case

CHAINS = {
    "conv relu pool": lambda: [nn.ReLU(), nn.MaxPool2d(2)],
    "conv relu": lambda: [nn.ReLU()],
    "conv pool": lambda: [nn.MaxPool2d((2, 3))],
    "conv relu relu pool": lambda: [nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)],
    "conv relu overlapping pool": lambda: [nn.ReLU(), nn.MaxPool2d(3, 1)],
    "conv relu padded pool": lambda: [nn.ReLU(), nn.MaxPool2d(2, padding=1)],
    "conv tanh pool": lambda: [nn.Tanh(), nn.MaxPool2d(2)],
    "conv relu average": lambda: [nn.ReLU(), nn.AvgPool2d(2)],
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("bias", [True, False])
def test_in_one_pass_or_layer_by_layer(chain: str, bias: bool, backend: Any) -> None:
    def make() -> nn.Sequential:
        conv = nn.Conv2d(2, 3, 3, bias=bias, dtype="float64", rng=0)
        return nn.Sequential(conv, *CHAINS[chain]())

    x = backend.asarray(np.random.default_rng(0).normal(size=(5, 2, 8, 8)))
    model, plain = make(), make()
    y, backward = model.forward(x, training=True)
    expected, backwards = x, []
    for layer in plain:
        expected, step = layer.forward(expected, training=True)
        backwards.append(step)
    dy = backend.asarray(np.random.default_rng(1).normal(size=tuple(y.shape)))
    dx, expected_dx = backward(dy), dy
    for step in reversed(backwards):
        expected_dx = step(expected_dx)
    pairs = [(y, expected), (dx, expected_dx), (model(x), expected)]
    pairs += [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    for one, other in pairs:
        # The same sums in other orders, of at most 200 terms of order 1.
        np.testing.assert_allclose(xbp.to_numpy(one), xbp.to_numpy(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_relu_in_one_pass(bias: bool, backend: Any) -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Linear(20, 7, bias, dtype="float64", rng=0), nn.ReLU())

    x = backend.asarray(np.random.default_rng(0).normal(size=(5, 3, 20)))
    model, plain = make(), make()
    y, backward = model.forward(x, training=True)
    z, first = plain[0].forward(x)
    expected, second = plain[1].forward(z)
    dy = backend.asarray(np.random.default_rng(1).normal(size=(5, 3, 7)))
    pairs = [(y, expected), (model(x), expected), (backward(dy), first(second(dy)))]
    pairs += [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    for one, other in pairs:
        # The same sums in other orders, of at most 20 terms of order 1.
        np.testing.assert_allclose(xbp.to_numpy(one), xbp.to_numpy(other), rtol=1e-13, atol=1e-13)


def test_what_is_fused() -> None:
    conv, relu, pool = nn.Conv2d(1, 1, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2)
    assert len(list(fused((conv, relu, pool, conv, relu, conv)))) == 3
    linear = nn.Linear(1, 1, rng=0)
    assert len(list(fused((linear, relu, linear, relu, relu, linear, nn.Tanh())))) == 5
    kept = (relu, conv, nn.MaxPool2d(3, 2), nn.Sequential(conv), relu)
    assert list(fused(kept)) == list(kept)


def test_a_chain_without_the_gradient_of_its_input_goes_through_all_layers_backward() -> None:
    sizes = [(3, 4), (4, 4), (4, 2)]
    model = nn.Sequential(
        *(
            layer
            for seed, pair in enumerate(sizes)
            for layer in (nn.Linear(*pair, dtype="float64", rng=seed), nn.Tanh())
        )
    )
    x = np.random.default_rng(0).normal(size=(5, 3))
    y, backward = model.forward(x, training=True)
    backward(y)
    wanted = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.zero_grad()
    nn.for_parameters(model.forward(x, training=True)[1])(y)
    assert all(np.array_equal(p.grad, g) for p, g in zip(model.parameters(), wanted, strict=True))


def test_images_of_another_shape_are_refused_in_one_sentence() -> None:
    model = nn.Sequential(nn.Conv2d(2, 1, 3, rng=0), nn.ReLU())
    for shape in ((2, 9, 9), (4, 3, 9, 9), (4, 2, 2, 9)):
        with pytest.raises(xbp.errors.InputError, match=r"^Conv2d"):
            model(np.zeros(shape, np.float32))


def test_it_does_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2))
        x = xbp.asarray(np.ones((2, 1, 8, 8)), dtype="float32")
        with assert_no_host_sync():
            y, backward = model.forward(x, training=True)
            nn.for_parameters(backward)(y)
            backward(y)


def test_a_pooling_that_pads_or_does_something_else_is_not_fused() -> None:
    class Other(nn.MaxPool2d):
        """A subclass."""

    for pool in (nn.MaxPool2d(2, 2, (0, 1)), nn.MaxPool2d((2, 3), (3, 2)), Other(2)):
        pair = (nn.Conv2d(1, 1, 3, rng=0), pool)
        assert list(fused(pair)) == list(pair)


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_without_the_gradient_of_the_input(case: Case) -> None:
    """The parameters' gradients are the same, to the bit, alone or first in a Sequential."""
    x = case.inputs()[0]
    wanted = []
    for wrap in (lambda layer: layer, nn.Sequential):
        for run in (lambda backward: backward, nn.for_parameters):
            layer = wrap(case.make())
            y, backward = layer.forward(x, training=True, rng=0)
            run(backward)(np.cos(y))
            wanted.append([p.grad for p in layer.parameters()])
    for gradients in wanted[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(gradients, wanted[0], strict=True))


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(3, 2, rng=0), lambda: nn.Conv2d(3, 2, 1, rng=0)]
)
def test_it_is_really_left_out(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    x = np.ones((2, 3, 1, 1) if isinstance(layer, nn.Conv2d) else (2, 3), np.float32)
    y, backward = layer.forward(x, training=True)
    assert nn.for_parameters(backward) is not backward
    assert nn.for_parameters(backward)(y) is None
