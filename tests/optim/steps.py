"""Two parameters with gradients, and what an optimizer keeps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import optim
from xbp.testing.cases import RULES

STEPS = 100
HERE = xbp.available_backends()
Make = Callable[..., optim.Optimizer]

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
stateful = pytest.mark.parametrize(
    "make",
    [
        partial(optim.SGD, lr=0.1),
        partial(optim.SGD, lr=optim.StepLR(0.1, 3, 0.5), momentum=0.9, nesterov=True),
        partial(optim.Adam, lr=optim.OneCycleLR(0.1, 10), weight_decay=0.1),
    ],
    ids=["SGD", "SGD with momentum", "Adam"],
)


def values(state: dict[str, Any]) -> dict[str, Any]:
    """The state in a form that `==` compares bit for bit."""
    return {key: (np.shape(value), np.asarray(value).tobytes()) for key, value in state.items()}


def one_sentence(caught: pytest.ExceptionInfo[Exception]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def two_gradients(steps: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    rng = default_rng(5)
    for _ in range(steps):
        yield rng.normal(size=2), rng.normal(size=(1, 1))
