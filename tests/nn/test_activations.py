"""Activations: equality with PyTorch's, kinks, tails, and inputs of ±1e4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xbp import nn
from xbp.errors import InputError

Host = NDArray[Any]

# (ours, PyTorch's, by their constructors): PyTorch's Softplus replaces y by x beyond its threshold.
PAIRS: list[tuple[Any, Any]] = [
    (lambda: nn.ReLU(), lambda t: t.ReLU()),
    (lambda: nn.LeakyReLU(0.2), lambda t: t.LeakyReLU(0.2)),
    (lambda: nn.ELU(), lambda t: t.ELU()),
    (lambda: nn.ELU(0.3), lambda t: t.ELU(0.3)),
    (lambda: nn.SELU(), lambda t: t.SELU()),
    (lambda: nn.GELU(), lambda t: t.GELU()),
    (lambda: nn.GELU("tanh"), lambda t: t.GELU("tanh")),
    (lambda: nn.SiLU(), lambda t: t.SiLU()),
    (lambda: nn.Softplus(), lambda t: t.Softplus(threshold=100)),
    (lambda: nn.Softplus(2.5), lambda t: t.Softplus(2.5, threshold=100)),
    (lambda: nn.Sigmoid(), lambda t: t.Sigmoid()),
    (lambda: nn.Tanh(), lambda t: t.Tanh()),
    (lambda: nn.Softmax(), lambda t: t.Softmax(-1)),
    (lambda: nn.LogSoftmax(axis=0), lambda t: t.LogSoftmax(0)),
    (lambda: nn.PReLU(dtype="float64"), lambda t: t.PReLU().double()),
]
every_pair = pytest.mark.parametrize(
    ("ours", "theirs"), PAIRS, ids=[repr(ours()) for ours, _ in PAIRS]
)


def run(layer: nn.Layer, x: Host, dy: Host) -> tuple[Any, Any]:
    y, backward = layer.forward(x, training=True)
    return y, backward(dy)


def torch_run(layer: Any, x: Host, dy: Host) -> tuple[Host, Host]:
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(x, requires_grad=True)
    y = layer(leaf)
    y.backward(torch.tensor(dy))
    return y.detach().numpy(), leaf.grad.numpy()


@every_pair
def test_values_and_gradients_equal_pytorchs(ours: Any, theirs: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-30, 30, 601), rng.normal(size=599)]).reshape(30, 40)
    dy = rng.normal(size=x.shape)
    for mine, other in zip(run(ours(), x, dy), torch_run(theirs(torch.nn), x, dy), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


@every_pair
def test_values_and_slopes_at_zero_are_pytorchs(ours: Any, theirs: Any) -> None:
    """The kink of functions that have one. There are two zeros, as a softmax of one entry is 1."""
    torch = pytest.importorskip("torch")
    x, dy = np.array([0.0, -0.0]), np.array([1.0, 3.0])
    for mine, other in zip(run(ours(), x, dy), torch_run(theirs(torch.nn), x, dy), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("layer", "slope"),
    [
        (nn.ReLU(), 0.0),
        (nn.LeakyReLU(0.2), 0.2),
        (nn.PReLU(dtype="float64"), 0.25),
        (nn.ELU(0.3), 0.3),
        (nn.SELU(), 1.0507009873554805 * 1.6732632423543772),
    ],
    ids=repr,
)
def test_slopes_at_the_kink(layer: nn.Layer, slope: float) -> None:
    assert run(layer, np.zeros(1), np.ones(1)) == (0.0, slope)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [((7,), 1), ((4, 3), 1), ((4, 3), 3), ((1, 3, 5), 3), ((2, 3, 4, 5), 3), ((2, 3, 4, 5), 1)],
    ids=str,
)
def test_prelu_and_the_gradient_of_its_slopes_equal_pytorchs(
    shape: tuple[int, ...], parameters: int
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, dy, slopes = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=parameters)
    x[0, ...] = 0.0
    ours, theirs = nn.PReLU(parameters, dtype="float64"), torch.nn.PReLU(parameters).double()
    assert ours.state_dict()["weight"].tolist() == theirs.weight.tolist()
    ours.load_state_dict({"weight": slopes})
    theirs.load_state_dict({"weight": torch.tensor(slopes)})
    results = zip(run(ours, x, dy), torch_run(theirs, x, dy), strict=True)
    for mine, other in (*results, (ours.weight.grad, theirs.weight.grad.numpy())):
        assert mine is not None
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


# At x = ∓10⁴: y and y′. The constants are those of the docstrings.
FAR = [
    (nn.ReLU(), (0, 1e4), (0, 1)),
    (nn.LeakyReLU(0.2), (-2e3, 1e4), (0.2, 1)),
    (nn.PReLU(), (-2.5e3, 1e4), (0.25, 1)),
    (nn.ELU(0.3), (-0.3, 1e4), (0, 1)),
    (nn.SELU(), (-1.7580993408473766, 10507.009873554805), (0, 1.0507009873554805)),
    (nn.GELU(), (0, 1e4), (0, 1)),
    (nn.GELU("tanh"), (0, 1e4), (0, 1)),
    (nn.SiLU(), (0, 1e4), (0, 1)),
    (nn.Softplus(), (0, 1e4), (0, 1)),
    (nn.Softplus(3.0), (0, 1e4), (0, 1)),
    (nn.Sigmoid(), (0, 1), (0, 0)),
    (nn.Tanh(), (-1, 1), (0, 0)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("layer", "y", "slope"), FAR, ids=[repr(layer) for layer, _, _ in FAR])
def test_far_out_activations_are_their_asymptotes(
    layer: nn.Layer, y: tuple[float, float], slope: tuple[float, float], dtype: str
) -> None:
    x = np.array([-1e4, 1e4], dtype)
    found = run(layer.astype(dtype), x, np.ones_like(x))
    # e^-10⁴ is 0, so all but the rounding of a constant and of one product is exact.
    rtol = 2 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found, (y, slope), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_and_its_logarithm_far_out(dtype: str) -> None:
    x, dy = np.array([[-1e4, 1e4, 0.0]], dtype), np.array([[1.0, 0.0, 0.0]], dtype)
    y, dx = run(nn.Softmax(), x, dy)
    assert y.tolist() == [[0, 1, 0]] and dx.tolist() == [[0, 0, 0]]
    y, dx = run(nn.LogSoftmax(), x, dy)
    assert y.tolist() == [[-2e4, 0, -1e4]] and dx.tolist() == [[1, -1, 0]]


# --- tails: relative accuracy where y is small ----------------------------------------------------

TAIL = np.array([-0.5, -1.0, -2.0, -5.0, -8.0, -12.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_keeps_its_digits_far_below_zero(dtype: str) -> None:
    """½ x (1 + erf(x/√2)), as in PyTorch, is off by 4e-11 at -5 in float64, by 4 % in float32."""
    y, slope = run(nn.GELU(), TAIL.astype(dtype), np.ones(6, dtype))
    # Rounding x/√2 moves erfc by x² of its roundings; beside it, erfc's own error of 12 ulp.
    bound = (TAIL**2 + 12) * float(np.finfo(dtype).eps)
    for i, x in enumerate(TAIL.tolist()):
        gate, density = 0.5 * math.erfc(-x / math.sqrt(2)), math.exp(-x * x / 2)
        assert y[i] == pytest.approx(x * gate, rel=bound[i], abs=0)
        # The two terms of the slope have opposite signs: the bound is for the larger one.
        large = x * density / math.sqrt(2 * math.pi)
        assert slope[i] == pytest.approx(gate + large, rel=0, abs=bound[i] * abs(large))


def test_the_tanh_form_keeps_its_digits_far_below_zero() -> None:
    y, _ = run(nn.GELU("tanh"), TAIL, np.ones(6))
    for i, x in enumerate(TAIL.tolist()):
        twice_u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        # |2u| is at most 140 here, and its rounding errors of 2 ulp become relative ones of y.
        assert y[i] == pytest.approx(x / (1 + math.exp(-twice_u)), rel=7e-14, abs=0)


@pytest.mark.parametrize(
    ("layer", "values", "slopes"),
    [
        (nn.Softplus(), lambda x: math.exp(x), lambda x: math.exp(x)),
        (nn.SiLU(), lambda x: x * math.exp(x), lambda x: (1 + x) * math.exp(x)),
        (nn.Sigmoid(), lambda x: math.exp(x), lambda x: math.exp(x)),
    ],
    ids=["Softplus", "SiLU", "Sigmoid"],
)
def test_exponential_tails(layer: nn.Layer, values: Any, slopes: Any) -> None:
    """For x below -40 each is e^x, but for a relative e^-40."""
    x = np.array([-40.0, -100.0, -700.0])
    y, slope = run(layer, x, np.ones(3))
    # Two exponentials of 1 ulp each, a few products.
    np.testing.assert_allclose(y, [values(v) for v in x.tolist()], rtol=2e-15, atol=0)
    np.testing.assert_allclose(slope, [slopes(v) for v in x.tolist()], rtol=2e-15, atol=0)


def test_selus_constants_keep_a_standard_normal_standard() -> None:
    """Their definition: for z from N(0, 1), selu(z) has mean 0 and variance 1."""
    z = np.linspace(-12, 12, 240_001)
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    y = nn.SELU()(z)
    # The trapezoidal rule errs by h²/12 times the jump of the slope at the kink, 4e-10.
    assert np.sum(weight * y) == pytest.approx(0, abs=2e-9)
    assert np.sum(weight * y * y) == pytest.approx(1, abs=2e-9)


def test_expm1_keeps_elus_digits_near_zero() -> None:
    x = np.array([-1e-12])
    np.testing.assert_allclose(nn.ELU()(x), -1e-12, rtol=1e-12)  # e^x - 1 would keep 4 digits


BAD = [
    (lambda: nn.ScaledTanh(amplitude=float("nan")), "amplitude must be a finite number"),
    (lambda: nn.ELU("1"), "alpha must be a finite number, got '1'"),  # type: ignore[arg-type]
    (lambda: nn.ELU(float("inf")), "alpha.*inf"),
    (lambda: nn.Softplus(0), "beta must be a finite number above 0, got 0"),
    (lambda: nn.Softplus(-1.0), "beta.*above 0, got -1"),
    (lambda: nn.Softplus(float("nan")), "beta.*above 0, got nan"),
    (lambda: nn.Softplus(True), "beta.*above 0, got True"),
    (lambda: nn.GELU("erf"), "approximate must be one of 'none', 'tanh', got 'erf'"),
    (lambda: nn.GELU(True), "approximate.*got True"),  # type: ignore[arg-type]
    (lambda: nn.PReLU(0), "num_parameters.*at least 1, got 0"),
    (lambda: nn.PReLU(init=float("nan")), "init must be a finite number, got nan"),
    (lambda: nn.PReLU(3)(np.zeros((2, 4), np.float32)), r"\(N, 3, …\), got shape \(2, 4\)"),
    (lambda: nn.PReLU(3)(np.zeros(3, np.float32)), r"\(N, 3, …\), got shape \(3,\)"),
    (lambda: nn.PReLU()(np.zeros(3)), "float64 input.*float32.*astype"),
    (lambda: nn.LogSoftmax(axis=2)(np.zeros((2, 2))), "no axis 2"),
    (lambda: nn.LogSoftmax(axis=0.5), "axis must be an integer"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_gets_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_bases_say_what_to_define() -> None:
    class Empty(nn.Elementwise):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no formula"):
        Empty()(np.zeros(1))
