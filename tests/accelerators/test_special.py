"""Compiled activations: errors in units in the last place, at each level of the instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from guards import Guards
from numpy.typing import NDArray

from xbp import primitives
from xbp.accelerators.cpu import native, special
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("level"),
]

Real = NDArray[Any]

OPERATIONS: dict[str, Callable[[Real], Any]] = {
    "logistic": special.logistic,
    "tanh": special.tanh,
    "silu": special.silu,
    "gelu": special.gelu,
    "gelu_tanh": lambda x: special.gelu(x, approximate="tanh"),
}
UNITS = {"logistic": 2.5, "tanh": 3.0, "silu": 2.5, "gelu": 5.0, "gelu_tanh": 3.0}
"""The bounds in the docstring of `special`; the last one for x > 0."""
SLOPE = math.sqrt(8 / math.pi)
ENTRIES = 40_001  # above the accelerators' threshold, and no whole number of vectors


def of_all_exponents(dtype: str, step: int) -> Real:
    """Finite numbers of all exponents and both signs, denser where functions vary."""
    if dtype == "float32":
        bits = np.arange(0, 2**32, step, np.uint64).astype(np.uint32)
        ends = 110
    else:
        bits = np.arange(0, 2**64 - step * 2**32, step * 2**32, np.uint64)
        bits += np.random.default_rng(0).integers(0, 2**32, bits.size, np.uint64)
        ends = 750
    middle = np.linspace(-ends, ends, bits.size // 4)
    near = np.linspace(-10, 10, bits.size // 4)
    x = np.concatenate([bits.view(dtype), middle.astype(dtype), near.astype(dtype)])
    return x[np.isfinite(x)]


def v(x: Any) -> Any:
    return SLOPE * (x + 0.044715 * x * x * x)


def bound(name: str, x: Real) -> Real:
    below = np.clip(x.astype("f8"), -200, 0)
    return UNITS[name] + (3 * np.abs(v(below)) if name == "gelu_tanh" else 0 * below)


def units(y: Real, error: Real, dtype: str) -> Real:
    """An error in units in the last place of y, or of the least normal number if y is smaller."""
    info = np.finfo(dtype)
    exponent = np.maximum(np.frexp(np.abs(y))[1] - 1, info.minexp)
    return np.abs(error) / np.ldexp(y.dtype.type(1), exponent - info.nmant)


# --- values ---


def sigmoid(x: Real) -> Real:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def normal(x: Real) -> Real:
    return np.asarray([math.erfc(-number / math.sqrt(2)) / 2 for number in x.tolist()])


DEFINITIONS: dict[str, Callable[[Real], Real]] = {
    "logistic": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * normal(x),
    "gelu_tanh": lambda x: x * sigmoid(v(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_of_single_precision(name: str) -> None:
    """Against the definition in double precision, with errors below 2⁻²⁰ of a unit."""
    x = of_all_exponents("float32", 16_001)
    with np.errstate(over="ignore"):
        truth = DEFINITIONS[name](x.astype("f8"))
    error = units(truth, OPERATIONS[name](x)[0] - truth, "float32")
    assert np.all(error <= bound(name, x))


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_of_double_precision(name: str) -> None:
    mp: Any = pytest.importorskip("mpmath")  # comes with PyTorch

    def logistic(x: Any) -> Any:
        return 1 / (1 + mp.exp(-x)) if x > -2000 else mp.mpf(0)

    definitions: dict[str, Callable[[Any], Any]] = {
        "logistic": logistic,
        "tanh": mp.tanh,
        "silu": lambda x: x * logistic(x),
        "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2 if x > -60 else mp.mpf(0),
        "gelu_tanh": lambda x: x * logistic(mp.sqrt(8 / mp.pi) * (x + mp.mpf("0.044715") * x**3)),
    }
    x = np.tile(of_all_exponents("float64", 2**32 // 1501), 20)
    y, distinct = OPERATIONS[name](x)[0], x.size // 20
    errors = []
    with mp.workprec(200):
        for given, result in zip(x[:distinct].tolist(), y[:distinct].tolist(), strict=True):
            truth = definitions[name](mp.mpf(given))
            exponent = max(mp.frexp(truth)[1] - 1, -1022) if truth else -1022
            errors.append(float(abs(result - truth) * mp.mpf(2) ** (52 - exponent)))
    assert np.all(np.asarray(errors) <= bound(name, x[:distinct]))
    assert np.array_equal(y.reshape(20, -1), np.tile(y[:distinct], (20, 1)))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_errors_of_slopes(name: str) -> None:
    """An error in units of the larger one of the terms of g + x g′, two more than for the value."""
    x = of_all_exponents("float32", 16_001)
    x = x[np.abs(x) < 1e12]  # no overflow in double precision
    wide = x.astype("f8")
    if name == "gelu":
        gate, slope = normal(wide), np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
    else:
        cubic = name == "gelu_tanh"
        inner = v(wide) if cubic else wide
        gate = sigmoid(inner)
        slope = gate * sigmoid(-inner) * (SLOPE * (1 + 3 * 0.044715 * wide * wide) if cubic else 1)
    terms = np.maximum(np.abs(gate), np.abs(wide * slope))
    ones = np.ones_like(x)
    (result,) = OPERATIONS[name](x)[1](ones)
    error = units(terms, result - (gate + wide * slope), "float32")
    assert np.all(error <= bound(name, x) + 2)
    (twice,) = OPERATIONS[name](x)[1](2 * ones)
    assert np.array_equal(twice, 2 * result)


@pytest.mark.parametrize("name", ["logistic", "tanh"])
def test_slopes_by_the_value(name: str, dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=ENTRIES).astype(dtype)
    y, gradients = OPERATIONS[name](x)
    dy = np.cos(x)
    wide = y.astype(np.longdouble)
    truth = (wide * (1 - wide) if name == "logistic" else 1 - wide * wide) * dy
    # y² is rounded, so 1 - y² errs by half a unit of 1
    allowed = 3 * np.finfo(dtype).eps * np.abs(dy)
    assert np.all(np.abs(gradients(dy)[0] - truth) <= allowed)


def test_the_logistic_function_is_a_primitive_without_gradients(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=ENTRIES).astype(dtype)
    assert np.array_equal(special.sigmoid(x), special.logistic(x)[0])
    assert np.array_equal(primitives.sigmoid(x), special.sigmoid(x))


# --- numbers that are none, and limits ---


@pytest.mark.parametrize("name", OPERATIONS)
def test_limits_signs_and_nan_as_in_the_reference(name: str, dtype: str) -> None:
    least = np.finfo(dtype).smallest_subnormal
    some = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, least, -least, 7 * least]
    some += [1e4, -1e4, -50.0, -30.0, 1e12, -1e12]
    x = np.tile(np.asarray(some, dtype), ENTRIES // len(some))
    primitive, _, approximate = name.partition("_")
    options = {"approximate": approximate} if approximate else {}
    y, gradients = OPERATIONS[name](x)
    dx = gradients(np.ones_like(x))[0]
    with np.errstate(invalid="ignore", over="ignore"):
        truth, true_gradients = getattr(primitives, primitive).reference(x, **options)
        true_dx = true_gradients(np.ones_like(x))[0]
    for result, expected in ((y, truth), (dx, true_dx)):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=3 * least)
    assert np.array_equal(np.signbit(y[x == 0]), np.signbit(truth[x == 0]))


@pytest.mark.parametrize("name", OPERATIONS)
def test_limits_as_in_pytorch(name: str, dtype: str) -> None:
    torch: Any = pytest.importorskip("torch")
    functions = {
        "logistic": torch.sigmoid,
        "tanh": torch.tanh,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }
    # In single precision PyTorch has nan for GELU(∞), in double ∞.
    ends = [0.0 if (name, dtype) == ("gelu", "float32") else np.inf, -np.inf, np.nan]
    x = np.repeat(np.asarray([*ends, 1.0, -1.0], dtype), ENTRIES // 5)
    given = torch.asarray(x, requires_grad=True)
    y, gradients = OPERATIONS[name](x)
    expected = functions[name](given)
    expected.backward(torch.ones_like(expected))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradients(np.ones_like(x))[0], given.grad.numpy(), rtol=1e-5)


# --- memory and threads ---


@pytest.mark.parametrize("name", OPERATIONS)
def test_neither_place_nor_threads_change_a_bit(
    name: str, dtype: str, guards: Guards, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = 3 * np.random.default_rng(0).normal(size=ENTRIES).astype(dtype)
    expected: list[Real] = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        for first in (0, 1, 5):
            x = guards.copy(values[first:])
            y, gradients = OPERATIONS[name](x)
            results = [y, gradients(guards.copy(np.cos(x)))[0]]
            expected = expected or results
            for result, whole in zip(results, expected, strict=True):
                assert np.array_equal(result, whole[first:])


@pytest.mark.parametrize("name", OPERATIONS)
def test_memory_orders(name: str, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(5, 40, 41, 7)).astype(dtype)
    expected, gradients = OPERATIONS[name](values)
    expected_dx = gradients(values)[0]
    laid_out = {
        "transposed": np.ascontiguousarray(values.T).T,
        "channels last": np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "cut out": np.pad(values, 1)[1:-1, 1:-1, 1:-1, 1:-1],
        "mirrored": np.ascontiguousarray(values[:, ::-1])[:, ::-1],
        "unaligned": np.frombuffer(b"0" + values.tobytes(), dtype, offset=1).reshape(values.shape),
    }
    for how, x in laid_out.items():
        y, gradients = OPERATIONS[name](x)
        assert np.array_equal(y, expected)
        for dy in (values, x, x.astype("f8")):
            assert np.array_equal(gradients(dy)[0], expected_dx)
        if how in ("transposed", "channels last"):
            assert y.strides == x.strides == gradients(values)[0].strides


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gradient_of_another_shape_is_refused(name: str) -> None:
    x = np.ones((200, 200), np.float32)
    _, gradients = OPERATIONS[name](x)
    with pytest.raises(InputError, match="shape"):
        gradients(x[:1])
    assert gradients(x, False) == (None,)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_numpy_does_as_fast_is_declined(name: str) -> None:
    assert OPERATIONS[name](np.ones((300, 300), np.float16)) is NotImplemented
    assert OPERATIONS[name](np.ones((300, 300), ">f4")) is NotImplemented
    assert OPERATIONS[name](np.ones(0)) is NotImplemented
    if not name.startswith("gelu"):
        assert OPERATIONS[name](np.ones(900)) is NotImplemented
        assert name == "tanh" or special.sigmoid(np.ones(900)) is NotImplemented
