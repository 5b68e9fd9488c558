"""Parameters that are not trained, and the layers of LeNet-5 (1998) that have some."""

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import backend_of

# --- Parameter(trainable=False) ------------------------------------------------------------------


def test_a_constant_moves_and_is_saved_but_is_not_learned() -> None:
    pytest.importorskip("array_api_strict")
    layer = nn.Sequential(nn.EuclideanRBF([[1, -1], [1, 1]]))
    assert layer.parameters() == [] and list(layer.named_parameters()) == []
    assert layer.state_dict()["0.codes"].tolist() == [[1, -1], [1, 1]]
    assert layer.backend() == backend_of(np.zeros(1))
    layer.to("array_api_strict").astype("float64")
    with xbp.use_backend("array_api_strict") as strict:
        assert layer.backend() == strict
        assert xbp.to_numpy(layer(xbp.asarray([[1.0, 0.0]]))).tolist() == [[1, 1]]
    layer.load_state_dict({"0.codes": np.zeros((2, 2))})
    assert layer.state_dict()["0.codes"].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(xbp.errors.InputError, match=r"'0\.codes' is missing"):
        layer.load_state_dict({})


def test_a_frozen_layer_keeps_its_weights_and_passes_the_gradient_on() -> None:
    def step(frozen: bool) -> tuple[nn.Sequential, Any]:
        model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Tanh(), nn.Linear(4, 2, rng=1))
        for parameter in model[2].parameters() if frozen else []:
            parameter.trainable = False
        optimizer = optim.SGD(model.parameters(), lr=1.0)
        y, backward = model.forward(np.ones((5, 3), np.float32), training=True)
        dx = backward(np.ones_like(y))
        optimizer.step()
        return model, dx

    (free, free_dx), (half, half_dx) = step(False), step(True)
    start = nn.Linear(4, 2, rng=1).state_dict()
    assert np.array_equal(half.state_dict()["2.weight"], start["weight"])
    assert half[2].weight.grad is None  # type: ignore[attr-defined]
    assert not np.array_equal(free.state_dict()["2.weight"], start["weight"])
    assert np.array_equal(half_dx, free_dx)
    assert np.array_equal(half.state_dict()["0.weight"], free.state_dict()["0.weight"])


def test_input_must_fit_a_constant_too() -> None:
    with pytest.raises(xbp.errors.InputError, match=r"float64 input.*astype"):
        nn.EuclideanRBF([[1, -1]])(np.zeros((1, 2)))


# --- PartialConv2d -------------------------------------------------------------------------------


def test_a_map_is_blind_to_what_it_is_not_connected_to() -> None:
    layer = nn.PartialConv2d([[1, 0, 1], [0, 1, 0]], 3, dtype="float64", rng=0)
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6))
    other = x.copy()
    other[:, 1] += 1
    assert np.array_equal(layer(x)[:, 0], layer(other)[:, 0])
    assert not np.any(layer(x)[:, 1] == layer(other)[:, 1])


def test_with_all_connections_it_is_conv2d() -> None:
    """And P is a matrix of 0 and 1 that copies: even the roundings are the same."""
    full = nn.PartialConv2d([[True] * 3] * 2, (2, 3), (2, 1), 1, dtype="float64", rng=0)
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
    assert nn.PartialConv2d(table, 1, rng=0).weight.shape == (3, 1, 1)


# --- the loss ------------------------------------------------------------------------------------


def test_rubbish_that_is_far_away_leaves_cross_entropy() -> None:
    z, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1])
    value, gradient = nn.RejectingCrossEntropyLoss(penalty=100.0)(z, labels)
    expected, its_gradient = nn.CrossEntropyLoss()(z, labels)
    # e^-100 is far below a rounding of the sum, whose order may differ.
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(gradient, its_gradient, rtol=1e-14, atol=1e-16)


def test_the_loss_pulls_a_penalty_down_although_it_is_the_least() -> None:
    penalties, labels = np.array([[9.0, 20.0]]), np.array([0])
    _, gradient = nn.RejectingCrossEntropyLoss(penalty=1.0)(-penalties, labels)
    assert gradient[0, 0] == pytest.approx(-1, abs=1e-3)  # 1 - p, with p = e^-8
    assert 0 < gradient[0, 1] < 1e-7  # those above j are let be
    _, gradient = nn.CrossEntropyLoss()(-penalties, labels)
    assert np.abs(gradient).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_the_loss_is_finite_at_large_penalties(dtype: str, scale: float) -> None:
    z = np.array([[scale, 0.9 * scale]], dtype)
    value, gradient = nn.RejectingCrossEntropyLoss()(z, np.array([1]))
    # -z + max(z, -1): from below, rubbish is what is likely; from above, the other class.
    assert value == pytest.approx(9_000 - 1 if scale < 0 else 1_000, rel=1e-6)
    np.testing.assert_allclose(gradient, [[0, -1]] if scale < 0 else [[1, -1]], atol=1e-6)


BAD = [
    (lambda: nn.PartialConv2d([[1, 0], [1]], 3), "table of booleans.*a row for each output map"),
    (lambda: nn.PartialConv2d([], 3), "table of booleans"),
    (lambda: nn.PartialConv2d([[]], 3), "map 0 without an input"),
    (lambda: nn.PartialConv2d(3, 3), "table of booleans.*got 3"),  # type: ignore[arg-type]
    (lambda: nn.PartialConv2d([[2, 1]], 3), "table of booleans"),  # type: ignore[list-item]
    (lambda: nn.PartialConv2d([[1, 1], [0, 0]], 3), "output map 1 without an input"),
    (lambda: nn.PartialConv2d([[1, 1]], 3)(np.zeros((1, 3, 5, 5), np.float32)), r"\(N, 2, H, W\)"),
    (lambda: nn.Subsample2d(0), "channels must be an integer of at least 1"),
    (lambda: nn.Subsample2d(2)(np.zeros((1, 3, 4, 4), np.float32)), r"\(N, 2, H, W\)"),
    (lambda: nn.EuclideanRBF([1, -1]), r"\(classes, features\), got \(2,\)"),
    (lambda: nn.EuclideanRBF([[1, -1]])(np.zeros((1, 3), np.float32)), r"\(…, 2\).*\(1, 3\)"),
    (lambda: nn.ScaledTanh(amplitude=float("nan")), "amplitude must be a finite number"),
    (lambda: nn.RejectingCrossEntropyLoss(penalty=float("inf")), "penalty must be a finite number"),
    (lambda: nn.RejectingCrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 2"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
