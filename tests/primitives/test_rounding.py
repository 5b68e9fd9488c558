"""Rounding to the formats of tensor cores, against numpy's float16, PyTorch and fractions."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp.backend import why_unavailable
from xbp.primitives import round_to
from xbp.primitives.rounding import FORMATS

Real = NDArray[Any]
BACKENDS = ["numpy", "array_api_strict", "torch"]


def edges(name: str) -> Real:
    """Numbers of a format at its ends and in between, those halfway, and their neighbours."""
    digits, least, largest = FORMATS[name]
    exponents = (least, least + 1, least + digits - 2, least + digits - 1, least + digits, -1, 0, 5)
    units = [2.0 ** (exponent - digits + 1) for exponent in exponents]
    ends = [0.0, 2.0 ** (least - 1), 2.0**least, 1.5 * 2.0**least, largest]
    ends += [largest * (1 + 2.0 ** -(digits + i)) for i in (0, 1, 2)]
    found = [k * u / 2 for u in units for k in range(2**digits, 2**digits + 9)]
    found += [(2 ** (digits + 1) - k) * u / 2 for u in units for k in range(9)]
    exact = np.asarray(ends + found)
    with np.errstate(over="ignore"):
        x = exact.astype(np.float32)
        x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    x = np.concatenate([x, np.float32([np.inf, np.nan, 3e38, 1e-45, 1e-40])])
    drawn = np.random.default_rng(0).integers(0, 255 << 23, 500, dtype=np.uint32)  # all finite
    x = np.concatenate([x, drawn.view(np.float32)])
    return np.concatenate([x, -x])


@cache
def nearest(value: float, name: str) -> float:
    """By exact arithmetic: the nearest number of the format, with an even significand in a tie."""
    digits, least, largest = FORMATS[name]
    if value != value or abs(value) == np.inf or value == 0:
        return value
    size, exponent = Fraction(abs(value)), 0
    while size >= 2 ** Fraction(exponent + 1):
        exponent += 1
    while size < 2 ** Fraction(exponent):
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, least)
    found = round(size / unit) * unit  # of fractions to even
    return float(np.copysign(np.inf if found > Fraction(largest) else float(found), value))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMATS)
def test_nearest_numbers(name: str, dtype: str, accelerated: bool, backend: str) -> None:
    if reason := why_unavailable(backend):
        pytest.skip(reason)
    x = edges(name).astype(dtype)
    if dtype == "float64":
        x = np.concatenate([x, x * (1 + 2.0**-50), x * (1 - 2.0**-50)])  # no double rounding
    expected = np.asarray([nearest(float(value), name) for value in x])
    with xbp.use_backend(backend):
        placed = xbp.asarray(x)
        if accelerated:
            found = xbp.to_numpy(round_to(placed, name))
        else:
            found = xbp.to_numpy(round_to.reference(placed, name))  # type: ignore[attr-defined]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(np.signbit(found)[number], np.signbit(x)[number])


def test_float16_is_that_of_numpy() -> None:
    x = edges("float16")
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(round_to(x, "float16"), expected)


def test_bfloat16_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = edges("bfloat16")
    expected = torch.asarray(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(round_to(x, "bfloat16"), expected)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_any_memory_order(name: str, axes: Any) -> None:
    x = np.random.default_rng(0).normal(size=(5, 40, 30)).astype("f4").transpose(axes)
    for some in (x, x[::2, ::-1], x[:0], x[0, 0, 0], x[:, :1]):
        expected = round_to.reference(np.asarray(some), name)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(round_to(np.asarray(some), name), expected)
