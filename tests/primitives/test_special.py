"""The error function against the C library's, in units of the last place, on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp.backend import Backend, backend_of, dtype_name, find_backend
from xbp.primitives import erf, erfc, sigmoid
from xbp.primitives.special import FAR, NEAR
from xbp.testing import assert_no_host_sync

Host = NDArray[Any]


@pytest.fixture(params=xbp.available_backends())
def place(request: pytest.FixtureRequest) -> Backend:
    return find_backend(request.param)


every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_function = pytest.mark.parametrize("function", [erf, erfc, sigmoid])


def grid(dtype: str, low: float, high: float) -> Host:
    """A dense grid, every order of magnitude near 0, and both sides of the formulas' borders."""
    seams = np.array([-FAR, -NEAR, NEAR, FAR], dtype)
    tiny = np.logspace(-37, 0, 2_000)
    beside = [np.nextafter(seams, np.inf, dtype=dtype), np.nextafter(seams, -np.inf, dtype=dtype)]
    x = np.concatenate([np.linspace(low, high, 20_000), tiny, -tiny, seams, *beside])
    return x.astype(dtype)


def ulps(place: Backend, function: Any, oracle: Callable[[float], float], x: Host) -> float:
    """The largest error of `function` in units of the last place of x's dtype."""
    found = xbp.to_numpy(function(place.asarray(x)))
    assert found.dtype == x.dtype and found.shape == x.shape
    truth = np.array([oracle(float(value)) for value in x])
    return float(np.max(np.abs(found - truth) / np.spacing(np.abs(truth).astype(x.dtype))))


# The bounds are for some 20 roundings, which mostly cancel: two polynomials of degree 8 with
# positive coefficients, their quotient, two exponentials (each 1 ulp, in some libraries 2), and
# math.erf's or math.erfc's own error (2 ulp). numpy's largest errors are 3 ulp for erf and, in
# float64 and float32, 7 and 9 ulp for erfc. Any coefficient off by 1e-8 of itself shows, but for
# the 2e-8 in SHOULDER, which needs fewer digits.


@every_dtype
def test_erf_is_exact_to_a_few_ulps(place: Backend, dtype: str) -> None:
    assert ulps(place, erf, math.erf, grid(dtype, -6.5, 6.5)) <= 6


@every_dtype
def test_erfc_is_exact_to_a_few_ulps_into_its_tail(place: Backend, dtype: str) -> None:
    least_normal = {"float32": 9.1, "float64": 26.5}[dtype]  # where erfc is still one
    assert ulps(place, erfc, math.erfc, grid(dtype, -6.5, least_normal)) <= 12


@every_dtype
def test_erfs_at_the_ends_of_the_line(place: Backend, dtype: str) -> None:
    largest, least = float(np.finfo(dtype).max), float(np.finfo(dtype).smallest_subnormal)
    x = place.asarray(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, largest, -largest], dtype))
    y = xbp.to_numpy(erf(x))
    np.testing.assert_array_equal(y, [0.0, -0.0, 1, -1, np.nan, 1, -1])
    assert np.signbit(y).tolist()[:2] == [False, True]
    np.testing.assert_array_equal(xbp.to_numpy(erfc(x)), [1, 1, 0, 2, np.nan, 0, 2])
    if place.name != "cupy":  # flushes float32 subnormals to 0
        # 2/√π = 1.128 times the least number rounds to that number.
        assert xbp.to_numpy(erf(place.asarray(np.array([least], dtype)))) == least


@every_dtype
def test_erf_is_odd_and_erfc_its_complement(place: Backend, dtype: str) -> None:
    x = grid(dtype, 0, 7)
    y, mirrored = (xbp.to_numpy(erf(place.asarray(sign * x))) for sign in (1, -1))
    np.testing.assert_array_equal(mirrored, -y)
    # Sums of two roundings of numbers up to 2.
    complement = xbp.to_numpy(erfc(place.asarray(x)))
    np.testing.assert_allclose(y + complement, 1, rtol=0, atol=4 * float(np.finfo(dtype).eps))


@every_dtype
def test_sigmoid_keeps_its_relative_accuracy(place: Backend, dtype: str) -> None:
    x = grid(dtype, -85, 85)
    # An exponential (2 ulp), a sum and a quotient, beside the oracle's own three roundings.
    assert ulps(place, sigmoid, lambda value: 1 / (1 + math.exp(-value)), x) <= 6


def test_sigmoid_at_the_ends_of_the_line(place: Backend) -> None:
    x = place.asarray([-math.inf, -1e4, -0.0, 1e4, math.inf, math.nan])
    np.testing.assert_array_equal(xbp.to_numpy(sigmoid(x)), [0, 0, 0.5, 1, 1, np.nan])


@every_function
def test_nothing_waits_for_the_device(function: Any) -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        x = xbp.asarray([-5.0, 0.1, 2.0])
        with assert_no_host_sync():
            function(x)


@every_function
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_shape_dtype_and_device_are_kept(
    place: Backend, function: Any, shape: tuple[int, ...]
) -> None:
    x = place.asarray(np.ones(shape, np.float32))
    y = function(x)
    assert tuple(y.shape) == shape
    assert dtype_name(y.dtype) == "float32"
    assert place.name == "numpy" or backend_of(y) == place  # numpy's 0-d results are scalars


@every_function
def test_memory_order_does_not_matter_and_the_input_is_not_changed(function: Any) -> None:
    x = np.linspace(-6, 6, 24).reshape(4, 6)
    mirrored = np.asfortranarray(x)[::-1, ::2]
    mirrored.flags.writeable = False
    np.testing.assert_array_equal(function(mirrored), function(x)[::-1, ::2])
