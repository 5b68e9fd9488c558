"""Layers, branches, groups and histories by index or name; what is not there is one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError, UnknownIndexError, UnknownNameError


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3, rng=0), nn.ReLU(), nn.Linear(3, 1, rng=1))


def branches() -> nn.Parallel:
    return nn.Parallel(nn.ReLU(), left=nn.Tanh())


def group() -> Any:
    return optim.Adam(model().parameters(), 0.1).param_groups[0]


def history() -> Any:
    net = model()
    return xbp.Trainer(net, nn.MSELoss(), optim.SGD(net.parameters(), 0.1), rng=0).history


WRONG = [
    (model, 99, UnknownIndexError, "Sequential has no layer 99; the last of its 3 is 2"),
    (model, 3, IndexError, "no layer 3"),
    (model, -4, IndexError, "no layer -4"),
    (nn.Sequential, 0, UnknownIndexError, "Sequential has no layer 0, as it has none"),
    (model, "0", InputError, "by an integer or a slice of integers, got '0'"),
    (model, slice("a", None), InputError, "by an integer or a slice of integers, got a slice"),
    (model, 1.0, InputError, "got a float"),
    (model, (0, 1), InputError, "got a tuple of 2"),
    (branches, "right", UnknownNameError, "no branch 'right'; there are 0, left"),
    (branches, 1, KeyError, "no branch 1; there are 0, left"),
    (group, "learning_rate", UnknownNameError, "Adam has no 'learning_rate'; it has params, lr, "),
    (group, 0, KeyError, "Adam has no 0"),
    (history, "loss", UnknownNameError, "no 'loss' in the history"),
]


@pytest.mark.parametrize(("make", "index", "error", "said"), WRONG)
def test_what_is_not_there_is_one_sentence(make: Any, index: Any, error: Any, said: str) -> None:
    with pytest.raises(error) as caught:
        make()[index]
    assert isinstance(caught.value, InputError)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_there_is_found() -> None:
    layers, both = model(), branches()
    assert list(layers) == [layers[0], layers[1], layers[-1]] == list(layers[:])
    assert layers[np.int64(1)] is layers.layers[1]
    assert isinstance(layers[1:], nn.Sequential) and len(layers[5:]) == 0
    assert list(both) == [both[0], both["left"]] and both["0"] is both[0]
    assert list(reversed(layers)) == [layers[2], layers[1], layers[0]]


def test_an_option_that_a_group_does_not_set_cannot_be_deleted() -> None:
    with pytest.raises(UnknownNameError, match="'lr' is not set for this group"):
        del group()["lr"]
