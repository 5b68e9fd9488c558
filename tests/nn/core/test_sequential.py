"""Sequential, and the named outputs of a forward."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nn.core.blocks import assert_one_sentence, mlp
from numpy.random import default_rng

import xbp
from xbp import nn
from xbp.backend import Backend
from xbp.errors import InputError
from xbp.random import RandomStream

# --- Sequential ---


def test_sequential_is_its_layers_one_after_the_other() -> None:
    layers = [nn.Linear(3, 4, dtype="float64", rng=0), nn.Tanh(), nn.Linear(4, 2, dtype="float64")]
    x, dy = default_rng(1).normal(size=(5, 3)), default_rng(2).normal(size=(5, 2))
    model = nn.Sequential(*layers)
    y, backward = model.forward(x)
    hidden, backwards = x, []
    for layer in layers:
        hidden, one = layer.forward(hidden)
        backwards.append(one)
    assert_equal_but_for_order(y, hidden)
    dx = backward(dy)
    for one in reversed(backwards):
        dy = one(dy)
    assert_equal_but_for_order(dx, dy)


def assert_equal_but_for_order(found: Any, expected: Any) -> None:
    """A chain may add the terms of a product in another order than its layers one by one."""
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_sequential_is_indexed_counted_and_iterated() -> None:
    layers = (nn.Linear(2, 2), nn.ReLU(), nn.Tanh())
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert tuple(model) == model.layers == layers
    assert (model[0], model[-1]) == (layers[0], layers[2])
    with pytest.raises(IndexError):
        model[3]


def test_sequential_of_nothing_is_the_identity() -> None:
    model, x = nn.Sequential(), np.ones(3)
    y, backward = model.forward(x, training=True)
    assert y is x
    assert backward(x) is x
    assert model(x) is x
    assert repr(model) == "Sequential(\n)"


def test_sequential_shows_its_layers_one_a_line() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Dropout(0.25), nn.Tanh()))
    assert repr(model).splitlines() == [
        "Sequential(",
        "  (0): Linear(2, 3, bias=True)",
        "  (1): Sequential(",
        "    (0): Dropout(p=0.25)",
        "    (1): Tanh()",
        "  )",
        ")",
    ]


@pytest.mark.parametrize(
    "thing", [nn.ReLU, np.tanh, None, "relu", nn.Parameter(np.ones(1)), [nn.ReLU()]]
)
def test_what_is_no_layer_is_one_sentence_that_says_where(thing: Any) -> None:
    with pytest.raises(InputError) as caught:
        nn.Sequential(nn.Tanh(), thing)
    assert_one_sentence(caught, "argument 1", type(thing).__name__)


def test_each_dropout_of_a_sequential_draws_a_mask_of_its_own(backend: Backend) -> None:
    x = backend.asarray(np.ones(200))
    outputs = []
    for dropouts in ([0.5], [0.0, 0.5], [0.5, 0.5]):
        model = nn.Sequential(*map(nn.Dropout, dropouts))
        outputs.append(xbp.to_numpy(model.forward(x, training=True, rng=3)[0]))
        assert model(x) is x
    one, same, both = outputs
    assert one.tolist() == same.tolist()  # p = 0 draws nothing
    assert set(both.tolist()) == {0.0, 4.0}
    # A quarter of 200 is 50, six standard deviations are 37; one mask used twice keeps 100.
    assert 13 < np.count_nonzero(both) < 87
    assert not np.any((both != 0) & (one == 0))  # the first mask is the same as alone


# --- trace ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "make_rng", [lambda: 5, lambda: default_rng(5), lambda: RandomStream(5, step=2)]
)
def test_trace_gives_each_output_of_one_forward_masks_included(
    training: bool, make_rng: Callable[[], Any]
) -> None:
    model, x = mlp(), default_rng(1).normal(size=(6, 3))
    steps = list(nn.named_outputs(model, x, training=training, rng=make_rng()))
    assert [name for name, _, _ in steps] == ["0", "1", "2.0", "2.1", "2.2", "3"]
    inner = model[2]
    assert isinstance(inner, nn.Sequential)
    layers = [model[0], model[1], *inner, model[3]]
    assert [layer for _, layer, _ in steps] == layers
    for index, (_, _, output) in enumerate(steps):
        beginning = nn.Sequential(*layers[: index + 1])
        expected = beginning.forward(x, training=training, rng=make_rng())[0]
        assert_equal_but_for_order(output, expected)
    whole = model.forward(x, training=training, rng=make_rng())[0]
    assert_equal_but_for_order(steps[-1][2], whole)


def test_trace_of_a_single_layer_is_that_layer() -> None:
    layer, x = nn.Dropout(0.5), np.ones(50)
    steps = list(nn.named_outputs(layer, x, training=True, rng=3))
    assert [(name, traced) for name, traced, _ in steps] == [("", layer)]
    assert steps[0][2].tolist() == layer.forward(x, training=True, rng=3)[0].tolist()


class Whole(nn.Composite):
    """A network by attributes, with one layer in it that is none."""

    def __init__(self) -> None:
        self.body = nn.Sequential(nn.Linear(3, 4, dtype="float64", rng=0), nn.Tanh())
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 2, dtype="float64", rng=1)

    def compose(self) -> nn.Layer:
        return nn.Sequential(self.body, nn.ReLU(), self.drop, self.head)


def test_named_outputs_looks_into_a_composite() -> None:
    model, x = nn.Sequential(Whole(), nn.Sigmoid()), np.ones((2, 3))
    steps = list(nn.named_outputs(model, x, training=True, rng=3))
    names = ["0.body.0", "0.body.1", "0.1", "0.drop", "0.head", "1"]
    assert [name for name, _, _ in steps] == names
    np.testing.assert_array_equal(steps[-1][2], model.forward(x, training=True, rng=3)[0])
    rows = nn.summary(model, (3,))
    assert [row.name for row in rows] == names and sum(row.parameters for row in rows) == 26
