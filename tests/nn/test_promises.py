"""The contract of a forward: its results, and arrays that must not change before its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.models import lenet1998
from xbp.testing import check_gradients, check_parity

Real = NDArray[Any]
X = np.random.default_rng(0).normal(size=(2, 2))


def layer_of(result: Callable[[Any], Any]) -> Callable[[], nn.Layer]:
    class Own(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            return result(x)

    return Own


class NoKeywords(nn.Layer):
    def forward(self, x: Any) -> Any:  # type: ignore[override]
        return x, lambda dy: dy


class NoRng(nn.Layer):
    def forward(self, x: Any, training: bool = False) -> Any:  # type: ignore[override]
        return x, lambda dy: dy


class OutputAlone(nn.Elementwise):
    def formula(self, xp: Any, x: Any) -> Any:
        return x * x


class DerivativeAsArray(nn.Elementwise):
    def formula(self, xp: Any, x: Any) -> Any:
        return x * x, 2 * x


RETURNS = r"forward must return \(output, backward\)"
WRONG: dict[str, tuple[Callable[[], nn.Layer], str]] = {
    "the output alone": (layer_of(lambda x: x), f"{RETURNS}.* returned ndarray"),
    "nothing": (layer_of(lambda x: None), f"{RETURNS}.* returned NoneType"),
    "a list": (layer_of(lambda x: [x, lambda dy: dy]), f"{RETURNS}.* returned list"),
    "two outputs": (layer_of(lambda x: (x, x)), f"{RETURNS}.* 2 things: "),
    "three things": (layer_of(lambda x: (x, x, lambda dy: dy)), f"{RETURNS}.* 3 things: "),
    "a formula alone": (OutputAlone, r"OutputAlone\.formula must return \(y, derivative\)"),
    "an array of slopes": (DerivativeAsArray, r"formula must return \(y, derivative\)"),
}
SIGNATURE = r"must be defined as forward\(self, x, \*, training=False, rng=None\)"
UNNAMED = {"no keywords": (NoKeywords, SIGNATURE), "no rng": (NoRng, SIGNATURE)}


def train(layer: nn.Layer) -> object:
    layer.weight = nn.Parameter(np.ones(1))  # type: ignore[attr-defined]
    return xbp.Trainer(layer, nn.MSELoss(), optim.SGD(layer.parameters(), 0.1)).step(X, X)


USES: dict[str, Callable[[Callable[[], nn.Layer]], object]] = {
    "Sequential": lambda make: nn.Sequential(nn.Tanh(), make()).forward(X),
    "trace": lambda make: list(nn.named_outputs(nn.Sequential(make()), X)),
    "Trainer": lambda make: train(make()),
    "check_gradients": lambda make: check_gradients(make(), X),
    "check_parity": lambda make: check_parity(make, X, backends=["numpy"]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", [*WRONG, *UNNAMED])
def test_a_forward_that_is_none_is_one_sentence(name: str, use: str) -> None:
    make, sentence = (WRONG | UNNAMED)[name]
    with pytest.raises(InputError, match=sentence) as caught:
        USES[use](make)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_inference_looks_too(name: str) -> None:
    make, sentence = WRONG[name]
    for model in (make(), nn.Sequential(make())):
        with pytest.raises(InputError, match=sentence):
            model(X)


def test_a_type_error_within_a_forward_stays_what_it_is() -> None:
    def wrong(x: Any) -> Any:
        msg = "mine"
        raise TypeError(msg)

    with pytest.raises(TypeError, match="mine"):
        nn.Sequential(layer_of(wrong)()).forward(X)


# --- backwards that are stale ---

LAYERS: dict[str, tuple[Callable[[], nn.Layer], Real]] = {
    "Linear": (lambda: nn.Linear(3, 2, dtype="float64", rng=0), np.ones((4, 3))),
    "Linear and ReLU": (
        lambda: nn.Sequential(nn.Linear(3, 2, dtype="float64", rng=0), nn.ReLU()),
        np.ones((4, 3)),
    ),
    "Conv2d": (lambda: nn.Conv2d(1, 2, 2, dtype="float64", rng=0), np.ones((2, 1, 4, 4))),
    "Conv2d in a block": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dtype="float64", rng=0), nn.ReLU()),
        np.ones((2, 1, 4, 4)),
    ),
    "PartialConv2d": (
        lambda: lenet1998.PartialConv2d([[True]], 2, dtype="float64", rng=0),
        np.ones((2, 1, 4, 4)),
    ),
    "Subsample2d": (
        lambda: lenet1998.Subsample2d(1, dtype="float64", rng=0),
        np.ones((2, 1, 4, 4)),
    ),
    "PReLU": (lambda: nn.PReLU(dtype="float64"), -np.ones((2, 3))),
    "RNN": (lambda: nn.RNN(3, 2, dtype="float64", rng=0), np.ones((2, 3, 3))),
    "LSTM": (lambda: nn.LSTM(3, 2, dtype="float64", rng=0), np.ones((2, 3, 3))),
    "GRU": (lambda: nn.GRU(3, 2, dtype="float64", rng=0), np.ones((2, 3, 3))),
}


def step(layer: nn.Layer) -> None:
    for parameter in layer.parameters():
        parameter.add_grad(np.ones_like(parameter.data))
    optim.SGD(layer.parameters(), 0.5).step()


def by_hand(layer: nn.Layer) -> None:
    for parameter in layer.parameters():
        parameter.data -= 0.5


def load(layer: nn.Layer) -> None:
    layer.load_state_dict({name: array - 0.5 for name, array in layer.state_dict().items()})


CHANGES: dict[str, Callable[[nn.Layer], None]] = {
    "an optimizer's step": step,
    "in place, by hand": by_hand,
    "another state": load,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_backward_after_a_change_of_its_parameters_is_refused(name: str, change: str) -> None:
    make, x = LAYERS[name]
    layer = make()
    y, backward = layer.forward(x)
    CHANGES[change](layer)
    with pytest.raises(InputError, match="was changed between a forward and its backward"):
        backward(np.ones_like(y))


@pytest.mark.parametrize("name", LAYERS)
def test_a_new_array_leaves_the_backward_its_own(name: str) -> None:
    make, x = LAYERS[name]
    layer, other = make(), make()
    y, backward = layer.forward(x)
    for parameter in layer.parameters():
        parameter.data = parameter.data - 0.5
    dx = backward(np.ones_like(y))
    np.testing.assert_array_equal(dx, other.forward(x)[1](np.ones_like(y)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_frozen_layer_is_watched_too(name: str) -> None:
    make, x = LAYERS[name]
    layer = make()
    for parameter in layer.parameters():
        parameter.trainable = False
    y, backward = layer.forward(x)
    load(layer)
    with pytest.raises(InputError, match="was changed"):
        backward(np.ones_like(y))


def test_two_forwards_two_backwards_and_then_the_step() -> None:
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    optimizer = optim.SGD(layer.parameters(), 0.5)
    for _ in range(3):
        backwards = [layer.forward(np.ones((4, 3)))[1] for _ in range(2)]
        for backward in backwards:
            backward(np.ones((4, 2)))
        optimizer.step()
        optimizer.zero_grad()


def test_a_bias_may_change_as_no_backward_reads_it() -> None:
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    assert layer.bias is not None
    y, backward = layer.forward(np.ones((4, 3)))
    layer.bias.assign(np.zeros(2))
    expected = np.ones((4, 2)) @ layer.weight.data
    np.testing.assert_allclose(backward(np.ones_like(y)), expected, rtol=1e-15)


def test_a_layer_for_inference_alone_has_no_backward() -> None:
    make = layer_of(lambda x: (x, None))
    np.testing.assert_array_equal(nn.Sequential(make())(X), X)
    with pytest.raises(InputError, match=RETURNS):
        nn.Sequential(make()).forward(X)
