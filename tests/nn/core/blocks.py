"""Layers made of parameters, layers and lists of layers; comparisons of states and messages."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn

HERE = xbp.available_backends()
PAIRS = list(permutations(HERE, 2))


class Block(nn.Layer):
    """A layer with parameters, sublayers, and lists of them, without a forward."""

    def __init__(self) -> None:
        self.inner = nn.Linear(2, 3, rng=0)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.many = [nn.Linear(3, 3, rng=1), nn.ReLU(), nn.Linear(3, 2, bias=False, rng=2)]
        self.pair = (nn.Tanh(), nn.Sequential(nn.Linear(2, 2, rng=3)))
        self.size = 3
        self.nothing = None
        self.mixed = ["relu", 3, nn.Linear(2, 1, bias=False, rng=4)]


NAMES = [
    "scale",
    "inner.weight",
    "inner.bias",
    "many.0.weight",
    "many.0.bias",
    "many.2.weight",
    "pair.1.0.weight",
    "pair.1.0.bias",
    "mixed.2.weight",
]


class Twice(nn.Layer):
    """One layer under two names."""

    def __init__(self) -> None:
        self.first = nn.Linear(2, 2, rng=0)
        self.second = self.first


def mlp(dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4, dtype=dtype, rng=0),
        nn.Tanh(),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4, dtype=dtype, rng=1), nn.Dropout(0.3)),
        nn.Linear(4, 2, dtype=dtype, rng=2),
    )


def equal(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> bool:
    """Check for equality of bits and dtypes."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


def assert_one_sentence(caught: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
