"""Results of layers, losses and primitives for infinities and nan, which are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xbp import accelerators, nn
from xbp.primitives import cross_entropy, max_pool, rectify

Real = NDArray[Any]
ENDS = np.array([np.inf, -np.inf, np.nan, 0.0, 1.0, -1.0, 1e30, -1e30, 200.0, -200.0])
ROWS = np.array(
    [
        *([0, -np.inf, 1], [-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, 1]),
        *([np.inf, np.inf, 0], [np.inf, -np.inf, 0], [0, 1, np.nan]),
    ]
)


@pytest.fixture(params=["accelerators", "references"], autouse=True)
def way(request: pytest.FixtureRequest) -> Any:
    blocks: dict[str, AbstractContextManager[Any]]
    blocks = {"accelerators": nullcontext(), "references": accelerators.disabled()}
    with blocks[request.param], np.errstate(all="ignore"):
        yield


def of_torch(function: Callable[..., Any], x: Real, dy: float = 1.0) -> tuple[Real, Real]:
    torch = pytest.importorskip("torch")
    given = torch.tensor(x, requires_grad=True)
    y = function(given)
    y.backward(torch.full_like(y, dy))
    return y.detach().numpy(), given.grad.numpy()


def same(found: tuple[Any, Any], expected: tuple[Real, Real]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)  # of exp; nan equals nan


ACTIVATIONS: dict[str, tuple[nn.Layer, Callable[[Any, Any], Any]]] = {
    "ReLU": (nn.ReLU(), lambda f, x: f.relu(x)),
    "LeakyReLU": (nn.LeakyReLU(), lambda f, x: f.leaky_relu(x)),
    "ELU": (nn.ELU(), lambda f, x: f.elu(x)),
    "SELU": (nn.SELU(), lambda f, x: f.selu(x)),
    "Sigmoid": (nn.Sigmoid(), lambda f, x: x.sigmoid()),
    "Tanh": (nn.Tanh(), lambda f, x: x.tanh()),
    "Softplus": (nn.Softplus(), lambda f, x: f.softplus(x)),
    "SiLU": (nn.SiLU(), lambda f, x: f.silu(x)),
    "GELU": (nn.GELU(), lambda f, x: f.gelu(x)),
    "GELU of tanh": (nn.GELU("tanh"), lambda f, x: f.gelu(x, approximate="tanh")),
}


@pytest.mark.parametrize("dy", [1.0, np.inf])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dy: float) -> None:
    torch = pytest.importorskip("torch")
    layer, peer = ACTIVATIONS[name]
    y, backward = layer.forward(ENDS)
    same(
        (y, backward(np.full_like(y, dy))),
        of_torch(lambda x: peer(torch.nn.functional, x), ENDS, dy),
    )


@pytest.mark.parametrize("layer", [nn.Softmax(), nn.LogSoftmax()], ids=repr)
def test_softmax(layer: nn.Layer) -> None:
    y, backward = layer.forward(ROWS)
    log = isinstance(layer, nn.LogSoftmax)
    same(
        (y, backward(np.ones_like(y))),
        of_torch(lambda x: x.log_softmax(-1) if log else x.softmax(-1), ROWS),
    )


@pytest.mark.parametrize("layer", [nn.Softmax(), nn.LogSoftmax()], ids=repr)
def test_softmax_of_an_empty_axis(layer: nn.Layer) -> None:
    y, backward = layer.forward(np.ones((3, 0)))
    assert y.shape == backward(y).shape == (3, 0)


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_cross_entropy_of_labels(row: Real, label: int) -> None:
    torch = pytest.importorskip("torch")
    z, labels = row[None], np.array([label])
    peer = torch.nn.functional.cross_entropy
    same(nn.CrossEntropyLoss()(z, labels), of_torch(lambda x: peer(x, torch.tensor(labels)), z))


def test_a_class_that_cannot_be_costs_nothing_where_it_is_not_the_target() -> None:
    """PyTorch gives nan for probabilities, by 0 · ∞; in xbp labels and probabilities agree."""
    z, t = np.array([[0.0, -np.inf, 1.0]]), np.array([[1.0, 0.0, 0.0]])
    others = 1 + np.exp(1)
    for target in (t, np.array([0])):
        value, gradient = cross_entropy(z, target, 1.0)
        np.testing.assert_allclose(value, np.log(others), rtol=1e-14)
        expected = np.array([[1 / others - 1, 0, np.exp(1) / others]])
        np.testing.assert_allclose(gradient, expected, rtol=1e-14)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("prediction", [np.inf, -np.inf, np.nan, 1e300])
@pytest.mark.parametrize(
    ("loss", "peer"),
    [
        (nn.MSELoss(), "mse_loss"),
        (nn.HuberLoss(), "huber_loss"),
        (nn.BCEWithLogitsLoss(), "binary_cross_entropy_with_logits"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_entrywise_losses(loss: nn.Loss, peer: str, prediction: float, target: float) -> None:
    torch = pytest.importorskip("torch")
    if peer.startswith("binary") and (prediction, target) == (-np.inf, 1.0):
        return  # ∞, where PyTorch has nan
    y, t = np.array([prediction]), np.array([target])
    function = getattr(torch.nn.functional, peer)
    same(loss(y, t), of_torch(lambda x: function(x, torch.tensor(t)), y))


@pytest.mark.parametrize("share", [0.0, 0.05], ids=["infinities", "nan, too"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 1), (2, 1, 0)])
def test_maximum_pooling(window: tuple[int, int, int], share: float) -> None:
    """Windows of -∞ alone: the gradient stays in the image."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    chances = [0.1, 0.6 - share, share, 0.15, 0.15]
    x = rng.choice([np.inf, -np.inf, np.nan, 1.0, 2.0], (35, 2, 5, 5), p=chances)
    k, s, p = window
    y, backward = max_pool(x, kernel_size=(k, k), stride=(s, s), padding=(p, p))
    peer = torch.nn.functional.max_pool2d
    same((y, *backward(np.ones_like(y))), of_torch(lambda x: peer(x, k, s, p), x))


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_rectifier_passes_nothing_on_where_it_is_0(size: int) -> None:
    x = np.resize(np.array([-1.0, 0.0, 2.0, -np.inf]), size)
    _, backward = rectify(x)
    (dx,) = backward(np.resize(np.array([np.inf, np.nan, np.inf, np.inf]), size))
    np.testing.assert_array_equal(dx, np.where(x > 0, np.inf, 0))


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_gradient_of_a_rectifier_has_its_dtype(size: int) -> None:
    x = np.ones(size, "float32")
    assert rectify(x)[1](np.ones(size))[0].dtype == "float32"
