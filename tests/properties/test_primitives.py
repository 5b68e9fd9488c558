"""Properties of primitives: windows of images by counting, special functions against the math
module, rounding by units, random words against Philox in plain integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from blocks import convolution_block
from hypothesis import given
from hypothesis import strategies as st
from properties.drawing import Host, check, dtypes, everything_of, layouts, quarters, seeds, ways
from properties.problems import Windows, shapes, windows

from xbp import primitives
from xbp.primitives.rounding import FORMATS
from xbp.testing import oracles

LITTLE = 1500
images = windows(LITTLE, lambda k: k, 1)


def places(w: Windows) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(n, c, row, column) in the image and (h, c, v, q, n) in the unfolded rows, of each entry that
    windows have inside of the image.
    """
    n, c, height, width = w.shape
    columns = primitives.output_size(w.shape[2:], *w.window)[1]
    for b, channel, i, q, v in np.ndindex(n, c, height, columns, w.kernel[1]):
        j = q * w.stride[1] + v - w.padding[1]
        if 0 <= j < width:
            yield (b, channel, i, j), (i + w.padding[0], channel, v, q, b)


def unfolded_shape(w: Windows) -> tuple[int, ...]:
    n, c, height, _ = w.shape
    columns = primitives.output_size(w.shape[2:], *w.window)[1]
    return height + 2 * w.padding[0], c, w.kernel[1], columns, n


def untouched(result: Any, *given: Host | None) -> Any:
    """The result of a primitive, which must not change its arguments."""
    arrays = [array for array in given if array is not None]
    before = [everything_of(array) for array in arrays]
    value = result(*given)
    assert before == [everything_of(array) for array in arrays], "an input was changed"
    return value


@given(images, dtypes, layouts, seeds)
def test_unfolded_rows_are_the_windows(w: Windows, dtype: str, layout: Any, rng: Any) -> None:
    x, expected = quarters(rng, *w.shape), np.zeros(unfolded_shape(w))
    for here, there in places(w):
        expected[there] = x[here]
    for way in ways():
        with way:
            found = untouched(
                lambda x: primitives.unfold_rows(x, *w.window), layout(x.astype(dtype))
            )
        check(found, expected, dtype, 0.0, "unfold_rows")


@given(images, dtypes, layouts, seeds)
def test_rows_add_up_where_windows_overlap(w: Windows, dtype: str, layout: Any, rng: Any) -> None:
    y, expected = quarters(rng, *unfolded_shape(w)), np.zeros(w.shape)
    for here, there in places(w):
        expected[here] += y[there]
    for way in ways():
        with way:
            found = untouched(
                lambda y: primitives.fold_rows(y, w.shape, *w.window), layout(y.astype(dtype))
            )
        check(found, expected, dtype, 0.0, "fold_rows")


@given(images, dtypes, layouts, seeds, st.sampled_from([0.0, -math.inf, 1.5]))
def test_padding_frames_and_is_taken_off(
    w: Windows, dtype: str, layout: Any, rng: Any, value: float
) -> None:
    x, (p, q) = quarters(rng, *w.shape), w.padding
    n, c, height, width = w.shape
    expected = np.full((n, c, height + 2 * p, width + 2 * q), value)
    for index in np.ndindex(w.shape):
        expected[*index[:2], index[2] + p, index[3] + q] = x[index]
    for way in ways():
        with way:
            padded = untouched(
                lambda x: primitives.pad2d(x, (p, q), value), layout(x.astype(dtype))
            )
            inner = primitives.unpad2d(layout(padded), (p, q))
        assert padded.dtype == dtype
        np.testing.assert_array_equal(padded, expected)
        np.testing.assert_array_equal(inner, x)


@given(images)
def test_windows_are_counted_by_laying_them_out(w: Windows) -> None:
    counts = tuple(
        len(range(0, size + 2 * p - k + 1, s))
        for size, k, s, p in zip(w.shape[2:], *w.window, strict=True)
    )
    assert primitives.output_size(w.shape[2:], *w.window) == counts
    ranges = [range(size + 2 * p) for size, p in zip(w.shape[2:], w.padding, strict=True)]
    for i, j, rows, columns in primitives.windows(w.kernel, w.stride, counts):
        assert list(ranges[0][rows]) == [i + r * w.stride[0] for r in range(counts[0])]
        assert list(ranges[1][columns]) == [j + r * w.stride[1] for r in range(counts[1])]


