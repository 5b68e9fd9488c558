"""Elementwise functions, emulated on the CPU, against the references in double precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from layouts import assert_close

from xbp import primitives
from xbp.accelerators.cuda import activations
from xbp.primitives.rounding import FORMATS

pytestmark = needs_a_compiler

FUNCTIONS = {
    **{name: {} for name in ("rectify", "tanh", "logistic", "silu", "gelu")},
    "gelu by tanh": {"approximate": "tanh"},
}


@pytest.fixture(params=FUNCTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A kernel's wrapper and its reference."""
    name, options = request.param.split()[0], FUNCTIONS[request.param]
    reference = getattr(primitives, name).reference
    return partial(getattr(activations, name), **options), partial(reference, **options)


@pytest.mark.parametrize("shape", [(1,), (300, 20), (5, 7, 4, 33)])
@pytest.mark.parametrize("axes", [None, (-1, 0)])
def test_activation(pair: Any, shape: Any, axes: Any, dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=shape).astype(dtype)
    x = x if axes is None else np.moveaxis(x, *axes)
    x[x > 4] = 0
    dy = rng.normal(size=x.shape).astype(dtype)  # laid out otherwise
    y, backward = pair[0](machine.guarded(x))
    truth, true_backward = pair[1](x.astype("f8"))
    assert y.dtype == dtype and y.strides == x.strides
    (dx,) = backward(machine.guarded(dy))
    assert dx.dtype == dtype and backward(dy, False) == (None,)
    assert_close(y, truth, 1)
    assert_close(dx, true_backward(dy.astype("f8"))[0], 2)
    assert machine.launches == ["activate", "activate_to_input"]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("size", [64, 65])
def test_loads_of_16_bytes(offset: int, size: int, dtype: str, machine: Emulation) -> None:
    """They need a first entry at a multiple of 16 bytes, and a size that they divide."""
    x = machine.empty(size + 4, dtype)[offset : offset + size]
    x[...] = np.arange(size)
    seen = []
    run = machine.launch
    machine.launch = lambda kernel, macros, *more: (  # type: ignore[method-assign]
        seen.append(macros["VECTOR"]) or run(kernel, macros, *more)  # type: ignore[func-returns-value]
    )
    y, _ = activations.rectify(x)
    assert np.array_equal(x, y)
    assert seen == [16 // x.itemsize if (offset, size) == (0, 64) else 1]


def test_several_loads_of_a_thread(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(activations, "MOST_BLOCKS", 2)
    x = np.random.default_rng(0).normal(size=10_000).astype(dtype)
    assert_close(activations.silu(x)[0], primitives.silu(x.astype("f8"))[0], 1)


def test_not_finite(pair: Any, dtype: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -1e30, 1e30], dtype)
    with np.errstate(all="ignore"):
        y, backward = pair[0](x)
        truth, true_backward = pair[1](x)
        np.testing.assert_array_equal(y, truth)
        for d in (np.ones_like(x), np.full_like(x, np.nan), np.full_like(x, np.inf)):
            np.testing.assert_array_equal(backward(d)[0], true_backward(d)[0])


@pytest.mark.parametrize("axes", [None, (-1, 0)])
def test_a_sum_has_the_memory_order_of_its_first_term(
    axes: Any, dtype: str, machine: Emulation
) -> None:
    rng = np.random.default_rng(0)
    x, other = (rng.normal(size=(5, 7, 4, 32)).astype(dtype) for _ in range(2))
    x, other = (x, other) if axes is None else (np.moveaxis(x, *axes), other.transpose(3, 0, 1, 2))
    total = activations.add(machine.guarded(x), machine.guarded(np.ascontiguousarray(other)))
    assert np.array_equal(total, x + other) and total.strides == x.strides
    for wrong in (other[:2], other.astype("f2"), other[..., :1]):
        assert activations.add(x, wrong) is NotImplemented
    assert activations.add(x[..., ::2], x[..., ::2]) is NotImplemented


def test_sigmoid_is_the_logistic_function(dtype: str) -> None:
    x = np.linspace(-100, 100, 77, dtype=dtype)
    y = activations.sigmoid(x)
    truth = 1 / (1 + np.exp(-x.astype("f8")))
    # Three roundings, an exponential, and the float32 subnormals among the values.
    np.testing.assert_allclose(y, truth, rtol=8 * np.finfo(dtype).eps, atol=1e-44)
    assert activations.sigmoid(x.astype("f2")) is NotImplemented


def test_rounding(dtype: str, machine: Emulation) -> None:
    """To the bits of the reference: the ends of each format, ties, numbers that are not finite."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255 << 23, 3000, dtype=np.uint32).view("f4")
    ends = [0, 2.0**-25, 2.0**-24, 3 * 2.0**-25, 2.0**-14, 65504, 65519, 65520, 3.4e38, np.inf]
    ties = np.ldexp(1 + np.arange(64) / 2**12, 3)
    x = np.concatenate([drawn, ends, ties, 1 + np.arange(1, 40, 2) / 2**9]).astype("f4")
    x = np.concatenate([x, -x, [np.nan]]).astype("f4")
    x = x[: x.size // 4 * 4].reshape(2, -1, 2).astype(dtype)
    for name in FORMATS:
        for some in (x, x.transpose(2, 0, 1), x[:, ::2], x[:, 1:, 1]):
            found = activations.round_to(machine.guarded(some), name)
            if dtype == "float64":
                assert found is NotImplemented
                continue
            expected = primitives.round_to.reference(some, name)  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found, expected)
            assert np.array_equal(np.signbit(found), np.signbit(expected))
    assert set(machine.launches) == ({"activate"} if dtype == "float32" else set())


def test_what_has_gaps_or_another_dtype_is_declined(pair: Any) -> None:
    assert pair[0](np.ones((4, 6))[:, ::2]) is NotImplemented
    assert pair[0](np.ones((4, 6), "f2")) is NotImplemented
