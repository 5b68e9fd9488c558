"""Conv2d as convolutions: each formula of the derivation against plain loops.

All numbers are small integers, so float64 sums are exact in any order, and equal means equal.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn

F64 = NDArray[np.float64]

Pair = tuple[int, int]


# --- the definitions, in two dimensions ----------------------------------------------------------


def turned(k: F64) -> F64:
    """k rotated by 180°: turned(k)[i, j] = k[-1-i, -1-j]."""
    return k[::-1, ::-1]


def correlation(x: F64, k: F64) -> F64:
    """(x ⋆ k)[r, s] = Σ_ij x[r + i, s + j] k[i, j], where the kernel lies within x."""
    y = np.zeros((x.shape[0] - k.shape[0] + 1, x.shape[1] - k.shape[1] + 1))
    for r, s in np.ndindex(y.shape):
        for i, j in np.ndindex(k.shape):
            y[r, s] += x[r + i, s + j] * k[i, j]
    return y


def full_convolution(x: F64, k: F64) -> F64:
    """(x * k)[r, s] = Σ_ij x[r - i, s - j] k[i, j], with x zero outside."""
    y = np.zeros((x.shape[0] + k.shape[0] - 1, x.shape[1] + k.shape[1] - 1))
    for r, s in np.ndindex(y.shape):
        for i, j in np.ndindex(k.shape):
            if 0 <= r - i < x.shape[0] and 0 <= s - j < x.shape[1]:
                y[r, s] += x[r - i, s - j] * k[i, j]
    return y


def convolution(x: F64, k: F64) -> F64:
    """The part of the full convolution where the kernel lies within x."""
    (h, w), (kh, kw) = x.shape, k.shape
    return full_convolution(x, k)[kh - 1 : h, kw - 1 : w]


def integers(*shape: int, seed: int = 0) -> F64:
    return np.random.default_rng([seed, *shape]).integers(-9, 10, shape).astype(float)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (4, 2), (5, 6)])
def test_convolution_is_correlation_with_the_kernel_turned(kernel: Pair) -> None:
    x, k = integers(5, 6), integers(*kernel)
    np.testing.assert_array_equal(convolution(x, k), correlation(x, turned(k)))
    np.testing.assert_array_equal(convolution(x, turned(k)), correlation(x, k))
    np.testing.assert_array_equal(full_convolution(x, k), full_convolution(k, x))
    symmetric = k + turned(k)
    np.testing.assert_array_equal(convolution(x, symmetric), correlation(x, symmetric))


# --- the layer -----------------------------------------------------------------------------------


class Run(NamedTuple):
    """One forward and backward of a Conv2d: δ = ∂E/∂y, and the gradients dw, db, dx."""

    x: F64
    w: F64
    b: F64
    y: F64
    delta: F64
    dw: F64
    db: F64
    dx: F64


SHAPES = [(1, 1, 1, (4, 5), (2, 3)), (2, 3, 2, (6, 5), (3, 2)), (3, 2, 4, (5, 5), (5, 5))]
every_backend = pytest.mark.parametrize("backend", xbp.available_backends())
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def run(backend: str, shape: Any, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Run:
    n, channels, maps, size, kernel = shape
    x, w, b = integers(n, channels, *size), integers(maps, channels, *kernel), integers(maps)
    with xbp.use_backend(backend):
        layer = nn.Conv2d(channels, maps, kernel, stride, padding, dtype="float64")
        layer.load_state_dict({"weight": w, "bias": b})
        y, backward = layer.forward(xbp.asarray(x))
        delta = integers(*y.shape, seed=1)
        dx = backward(xbp.asarray(delta))
        assert layer.bias is not None
        results = (layer.weight.grad, layer.bias.grad, dx)
        return Run(x, w, b, xbp.to_numpy(y), delta, *map(xbp.to_numpy, results))


@every_backend
@every_shape
def test_the_output_is_a_correlation_and_a_convolution_with_turned_kernels(
    backend: str, shape: Any
) -> None:
    r = run(backend, shape)
    for n, o in np.ndindex(r.y.shape[:2]):
        pairs = list(zip(r.x[n], r.w[o], strict=True))
        correlated = sum(correlation(x, k) for x, k in pairs) + r.b[o]
        convolved = sum(convolution(x, turned(k)) for x, k in pairs) + r.b[o]
        np.testing.assert_array_equal(r.y[n, o], correlated)
        np.testing.assert_array_equal(r.y[n, o], convolved)


@every_backend
@every_shape
def test_the_gradient_of_the_kernel_is_the_correlation_of_input_and_delta(
    backend: str, shape: Any
) -> None:
    r = run(backend, shape)
    for o, c in np.ndindex(r.w.shape[:2]):
        pairs = list(zip(r.x[:, c], r.delta[:, o], strict=True))
        np.testing.assert_array_equal(r.dw[o, c], sum(correlation(x, d) for x, d in pairs))
        np.testing.assert_array_equal(r.dw[o, c], sum(convolution(x, turned(d)) for x, d in pairs))
    for o, total in enumerate(r.db):
        assert total == r.delta[:, o].sum()


@every_backend
@every_shape
def test_the_gradient_of_the_input_is_the_full_convolution_of_delta_and_kernel(
    backend: str, shape: Any
) -> None:
    r = run(backend, shape)
    for n, c in np.ndindex(r.x.shape[:2]):
        pairs = list(zip(r.delta[n], r.w[:, c], strict=True))
        np.testing.assert_array_equal(r.dx[n, c], sum(full_convolution(d, k) for d, k in pairs))


def test_the_gradient_of_the_input_takes_the_kernel_as_it_is() -> None:
    """The kernel is not turned; the tutorial's last line is true for symmetric kernels only."""
    r = run("numpy", SHAPES[0])
    delta, k = r.delta[0, 0], r.w[0, 0]
    assert not np.array_equal(r.dx[0, 0], full_convolution(delta, turned(k)))
    np.testing.assert_array_equal(r.dx[0, 0], full_convolution(delta, k))
    # As a correlation with a zero-padded δ, it has the turned kernel.
    framed = np.pad(delta, [(n - 1, n - 1) for n in k.shape])
    np.testing.assert_array_equal(r.dx[0, 0], correlation(framed, turned(k)))


@every_backend
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_strides_put_zeros_into_delta_and_padding_is_cut_off(
    backend: str, stride: Pair, padding: Pair
) -> None:
    """With stride s, δ is in every s-th row and column; rows outside of all windows get 0."""
    r = run(backend, (2, 2, 3, (7, 8), (3, 2)), stride, padding)
    (p, q), (height, width) = padding, (7, 8)
    size = (height + 2 * p - 3 + 1, width + 2 * q - 2 + 1)  # of the output with stride 1
    spread = np.zeros((*r.delta.shape[:2], *size))
    spread[:, :, :: stride[0], :: stride[1]] = r.delta
    padded = np.pad(r.x, [(0, 0), (0, 0), (p, p), (q, q)])
    for o, c in np.ndindex(r.w.shape[:2]):
        pairs = zip(padded[:, c], spread[:, o], strict=True)
        np.testing.assert_array_equal(r.dw[o, c], sum(correlation(x, d) for x, d in pairs))
    for n, c in np.ndindex(r.x.shape[:2]):
        pairs = zip(spread[n], r.w[:, c], strict=True)
        dx = sum(full_convolution(d, k) for d, k in pairs)
        np.testing.assert_array_equal(r.dx[n, c], dx[p : p + height, q : q + width])