def logistic(x: float) -> float:
    return math.exp(x) / (1 + math.exp(x)) if x < 0 else 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "function"), [("erf", math.erf), ("erfc", math.erfc), ("sigmoid", logistic)]
)
@given(
    values=st.lists(st.floats(-40, 40, width=32) | st.floats(-1, 1, width=32), max_size=30),
    dtype=dtypes,
    layout=layouts,
)
def test_special_functions_keep_their_relative_accuracy(
    name: str, function: Any, values: list[float], dtype: str, layout: Any
) -> None:
    """An error of at most 16 roundings, for results that are normal numbers."""
    x, info = np.array(values), np.finfo(dtype)
    expected = np.array([function(value) for value in values])
    for way in ways():
        with way:
            found = untouched(getattr(primitives, name), layout(x.astype(dtype)))
        assert found.dtype == dtype
        error = np.abs(found.astype(np.float64) - expected)
        assert np.all(error <= 16 * info.eps * np.abs(expected) + info.tiny)


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), max_size=40),
    name=st.sampled_from(sorted(FORMATS)),
    dtype=dtypes,
    layout=layouts,
)
def test_rounding_is_to_the_nearest_of_a_format(
    values: list[float], name: str, dtype: str, layout: Any
) -> None:
    """Python rounds a number of units to an even one, exactly."""
    digits, least, largest = FORMATS[name]

    def nearest(value: float) -> float:
        if not math.isfinite(value):
            return value
        unit = 2.0 ** max(math.frexp(value)[1] - digits, least)
        found = round(abs(value) / unit) * unit
        return math.copysign(math.inf if found > largest else found, value)

    expected = np.array([nearest(value) for value in values], dtype)
    for way in ways():
        with way:
            found = untouched(
                lambda x: primitives.round_to(x, name), layout(np.array(values, dtype))
            )
        assert found.dtype == dtype and found.shape == expected.shape
        assert np.array_equal(found, expected) and np.array_equal(
            np.signbit(found), np.signbit(expected)
        )


words = st.integers(0, 2**32 - 1)
pairs = st.tuples(words, words)


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=5), pairs, layouts)
def test_philox_is_that_of_plain_integers(counters: Any, key: Any, layout: Any) -> None:
    columns = [layout(np.array(column)) for column in zip(*counters, strict=True)]
    found = primitives.philox4x32(tuple(columns), key)
    expected = [oracles.philox4x32(counter, key) for counter in counters]
    assert np.array_equal(np.stack(found, axis=1), expected)


@given(shapes(200), pairs, st.tuples(words, words, words), dtypes)
def test_bits_are_the_blocks_in_a_row(shape: Any, key: Any, counter: Any, dtype: str) -> None:
    """Equal words for all shapes and arrays."""
    blocks = -(-math.prod(shape) // 4)
    row = [word for b in range(blocks) for word in oracles.philox4x32((b, *counter), key)]
    found = primitives.random_bits(np.zeros((), dtype), shape, key=key, counter=counter)
    assert found.dtype == np.int64 and found.shape == shape
    assert found.ravel().tolist() == row[: math.prod(shape)]


@given(
    w=windows(LITTLE, lambda k: k),
    data=st.data(),
    dtype=dtypes,
    own=layouts,
    other=layouts,
    rng=seeds,
)
def test_convolution_rectifier_and_maximum_in_one_call(
    w: Windows, data: st.DataObject, dtype: str, own: Any, other: Any, rng: Any
) -> None:
    """Quarters, so that there are zeros and ties. The gradient that reaches the convolution is
    that of the definitions; from there on it is linear in everything, and adjoint to the last bit.
    """
    x, weight = quarters(rng, *w.shape), quarters(rng, w.out_channels, w.shape[1], *w.kernel)
    bias = quarters(rng, w.out_channels) if data.draw(st.booleans()) else None
    relu, (_, stride, padding) = data.draw(st.booleans()), w.window
    middle = oracles.conv2d(x, weight, bias, stride, padding)
    pool = data.draw(st.tuples(*(st.integers(1, min(size, 4)) for size in middle.shape[2:])))
    rectified = oracles.relu(middle) if relu else middle
    expected = oracles.max_pool2d(rectified, pool, pool, (0, 0))
    dy = quarters(rng, *expected.shape)
    delta = oracles.max_pool2d_input_gradient(rectified, dy, pool, pool, (0, 0))
    if relu:
        delta = np.where(middle > 0, delta, 0.0)
    given_arrays = [x, weight, *([] if bias is None else [bias])]
    v = [quarters(rng, *array.shape) for array in given_arrays]
    up, down = (
        oracles.conv2d(
            *(array + sign * d for array, d in zip(given_arrays, v, strict=True)),
            stride=stride,
            padding=padding,
        )
        for sign in (1, -1)
    )
    slope = np.sum(delta * (up - down)) / 2
    arrays = [own(array.astype(dtype)) for array in given_arrays]
    calls: list[Any] = [partial(convolution_block, relu=relu, pool=pool)]
    if not relu and pool == (1, 1):
        calls.append(primitives.convolve)
    for way in ways():
        with way:
            for call in calls:
                three = [*arrays, None][:3]
                y, backward = untouched(partial(call, stride=stride, padding=padding), *three)
                check(y, expected, dtype, 0.0, "the output")
                for _ in range(2):  # a backward may be called twice
                    gradients = untouched(backward, other(dy.astype(dtype)))[: len(v)]
                    for g, array in zip(gradients, given_arrays, strict=True):
                        check(g, array, dtype, np.inf, "a gradient")
                    terms = zip(gradients, v, strict=True)
                    assert sum(np.sum(g * d, dtype=np.float64) for g, d in terms) == slope
