"""The proof of a loss: its gradient, every backend, and its minimum at a quantile."""

import numpy as np
import pytest
from gated import QuantileLoss

import xbp
from xbp.errors import InputError
from xbp.testing import check_gradients, check_parity

Y, T = np.random.default_rng(0).normal(size=(2, 5, 3))


def test_the_gradient_is_the_numeric_one():
    check_gradients(QuantileLoss(0.9), Y, T)


def test_it_agrees_with_numpy(backend):
    check_parity(lambda: QuantileLoss(0.9), Y, T, backends=[backend.name])


def test_the_best_constant_is_the_quantile(backend):
    loss, targets = QuantileLoss(0.75), backend.asarray(np.arange(10.0))
    values = [loss(backend.asarray(np.full(10, float(c))), targets)[0] for c in range(10)]
    assert np.argmin([xbp.to_numpy(value) for value in values]) == 7  # 7 targets lie below, 2 above


@pytest.mark.parametrize("q", [0, 1, -0.5])
def test_a_quantile_lies_between_0_and_1(q):
    with pytest.raises(InputError, match="q must be between 0 and 1"):
        QuantileLoss(q)
