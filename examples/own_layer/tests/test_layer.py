"""The proof of a layer: its values, its gradients, every backend, and a training."""

import math

import numpy as np
import pytest
from gated import GatedLinear

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.testing import check_gradients, check_parity

X = np.random.default_rng(0).normal(size=(5, 3))


def test_every_gradient_is_the_numeric_one():
    check_gradients(GatedLinear(3, 2, rng=0), X)


def test_it_agrees_with_numpy(backend):
    check_parity(lambda: GatedLinear(3, 2, rng=0), X, backends=[backend.name])


def test_the_output_is_the_formula_in_plain_python(backend):
    layer = GatedLinear(3, 2, dtype="float64", rng=0)
    W, b = layer.state_dict().values()
    y = xbp.to_numpy(layer(backend.asarray(X)))
    for n, x in enumerate(X):
        z = [math.fsum(w * v for w, v in zip(row, x, strict=True)) for row in W] + b
        expected = [z[i] / (1 + math.exp(-z[i + 2])) for i in range(2)]
        np.testing.assert_allclose(y[n], expected, rtol=1e-13)  # some ten roundings of 1e-16


def test_a_gate_far_from_zero_is_open_or_shut_without_overflow(backend, xp):
    layer = GatedLinear(1, 1, rng=0)
    layer.load_state_dict({"weight": [[1.0], [1e4]], "bias": [0.0, 0.0]})
    y = layer(backend.asarray([[2.0], [-2.0]], dtype="float32"))
    assert bool(xp.all(y == backend.asarray([[2.0], [0.0]], dtype="float32")))


def test_it_learns_a_product_which_no_linear_layer_can(backend):
    x = np.random.default_rng(1).uniform(-1, 1, size=(64, 2)).astype("float32")
    x, t = backend.asarray(x), backend.asarray(x[:, :1] * x[:, 1:])  # of mean square 1/9
    model = nn.Sequential(GatedLinear(2, 8, rng=0), nn.Linear(8, 1, rng=1))
    loss, optimizer = nn.MSELoss(), optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        y, backward = model.forward(x, training=True)
        value, gradient = loss(y, t)
        backward(gradient)
        optimizer.step()
        optimizer.zero_grad()
    assert float(xbp.to_numpy(value)) < 0.01


def test_input_that_does_not_fit_is_refused(backend):
    with pytest.raises(InputError, match=r"^GatedLinear\(3, 2\) expects input \(N, 3\), got shape"):
        GatedLinear(3, 2)(backend.asarray(X[:, :2], dtype="float32"))
