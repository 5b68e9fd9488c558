"""Layers of xbp as PyTorch modules, and PyTorch's modules as layers of xbp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import xbp  # noqa: E402
from xbp import nn, optim  # noqa: E402
from xbp.errors import BackendError, InputError  # noqa: E402
from xbp.interop.torch import as_layer, as_module  # noqa: E402
from xbp.testing import check_gradients, check_parity  # noqa: E402


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def double(*shape: int, seed: int = 0) -> Any:
    return torch.tensor(normal(*shape, seed=seed), requires_grad=True)


# --- a layer as a module -------------------------------------------------------------------------

LAYERS: list[tuple[Callable[[], Any], tuple[int, ...]]] = [
    (lambda: nn.Linear(4, 3, rng=0), (5, 4)),
    (lambda: nn.Conv2d(2, 3, 3, padding=1, rng=0), (2, 2, 5, 4)),
    (lambda: nn.MaxPool2d(2), (2, 2, 4, 6)),
    (lambda: nn.BatchNorm1d(4), (5, 4)),
    (lambda: nn.LSTM(4, 3, rng=0), (2, 3, 4)),
    (lambda: nn.MultiheadAttention(4, 2, rng=0), (2, 3, 4)),
    (lambda: nn.Sequential(nn.Linear(4, 3, rng=0), nn.Tanh(), nn.Linear(3, 2, rng=1)), (5, 4)),
    (lambda: nn.Identity(), (5, 4)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=lambda it: str(it)[:0] or None)
def test_torch_confirms_the_gradients_of_a_layer(make: Any, shape: tuple[int, ...]) -> None:
    module = as_module(make().astype("float64"))
    names = [name for name, _ in module.named_parameters()]

    def function(x: Any, *values: Any) -> Any:
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in zip(names, values, strict=True):
                own[name].copy_(value)
        return module(x)

    assert torch.autograd.gradcheck(module, (double(*shape),))
    x = double(*shape)
    y = module(x)
    dy = torch.ones_like(y)
    found = torch.autograd.grad(y, [x, *module.parameters()], dy)
    plain = make().astype("float64")
    y_plain, backward = plain.forward(normal(*shape), training=True)
    dx = backward(np.ones_like(y_plain))
    np.testing.assert_allclose(y.detach(), y_plain, rtol=1e-12)  # another order of the same sums
    for ours, theirs in zip([dx, *(p.grad for p in plain.parameters())], found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-12)  # the same, of larger sums


def test_a_module_trains_by_torch_as_by_xbp() -> None:
    x, t = normal(8, 4), normal(8, 2, seed=1)

    def model() -> Any:
        layers = nn.Linear(4, 6, rng=0), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2, rng=1)
        return nn.Sequential(*layers).astype("float64")

    module = as_module(model())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(torch.tensor(x)), torch.tensor(t)).backward()
        optimizer.step()
    ours = model()
    own = optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        y, backward = ours.forward(x, training=True)
        backward(nn.MSELoss()(y, t)[1])
        own.step()
        own.zero_grad()
    state = ours.state_dict()
    assert list(module.state_dict()) == list(state)
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(value, state[name], rtol=1e-9, atol=1e-12)  # five steps
    module.eval()
    y = module(torch.tensor(x))
    np.testing.assert_allclose(y.detach(), ours(x), rtol=1e-9, atol=1e-12)


def test_a_layer_stands_among_modules_and_is_used_twice() -> None:
    shared = as_module(nn.Linear(3, 3, dtype="float64", rng=0))
    model = torch.nn.Sequential(shared, torch.nn.Tanh(), shared)
    assert torch.autograd.gradcheck(model, (double(2, 3),))
    x = double(2, 3)
    shared.layer.weight.add_grad(torch.ones(3, 3, dtype=torch.float64))
    model(x).sum().backward()
    weight = shared.layer.weight.data.clone().requires_grad_()
    bias = shared.layer.bias.data.clone().requires_grad_()
    linear = torch.nn.functional.linear
    linear(torch.tanh(linear(x, weight, bias)), weight, bias).sum().backward()
    np.testing.assert_allclose(shared.weight.grad, weight.grad, rtol=1e-12)
    assert shared.layer.weight.grad.tolist() == [[1.0] * 3] * 3  # the layer's own is as it was
    assert shared.layer.bias.grad is None


def test_memory_is_shared_and_conversions_are_followed() -> None:
    module = as_module(nn.Sequential(nn.Linear(2, 2, rng=0), nn.BatchNorm1d(2)))
    with torch.no_grad():
        module.get_parameter("0.weight").fill_(2.0)
    assert module.layer[0].weight.data.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    module.double()
    y = module(torch.ones(3, 2, dtype=torch.float64))
    assert y.dtype == torch.float64
    y.sum().backward()
    assert module.get_parameter("0.weight").grad.dtype == torch.float64
    assert int(module.get_buffer("1.num_batches_tracked")) == 1
    assert module.layer[1].running_mean.data is module.get_buffer("1.running_mean")
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})
    assert module.layer[0].weight.data.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_training_and_evaluation() -> None:
    module = as_module(nn.Dropout(0.5), rng=0)
    x = torch.ones(1000)
    assert 300 < int((module(x) == 0).sum()) < 700
    assert module.eval()(x).tolist() == x.tolist()
    again = as_module(nn.Dropout(0.5), rng=0)
    assert torch.equal(again(x), as_module(nn.Dropout(0.5), rng=0)(x))
    assert not torch.equal(again(x), again(x))  # the stream goes on


def test_second_derivatives_are_refused() -> None:
    x = double(2, 3)
    (dx,) = torch.autograd.grad(as_module(nn.Tanh())(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        dx.sum().backward()


# --- a module as a layer -------------------------------------------------------------------------

MODULES: list[tuple[Callable[[], Any], tuple[int, ...]]] = [
    (lambda: torch.nn.Linear(4, 3), (5, 4)),
    (lambda: torch.nn.Conv3d(1, 2, 2), (2, 1, 3, 4, 3)),  # xbp has none
    (
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.GELU(), torch.nn.Linear(6, 2)
        ),
        (5, 4),
    ),
    (lambda: torch.nn.Dropout(0.5), (5, 4)),
    (lambda: torch.nn.Hardswish(), (3, 4)),
    (lambda: torch.nn.Bilinear(4, 3, 2), ((5, 4), (5, 3))),  # type: ignore[list-item]
]


def seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return as_layer(make())


def inputs(shape: Any) -> Any:
    if isinstance(shape[0], tuple):
        return tuple(normal(*each, seed=k) for k, each in enumerate(shape))
    return normal(*shape)


@pytest.mark.parametrize(("make", "shape"), MODULES)
def test_a_module_is_a_layer_with_right_gradients(make: Any, shape: Any) -> None:
    check_gradients(seeded(make), inputs(shape))


@pytest.mark.parametrize(("make", "shape"), MODULES)
def test_numpy_and_torch_agree_on_a_module(make: Any, shape: Any) -> None:
    """The roundings of torch's code cannot be observed, so that some are allowed: 1e-5 and 1e-13
    are about a hundred of float32 and of float64, also where terms of size 1 cancel to 0, as in the
    gradient of a bias before batch normalization."""
    for dtype, rtol in (("float32", 1e-5), ("float64", 1e-13)):
        given = inputs(shape)
        parts = given if isinstance(given, tuple) else (given,)
        check_parity(
            lambda: seeded(make),
            *parts,
            backends=["numpy", "torch"],
            dtypes=[dtype],
            rtol=rtol,
            atol=rtol,
        )


def test_a_layer_trains_by_xbp_as_the_module_by_torch() -> None:
    def module() -> Any:
        torch.manual_seed(1)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)
        ).double()

    x, t = normal(8, 4), normal(8, 2, seed=1)
    theirs = module()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    layer = as_layer(theirs)
    model = nn.Sequential(layer, nn.Identity())
    own = optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    for _ in range(5):
        y, backward = model.forward(x, training=True)
        backward(nn.MSELoss()(y, t)[1])
        own.step()
        own.zero_grad()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the module itself has changed"
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(theirs(torch.tensor(x)), torch.tensor(t)).backward()
        optimizer.step()
    for name, value in layer.state_dict().items():
        np.testing.assert_allclose(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer(x), theirs.eval()(torch.tensor(x)).detach(), rtol=1e-9)


def test_tokens_go_in_and_have_no_gradient() -> None:
    layer = as_layer(torch.nn.Embedding(5, 3))
    tokens = np.array([[0, 4], [1, 1]])
    y, backward = layer.forward(tokens)
    assert y.shape == (2, 2, 3)
    assert backward(np.ones_like(y)) is None
    assert layer.weight.grad.sum(axis=1).tolist() == [3, 6, 0, 0, 3]


def test_a_trainer_trains_a_module_inside_a_network() -> None:
    x, y = normal(64, 2), (normal(64, 2).sum(axis=1) > 0).astype(int)
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU())
    model = nn.Sequential(as_layer(inner), nn.Linear(8, 2, rng=0))
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), 0.05), rng=0)
    history = trainer.fit(x, y, epochs=10, batch_size=16, verbose=False)
    assert history["loss"][-1] < 0.2 < 0.5 < history["loss"][0] + 0.3


def test_two_modules_draw_different_masks() -> None:
    model = nn.Sequential(as_layer(torch.nn.Dropout(0.5)), as_layer(torch.nn.Dropout(0.5)))
    x = np.ones(4000, np.float32)
    y, backward = model.forward(x, training=True, rng=0)
    assert 0.2 < np.mean(y > 0) < 0.3  # a quarter, ± 7 standard deviations
    assert np.array_equal(backward(x), y)
    assert np.array_equal(model.forward(x, training=True, rng=0)[0], y)


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    layer = as_layer(torch.nn.Linear(2, 1))
    y, backward = layer.forward(np.ones((1, 2), np.float32))
    layer.weight.data -= 1
    with pytest.raises(InputError, match="was changed between a forward and its backward"):
        backward(np.ones_like(y))


def test_frozen_parameters_stay_frozen() -> None:
    module = torch.nn.Linear(2, 1)
    module.weight.requires_grad_(False)
    layer = as_layer(module)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    y, backward = layer.forward(np.ones((1, 2), np.float32))
    assert backward(np.ones_like(y)).shape == (1, 2)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: as_module(torch.nn.Linear(2, 1)), "as_module takes a layer of xbp"),
        (lambda: as_module(nn.ReLU), "got the class ReLU"),
        (lambda: nn.Sequential(torch.nn.Linear(2, 1)), r"as_layer\(…\)$"),
        (lambda: as_layer(nn.ReLU()), "as_layer takes a torch.nn.Module; got ReLU"),
        (lambda: as_layer(torch.nn.LSTM(2, 3))(normal(1, 2, 2).astype("float32")), "one output"),
        (lambda: as_layer(torch.nn.Linear(2, 1))(normal(3, 2)), "float64 input"),
    ],
)
def test_mistakes_end_in_a_sentence(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_arrays_that_share_no_memory_with_torch_are_refused() -> None:
    strict = pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        layer = as_layer(torch.nn.Linear(2, 1))
        with pytest.raises(BackendError, match="arrays of numpy, CuPy and PyTorch"):
            layer(strict.ones((1, 2), dtype=strict.float32, device=strict.Device("device1")))
