"""Derivatives for the input, of each sample, Jacobians, and products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.derivatives import (
    hessian_vector,
    input_gradient,
    jacobian,
    jacobian_columns,
    jacobian_vector,
    per_sample_gradients,
)
from xbp.errors import InputError

BACKENDS = ["numpy", "array_api_strict", "torch"]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3, rng=0), (5, 4)),
    "linear, time": (lambda: nn.Sequential(nn.Linear(4, 3, rng=0), nn.Flatten()), (5, 2, 4)),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 6, rng=0), nn.Tanh(), nn.Linear(6, 3, rng=1)),
        (5, 4),
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2, rng=0),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(4, 4, (2, 3), dilation=(2, 1), groups=2, rng=1), nn.Flatten()),
            nn.Linear(16, 3, bias=False, rng=2),
        ),
        (5, 2, 7, 8),
    ),
    "others": (
        lambda: nn.Sequential(nn.LSTM(4, 3, rng=0), nn.LastTimeStep(), nn.BatchNorm1d(3)),
        (5, 2, 4),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss("sum")])
def test_each_sample_has_the_gradient_of_a_batch_of_its_own(
    name: str, loss: Any, backend: str
) -> None:
    pytest.importorskip(backend)
    make, shape = MODELS[name]
    with xbp.use_backend(backend):
        model = make().astype("float64")
        x = xbp.asarray(normal(*shape))
        outputs = model(x).shape[1]
        y = xbp.asarray(np.arange(5) % outputs)
        found = per_sample_gradients(model, loss, x, y)
        assert list(found) == [name for name, _ in model.named_parameters()]
        for n in range(5):
            logits, backward = model.forward(x[n : n + 1, ...])
            backward(loss(logits, y[n : n + 1])[1])
            for key, parameter in model.named_parameters():
                alone = xbp.to_numpy(parameter.grad)
                np.testing.assert_allclose(
                    xbp.to_numpy(found[key])[n, ...], alone, rtol=1e-9, atol=1e-12
                )  # the same sums, in another order
                parameter.zero_grad()


def test_gradients_of_samples_take_one_backward_of_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 3, rng=0), nn.Tanh(), nn.Linear(3, 2, rng=1))
    calls = []

    class Counted(nn.Tanh):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            y, backward = super().forward(x, training=training, rng=rng)

            def counted(dy: Any) -> Any:
                calls.append(dy.shape)
                return backward(dy)

            return y, counted

    model = nn.Sequential(model[0], Counted(), model[2])
    x = normal(50, 4).astype("float32")
    per_sample_gradients(model, nn.MSELoss(), x, np.zeros((50, 2), "float32"))
    assert calls == [(50, 3)]


def test_a_shared_layer_sums_its_uses_and_frozen_ones_are_left_out() -> None:
    shared = nn.Linear(3, 3, dtype="float64", rng=0)
    model, x, t = nn.Sequential(shared, nn.Tanh(), shared), normal(4, 3), normal(4, 3, seed=1)
    shared.bias.trainable = False
    found = per_sample_gradients(model, nn.MSELoss("sum"), x, t)
    assert list(found) == ["0.weight"]
    y, backward = model.forward(x)
    backward(nn.MSELoss("sum")(y, t)[1])
    np.testing.assert_allclose(found["0.weight"].sum(axis=0), shared.weight.grad, rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jacobian_is_that_of_the_formula(backend: str) -> None:
    pytest.importorskip(backend)
    with xbp.use_backend(backend):
        x = xbp.asarray(normal(2, 3))
        y = nn.Softmax()(x)
        found = xbp.to_numpy(jacobian(nn.Softmax(), x))
        by_sample = xbp.to_numpy(jacobian(nn.Softmax(), x, by_sample=True))
    p = xbp.to_numpy(y)
    for n in range(2):
        formula = np.diag(p[n]) - np.outer(p[n], p[n])
        np.testing.assert_allclose(found[n, :, n, :], formula, rtol=0, atol=1e-15)  # of sums near 1
        np.testing.assert_allclose(by_sample[n], formula, rtol=0, atol=1e-15)
    assert not found[0, :, 1, :].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by_sample", [False, True])
def test_columns_are_those_of_the_rows_within_the_stated_error(
    backend: str, by_sample: bool
) -> None:
    pytest.importorskip(backend)
    make, shape = MODELS["others"]
    with xbp.use_backend(backend):
        model, x = make().astype("float64"), xbp.asarray(normal(*shape))
        rows = xbp.to_numpy(jacobian(model, x, by_sample=by_sample))
        columns, error = jacobian_columns(model, x, by_sample=by_sample)
        assert 0 < error < 1e-9
        columns = xbp.to_numpy(columns)
        assert columns.shape == rows.shape
        # Of truncation, of two step sizes, and of rounding, for which the estimate has no bound.
        np.testing.assert_allclose(columns, rows, rtol=0, atol=2 * error + 1e-12)
        v = normal(*shape, seed=1)
        along, error = jacobian_vector(model, x, xbp.asarray(v))
        rows = xbp.to_numpy(jacobian(model, x)).reshape(*along.shape, -1)
        exact = rows @ v.ravel()
        np.testing.assert_allclose(xbp.to_numpy(along), exact, rtol=0, atol=2 * error + 1e-12)


def test_along_a_direction_the_layer_stays_as_it_is_and_a_kink_shows() -> None:
    layer, x = nn.Linear(3, 2, rng=0), np.ones((1, 3), np.float32)
    product, _ = jacobian_vector(layer, x, np.asarray([[1.0, 0.0, 0.0]]))
    assert layer.weight.data.dtype == "float32" and product.dtype == "float64"
    np.testing.assert_allclose(product[0], layer.weight.data[:, 0], rtol=1e-9)
    _, error = jacobian_vector(nn.ReLU(), np.asarray([1e-4, 1.0]), np.asarray([1.0, 1.0]))
    assert error > 0.01


@pytest.mark.parametrize(
    ("v", "said"),
    [
        (np.ones(2), r"v needs the shape of x, \(3,\)"),
        (np.zeros(3), "v must be finite, and not 0"),
        (np.asarray([0, np.nan, 0]), "v must be finite"),
    ],
)
def test_a_direction_of_the_input_that_does_not_fit_is_refused(v: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        jacobian_vector(nn.Tanh(), np.ones(3), v)


def test_a_linear_layers_jacobian_is_its_weight() -> None:
    layer = nn.Linear(3, 2, dtype="float64", rng=0)
    found = jacobian(layer, normal(4, 3), by_sample=True)
    assert all(np.array_equal(each, layer.weight.data) for each in found)
    assert layer.weight.grad is None


def test_the_gradient_for_the_input_leaves_those_of_parameters() -> None:
    model, loss = nn.Linear(3, 2, dtype="float64", rng=0), nn.MSELoss("sum", factor=0.5)
    x, t = normal(4, 3), normal(4, 2, seed=1)
    model.weight.add_grad(np.ones((2, 3)))
    value, gradient = input_gradient(model, loss, x, t)
    difference = model(x) - t
    assert value == pytest.approx(0.5 * np.sum(difference**2), rel=1e-12)
    np.testing.assert_allclose(gradient, difference @ model.weight.data, rtol=1e-12)
    assert model.weight.grad.tolist() == np.ones((2, 3)).tolist()
    assert model.bias.grad is None


def test_a_product_with_the_hessian_is_torchs_within_the_stated_error() -> None:
    torch = pytest.importorskip("torch")
    make, shape = MODELS["mlp"]
    model, x, y = make(), normal(*shape), np.arange(5) % 3
    v = {name: normal(*p.shape, seed=7) for name, p in model.named_parameters()}
    product, error = hessian_vector(model, nn.CrossEntropyLoss(), x, y, v)
    values = [torch.tensor(p.data, dtype=torch.float64) for p in model.parameters()]

    def loss(w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        logits = torch.tanh(torch.tensor(x) @ w1.T + b1) @ w2.T + b2
        return torch.nn.functional.cross_entropy(logits, torch.tensor(y))

    directions = tuple(torch.tensor(array) for array in v.values())
    _, right = torch.autograd.functional.hvp(loss, tuple(values), directions)
    off = max(
        float(np.max(np.abs(mine - theirs.numpy())))
        for mine, theirs in zip(product.values(), right, strict=True)
    )
    assert off <= error < 1e-9
    assert model.parameters()[0].data.dtype == np.float32
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_kink_shows_in_the_stated_error() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype="float64", rng=0), nn.ReLU())
    model[0].weight.data[...] = 1e-4
    loss, one = nn.MSELoss(), np.ones((1, 1))
    _, error = hessian_vector(model, loss, one, one, {"0.weight": one})
    assert error > 1


@pytest.mark.parametrize(
    ("v", "said"),
    [({"weight": np.ones((2, 2))}, "v needs an array for each"), ({}, "v needs an array for each")],
)
def test_a_direction_that_does_not_fit_is_refused(v: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        hessian_vector(nn.Linear(1, 1), nn.MSELoss(), np.ones((1, 1)), np.ones((1, 1)), v)
    zero = {"weight": np.zeros((1, 1)), "bias": np.zeros(1)}
    with pytest.raises(InputError, match="not 0"):
        hessian_vector(nn.Linear(1, 1), nn.MSELoss(), np.ones((1, 1)), np.ones((1, 1)), zero)
    with pytest.raises(InputError, match="a target a sample"):
        per_sample_gradients(nn.Linear(1, 1), nn.MSELoss(), np.ones((2, 1)), np.ones((3, 1)))
