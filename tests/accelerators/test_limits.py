"""Calls outside the limits of the compiled kernels, which give the result of the reference."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from xbp import accelerators, nn, optim, primitives
from xbp.accelerators.cpu import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())


def both(make: Any, x: Any) -> list[list[Any]]:
    """Output and input gradient, from the compiled kernel and from the reference."""
    results = []
    for reference in (False, True):
        model = make()
        if reference:
            with accelerators.disabled():
                y, backward = model.forward(x, training=True)
                results.append([y, backward(np.cos(y))])
        else:
            y, backward = model.forward(x, training=True)
            results.append([y, backward(np.cos(y))])
    return results


@pytest.mark.parametrize("window", [(15, 17), (16, 16), (16, 17), (2, 200), (200, 2)], ids=str)
@pytest.mark.parametrize("with_convolution", [True, False])
def test_windows_of_more_places_than_a_byte_counts(
    window: tuple[int, int], with_convolution: bool
) -> None:
    height, width = 2 * window[0], 2 * window[1]
    x = np.random.default_rng(0).normal(size=(9, 1, height, width))
    x[::2, :, window[0] - 1 :: window[0], window[1] - 1 :: window[1]] += 9.0  # the last place

    def make() -> nn.Layer:
        layers = [nn.Conv2d(1, 1, 1, bias=False, dtype="float64", rng=0)] * with_convolution
        for layer in layers:
            layer.load_state_dict({"weight": np.ones((1, 1, 1, 1))})
        return nn.Sequential(*layers, nn.MaxPool2d(window))

    (y, dx), (expected, expected_dx) = both(make, x)
    assert np.array_equal(y, expected)
    assert np.array_equal(dx, expected_dx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("largest", range(5))
def test_the_largest_logit_may_be_any(largest: int, dtype: str) -> None:
    logits = np.zeros((9, 5), dtype)
    logits[:, largest] = 1e4  # whose exponential overflows
    value, gradient = nn.CrossEntropyLoss("sum")(logits, np.arange(9) % 5)
    # Exact: 1e4 for each sample of another class.
    assert value == 1e4 * np.sum(np.arange(9) % 5 != largest)
    assert np.array_equal(gradient, np.eye(5)[[largest] * 9] - np.eye(5)[np.arange(9) % 5])


def test_a_dtype_that_no_kernel_has() -> None:
    x = np.random.default_rng(0).normal(size=(9, 2, 6, 6)).astype(np.float16)
    (y, dx), (expected, expected_dx) = both(lambda: nn.MaxPool2d(2), x)
    assert y.dtype == dx.dtype == np.float16
    assert np.array_equal(y, expected) and np.array_equal(dx, expected_dx)


@pytest.mark.parametrize("make", [lambda: nn.ReLU(), lambda: nn.Softmax()])
def test_many_entries_of_a_dtype_that_no_kernel_has(make: Any) -> None:
    x = np.random.default_rng(0).normal(size=(200, 400)).astype(np.float16)
    (y, dx), (expected, expected_dx) = both(make, x)
    assert y.dtype == dx.dtype == np.float16
    assert np.array_equal(y, expected) and np.array_equal(dx, expected_dx)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_gradient_of_another_dtype_or_order_than_the_output(order: Any) -> None:
    x = np.random.default_rng(0).normal(size=(200, 400)).astype(np.float32)
    dy = np.asarray(np.random.default_rng(1).normal(size=x.shape), order=order)
    backward = nn.ReLU().forward(x, training=True)[1]
    single = dy.astype(np.float32)
    assert np.array_equal(backward(single), (x > 0) * single)
    assert np.array_equal(backward(dy).astype(np.float32), (x > 0) * single)


def test_logits_of_a_dtype_that_no_kernel_has() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float16)
    results = [nn.CrossEntropyLoss()(logits, np.arange(9) % 5)]
    with accelerators.disabled():
        results.append(nn.CrossEntropyLoss()(logits, np.arange(9) % 5))
    (value, gradient), (expected, expected_gradient) = results
    assert value == expected and np.array_equal(gradient, expected_gradient)


def test_numbers_that_lie_between_others_at_odd_distances() -> None:
    record = np.zeros((9, 2, 6, 6), np.dtype([("x", "f4"), ("flag", "u1")]))
    x = record["x"]
    x[...] = np.random.default_rng(0).normal(size=x.shape)
    assert x.strides[-1] == 5
    layer = nn.Conv2d(2, 3, 3, rng=0)
    assert np.array_equal(layer(x), layer(np.ascontiguousarray(x)))


def test_a_parameter_of_a_dtype_that_no_kernel_has() -> None:
    g = np.random.default_rng(0).normal(size=5000).astype(np.complex64)
    results = []
    for enabled in (True, False):
        parameter = nn.Parameter(np.ones(5000, np.complex64))
        parameter.add_grad(g)
        optimizer = optim.SGD([parameter], lr=0.5, momentum=0.5)
        with nullcontext() if enabled else accelerators.disabled():
            optimizer.step()
            optimizer.step()
        results.append(parameter.data)
    assert results[0].dtype == np.complex64 and np.array_equal(*results)


def test_matrices_whose_rows_or_columns_overlap() -> None:
    """Rows that overlap, by all but 1 or 50 entries: BLAS would take them for shorter rows."""
    a = np.random.default_rng(0).normal(size=(100, 300))
    for step in (1, 50):
        numbers = np.arange(300.0 + 99 * step) / step
        windows = np.lib.stride_tricks.sliding_window_view(numbers, 300)[::step]  # (100, 300)
        for left, right in [(windows, a.T), (windows.T, a), (a, windows.T), (a.T, windows)]:
            # Sums of at most 300 products of order 1000, in another order.
            expected = np.ascontiguousarray(left) @ np.ascontiguousarray(right)
            np.testing.assert_allclose(primitives.matmul(left, right), expected, rtol=0, atol=1e-8)


def test_a_matrix_times_many() -> None:
    a = np.ones((300, 300))
    for many in (np.ones((2, 300, 300)), np.ones((300, 300, 2))):
        assert np.array_equal(primitives.matmul(a, many), a @ many)
        assert np.array_equal(primitives.matmul(many.mT, a), many.mT @ a)
