"""A user's own layers: the methods that they must define, and their repr."""

import numpy as np
import pytest
from nn.core.blocks import Block

import xbp
from xbp import nn, optim


def test_a_layer_without_a_forward_says_what_to_define() -> None:
    class Unfinished(nn.Layer):
        pass

    for use in (Unfinished(), Unfinished().forward, nn.Sequential(Unfinished())):
        with pytest.raises(
            NotImplementedError, match=r"^Unfinished has no forward; define forward\("
        ):
            use(np.ones(1))


def test_an_activation_without_a_formula_says_what_to_define() -> None:
    class Unfinished(nn.Elementwise):
        pass

    with pytest.raises(NotImplementedError, match=r"^Unfinished has no formula; define formula\("):
        Unfinished()(np.ones(1))


def test_a_layer_shows_its_class_and_its_options() -> None:
    class Shown(nn.Layer):
        def options(self) -> str:
            return "3, p=0.5"

    assert repr(Shown()) == str(Shown()) == "Shown(3, p=0.5)"
    assert repr(Block()) == "Block()"


def test_trainers_and_optimizers_say_what_they_are() -> None:
    layer = nn.Linear(2, 1, rng=0)
    optimizer = optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    assert repr(optimizer).startswith("SGD(2 parameters, lr=0.1, ")
    assert "momentum=0.9" in repr(optimizer)
    trainer = repr(xbp.Trainer(layer, nn.MSELoss(), optimizer, rng=3))
    assert trainer.startswith("Trainer(Linear, MSELoss(") and trainer.endswith(", rng=3)")


def test_a_summary_is_a_function_of_nn() -> None:
    (row,) = nn.summary(nn.Linear(3, 2, rng=0), (3,))
    assert (row.output_shape, row.parameters) == ((2,), 8)
