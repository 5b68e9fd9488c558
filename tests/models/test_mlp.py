"""The multilayer perceptron: its layers, and invalid arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.errors import InputError
from xbp.models import MLP
from xbp.testing import check_gradients


def kinds(model: MLP) -> list[str]:
    return [repr(layer) for layer in model]


def test_it_is_the_sequential_written_out() -> None:
    rng = xbp.random.generator(3)
    written = nn.Sequential(
        nn.Linear(5, 7, dtype="float64", rng=rng),
        nn.Tanh(),
        nn.Linear(7, 4, dtype="float64", rng=rng),
        nn.Tanh(),
        nn.Linear(4, 2, dtype="float64", rng=rng),
    )
    model = MLP(5, 7, 4, 2, activation=nn.Tanh, dtype="float64", rng=3)
    x = np.random.default_rng(0).normal(size=(6, 5))
    assert np.array_equal(model(x), written(x))
    assert model.state_dict().keys() == written.state_dict().keys()


def test_a_model_without_hidden_layers_is_linear() -> None:
    assert kinds(MLP(3, 2)) == ["Linear(3, 2, bias=True)"]


def test_an_activation_and_a_dropout_for_each_layer_and_no_bias() -> None:
    model = MLP(
        *(30, 64, 32, 1),
        activation=[nn.Sigmoid, lambda: nn.LeakyReLU(0.2)],
        output_activation=nn.Sigmoid,
        dropout=(0, 0.2),
        bias=False,
    )
    assert kinds(model) == [
        "Linear(30, 64, bias=False)",
        "Sigmoid()",
        "Linear(64, 32, bias=False)",
        "LeakyReLU(negative_slope=0.2)",
        "Dropout(p=0.2)",
        "Linear(32, 1, bias=False)",
        "Sigmoid()",
    ]


def test_one_activation_and_one_dropout_stand_for_all_hidden_layers() -> None:
    model = MLP(2, 3, 4, 1, activation=nn.PReLU, dropout=0.5, dtype="float64")
    assert [type(layer).__name__ for layer in model] == [
        *("Linear", "PReLU", "Dropout"),
        *("Linear", "PReLU", "Dropout"),
        "Linear",
    ]
    assert model[1] is not model[4]  # each with its own slope
    assert {p.data.dtype.name for p in model.parameters()} == {"float64"}


def test_its_gradients_are_right() -> None:
    model = MLP(3, 5, 4, 2, activation=[nn.Tanh, nn.Sigmoid], dtype="float64", rng=0)
    check_gradients(model, np.random.default_rng(1).normal(size=(4, 3)))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((3,), {}, "needs the number of inputs and of outputs at least"),
        ((3, 0, 1), {}, "size 1 of an MLP must be an integer of at least 1, got 0"),
        ((3, 2.5, 1), {}, "size 1 of an MLP must be an integer"),
        ((3, 4, 1), {"activation": [nn.ReLU] * 2}, "one for each of 1 hidden layers"),
        ((3, 4, 1), {"dropout": (0.1, 0.2)}, "dropout must be one for all"),
        ((3, 4, 1), {"dropout": 1.5}, "p must be a finite number from 0 to 1"),
        ((3, 4, 1), {"activation": "relu"}, "an activation must be a class of xbp.nn"),
        ((3, 4, 1), {"activation": nn.ReLU()}, "an activation must be a class of xbp.nn"),
        ((3, 4, 1), {"output_activation": dict}, "an activation must be a class of xbp.nn"),
    ],
)
def test_bad_arguments_are_one_sentence(
    sizes: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        MLP(*sizes, **options)
