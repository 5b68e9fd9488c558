"""The loss of the network of 1998: cross-entropy with an additional class of constant logit."""

from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.models.lenet1998 import RejectingCrossEntropyLoss


def test_it_is_cross_entropy_with_a_constant_logit_beside() -> None:
    z, t = np.random.default_rng(0).normal(size=(5, 4)), np.array([0, 2, 3, 1, 1])
    beside = np.concatenate([z, np.full((5, 1), -0.25)], axis=1)
    for target in (t, np.eye(4)[t], np.random.default_rng(1).dirichlet(np.ones(4), 5)):
        value, gradient = RejectingCrossEntropyLoss(penalty=0.25)(z, target)
        of_five = target if target.ndim == 1 else np.pad(target, ((0, 0), (0, 1)))
        expected, its_gradient = nn.CrossEntropyLoss()(beside, of_five)
        # The same sums, in another order in compiled code.
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        np.testing.assert_allclose(gradient, its_gradient[:, :4], rtol=1e-13, atol=1e-16)


def test_rubbish_that_is_far_away_leaves_cross_entropy() -> None:
    z, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1])
    value, gradient = RejectingCrossEntropyLoss(penalty=100.0)(z, labels)
    expected, its_gradient = nn.CrossEntropyLoss()(z, labels)
    # e^-100 is far below a rounding of the sum, whose order may differ.
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(gradient, its_gradient, rtol=1e-14, atol=1e-16)


def test_the_loss_pulls_a_penalty_down_although_it_is_the_least() -> None:
    penalties, labels = np.array([[9.0, 20.0]]), np.array([0])
    _, gradient = RejectingCrossEntropyLoss(penalty=1.0)(-penalties, labels)
    assert gradient[0, 0] == pytest.approx(-1, abs=1e-3)  # 1 - p, with p = e^-8
    assert 0 < gradient[0, 1] < 1e-7  # outputs above j are not penalized
    _, gradient = nn.CrossEntropyLoss()(-penalties, labels)
    assert np.abs(gradient).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_the_loss_is_finite_at_large_penalties(dtype: str, scale: float) -> None:
    z = np.array([[scale, 0.9 * scale]], dtype)
    value, gradient = RejectingCrossEntropyLoss()(z, np.array([1]))
    # -z + max(z, -1): below, the additional class is likely; above, the other class.
    assert value == pytest.approx(9_000 - 1 if scale < 0 else 1_000, rel=1e-6)
    np.testing.assert_allclose(gradient, [[0, -1]] if scale < 0 else [[1, -1]], atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")  # 0 · ∞, which is left out
def test_a_class_that_cannot_be_costs_nothing_where_it_is_not_the_target() -> None:
    z = np.array([[0.0, -np.inf, 1.0]])
    others = 1 + np.exp(1) + np.exp(0.5)
    for target in (np.array([[1.0, 0.0, 0.0]]), np.array([0])):
        value, gradient = RejectingCrossEntropyLoss(penalty=-0.5)(z, target)
        np.testing.assert_allclose(value, np.log(others), rtol=1e-14)
        expected = np.array([[1 / others - 1, 0, np.exp(1) / others]])
        np.testing.assert_allclose(gradient, expected, rtol=1e-14)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_on_a_device_makes_the_loss_nan(label: int) -> None:
    """The probability of the additional class, which is class 2 here."""
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        z, target = xbp.asarray([[0.0, 1.0]]), xbp.asarray([label])
        value, _ = RejectingCrossEntropyLoss()(z, target)
    assert np.isnan(xbp.to_numpy(value))


BAD = [
    (lambda: RejectingCrossEntropyLoss(penalty=float("inf")), "penalty must be a finite number"),
    (lambda: RejectingCrossEntropyLoss()(np.zeros((2, 3)), np.array([0, 3])), "from 0 to 2"),
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(xbp.errors.InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
