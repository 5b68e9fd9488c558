"""Mistakes of tutorials on backpropagation, in formulas or code, which xbp does not make.

Each test states the mistake, shows that it changes a result, and that xbp's result is the right
one. Mistakes about optimizers are in tests/optim.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn


def numeric(function: Any, at: float, h: float = 1e-6) -> float:
    return float(function(np.array([at + h]))[0] - function(np.array([at - h]))[0]) / (2 * h)


def test_the_gradient_of_the_absolute_error_has_a_sign() -> None:
    """Mistake: |y - t| / N as the gradient of the mean of |y - t|: never negative, and not 1/N."""
    y, t = np.array([0.0, 5.0, 1.0, 1.0]), np.array([3.0, 3.0, 1.0, 0.5])
    value, gradient = nn.L1Loss()(y, t)
    assert gradient.tolist() == [-0.25, 0.25, 0.0, 0.25]
    mistaken = np.abs(y - t) / 4
    assert nn.L1Loss()(y - 0.1 * gradient, t)[0] < value
    assert nn.L1Loss()(y[:1] - 0.1 * mistaken[:1], t[:1])[0] > 3.0  # ascends where y is too small


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_does_not_overflow(dtype: str) -> None:
    """Mistake: exp(x) / Σ exp(x) as it is written, whose exponentials are infinite from x = 710."""
    x = np.array([[1000.0, 1000.0 + math.log(3), -1e4]], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isnan(np.exp(x) / np.exp(x).sum()).any()
    y, backward = nn.Softmax().forward(x)
    # log 3 + 1000 is rounded to 1000 ε/2
    np.testing.assert_allclose(y, [[0.25, 0.75, 0]], rtol=1000 * float(np.finfo(dtype).eps))
    assert np.isfinite(backward(np.ones_like(x))).all()
    value, gradient = nn.CrossEntropyLoss()(x, np.array([2]))
    assert value == pytest.approx(11_000 + math.log(4), rel=2 * float(np.finfo(dtype).eps))
    np.testing.assert_allclose(gradient, y - [[0, 0, 1]], rtol=0, atol=1e-6)


def test_the_derivative_of_the_sigmoid_is_taken_at_the_pre_activation() -> None:
    """Mistake: σ′ = s (1 - s), true of the output s = σ(z), with z in its place, or σ(s)."""
    z = 2.0
    s = 1 / (1 + math.exp(-z))
    slope = nn.Sigmoid().forward(np.array([z]))[1](np.ones(1))[0]
    assert slope == pytest.approx(s * (1 - s), rel=1e-15)
    assert slope == pytest.approx(
        numeric(nn.Sigmoid(), z), rel=1e-9
    )  # h²/6 and ε/h, relative to s′
    of_z, of_s = z * (1 - z), float(nn.Sigmoid().forward(np.array([s]))[1](np.ones(1))[0])
    assert abs(slope - of_z) > 2 and abs(slope - of_s) > 0.09


def test_what_dropout_drops_gets_no_gradient() -> None:
    """Mistake: a mask in the forward pass alone, the gradient going through as if all were kept."""
    x = np.random.default_rng(0).normal(size=(50, 8))
    y, backward = nn.Dropout(0.5).forward(x, training=True, rng=0)
    mask = y / x
    assert set(mask.ravel().tolist()) == {0.0, 2.0}
    dy = np.random.default_rng(1).normal(size=x.shape)
    np.testing.assert_array_equal(backward(dy), mask * dy)


def test_a_dropped_unit_teaches_its_weights_nothing() -> None:
    """In a network, the gradient of a unit's weights comes only from samples that kept the unit."""
    into = nn.Linear(3, 4, dtype="float64", rng=0)
    model = nn.Sequential(into, nn.Dropout(0.5), nn.Linear(4, 1, dtype="float64", rng=1))
    x = np.ones((1, 3))
    y, backward = model.forward(x, training=True, rng=3)
    backward(np.ones_like(y))
    kept = nn.Sequential(nn.Dropout(0.5)).forward(into(x), training=True, rng=3)[0][0] != 0
    assert 0 < kept.sum() < 4
    assert into.bias is not None and into.bias.grad is not None
    assert ((into.bias.grad != 0) == kept).all()


def test_the_rate_of_dropout_is_that_of_dropping() -> None:
    """Mistake: a layer called dropout whose 0.8 is the share that is kept; here that is p = 0.2."""
    y, _ = nn.Dropout(0.2).forward(np.ones(10_000), training=True, rng=0)
    kept = y != 0
    # σ of the share is √(0.2·0.8/n) = 0.004; 5 σ.
    assert abs(kept.mean() - 0.8) < 0.02
    assert set(y[kept].tolist()) == {1 / (1 - 0.2)}  # keeps the expectation
    assert np.array_equal(nn.Dropout(0.2)(np.ones(5)), np.ones(5))  # inference changes nothing


def test_an_epoch_sees_every_sample_once() -> None:
    """Mistake: batches drawn with replacement, so that an epoch misses a share of 1/e."""

    class Witness(nn.Linear):
        def __init__(self) -> None:
            super().__init__(1, 1, rng=0)
            self.seen: list[float] = []

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            if training:
                self.seen += x[:, 0].tolist()
            return super().forward(x)

    model, x = Witness(), np.arange(50, dtype=np.float32)[:, None]
    optimizer = xbp.optim.SGD(model.parameters(), lr=0.0)
    trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0)
    for _ in range(3):
        trainer.fit(x, x, batch_size=8)
        assert sorted(model.seen) == x[:, 0].tolist() != model.seen
        model.seen.clear()
