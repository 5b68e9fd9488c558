"""The layers of the network of 1998."""

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.models.lenet1998 import EuclideanRBF, PartialConv2d, Subsample2d


def test_a_map_is_blind_to_what_it_is_not_connected_to() -> None:
    layer = PartialConv2d([[1, 0, 1], [0, 1, 0]], 3, dtype="float64", rng=0)
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6))
    other = x.copy()
    other[:, 1] += 1
    assert np.array_equal(layer(x)[:, 0], layer(other)[:, 0])
    assert not np.any(layer(x)[:, 1] == layer(other)[:, 1])


def test_with_all_connections_it_is_conv2d() -> None:
    """P is a matrix of 0 and 1 that copies, so that even the roundings are equal."""
    full = PartialConv2d([[True] * 3] * 2, (2, 3), (2, 1), 1, dtype="float64", rng=0)
    conv = nn.Conv2d(3, 2, (2, 3), (2, 1), 1, dtype="float64")
    weight = full.state_dict()["weight"].reshape(conv.weight.shape)
    conv.load_state_dict({"weight": weight, "bias": np.ones(2)})
    full.load_state_dict(full.state_dict() | {"bias": np.ones(2)})
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 6))
    (y, backward), (expected, conv_backward) = full.forward(x), conv.forward(x)
    assert np.array_equal(y, expected)
    assert np.array_equal(backward(y), conv_backward(y))
    assert np.array_equal(full.weight.grad.reshape(weight.shape), conv.weight.grad)


def test_the_table_may_be_an_array() -> None:
    table = np.array([[True, False], [True, True]])
    assert PartialConv2d(table, 1, rng=0).weight.shape == (3, 1, 1)


BAD = [
    (lambda: PartialConv2d([[1, 0], [1]], 3), "table of booleans.*a row for each output map"),
    (lambda: PartialConv2d([], 3), "table of booleans"),
    (lambda: PartialConv2d([[]], 3), "map 0 without an input"),
    (lambda: PartialConv2d(3, 3), "table of booleans.*got 3"),  # type: ignore[arg-type]
    (lambda: PartialConv2d([[2, 1]], 3), "table of booleans"),  # type: ignore[list-item]
    (lambda: PartialConv2d([[1, 1], [0, 0]], 3), "output map 1 without an input"),
    (lambda: PartialConv2d([[1, 1]], 3)(np.zeros((1, 3, 5, 5), np.float32)), r"\(N, 2, H, W\)"),
    (lambda: Subsample2d(0), "channels must be an integer of at least 1"),
    (lambda: Subsample2d(2)(np.zeros((1, 3, 4, 4), np.float32)), r"\(N, 2, H, W\)"),
    (lambda: EuclideanRBF([[1, -1]])(np.zeros((1, 2))), "float64 input.*astype"),
    (lambda: EuclideanRBF([1, -1]), r"\(classes, features\), got \(2,\)"),
    (lambda: EuclideanRBF([[1, -1]])(np.zeros((1, 3), np.float32)), r"\(…, 2\).*\(1, 3\)"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
