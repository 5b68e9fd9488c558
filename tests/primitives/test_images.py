"""Windows of images against plain loops, and each adjoint against its function."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import xbp
from xbp.backend import Backend, backend_of
from xbp.primitives import fold_rows, output_size, pad2d, unfold_rows, unpad2d, windows
from xbp.primitives.images import as_nchw, rows_first

Pair = tuple[int, int]
F64 = NDArray[np.float64]
many = settings(max_examples=100, deadline=None)


class Window(NamedTuple):
    """A shape of images (N, C, H, W) and a window."""

    shape: tuple[int, int, int, int]
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def output(self) -> Pair:
        """The number of places where a window fits, by counting."""
        fits = [
            range(0, size + 2 * p - k + 1, s)
            for size, k, s, p in zip(
                self.shape[2:], self.kernel, self.stride, self.padding, strict=True
            )
        ]
        return len(fits[0]), len(fits[1])

    @property
    def unfolded_shape(self) -> tuple[int, int, int, int, int]:
        n, c, height, _ = self.shape
        return height + 2 * self.padding[0], c, self.kernel[1], self.output[1], n


@st.composite
def problems(draw: st.DrawFn) -> Window:
    """Small shapes such that at least one window fits into the padded image."""
    kernel, stride, padding = (
        draw(st.tuples(st.integers(least, most), st.integers(least, most)))
        for least, most in ((1, 4), (1, 4), (0, 3))
    )
    height, width = (
        draw(st.integers(max(k - 2 * p, 1), max(k - 2 * p, 1) + 5))
        for k, p in zip(kernel, padding, strict=True)
    )
    n, c = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    return Window((n, c, height, width), kernel, stride, padding)


CORNERS = [
    Window((1, 1, 1, 1), (1, 1), (1, 1), (0, 0)),
    Window((2, 3, 5, 6), (3, 2), (1, 1), (0, 0)),
    Window((2, 3, 5, 6), (3, 2), (2, 3), (1, 0)),
    Window((2, 1, 7, 7), (2, 2), (3, 3), (0, 0)),  # a stride beyond the kernel, a remainder
    Window((1, 2, 2, 3), (4, 5), (1, 1), (1, 1)),  # a kernel larger than the image itself
    Window((2, 2, 3, 3), (1, 1), (2, 2), (2, 3)),  # whole windows of padding
    Window((0, 2, 4, 4), (2, 2), (2, 2), (0, 0)),  # no images
]
every_corner = pytest.mark.parametrize("window", CORNERS, ids=lambda w: "-".join(map(str, w)))


def arbitrary(shape: tuple[int, ...], seed: int = 0) -> F64:
    return np.random.default_rng(seed).normal(size=shape)


def padded_entry(x: F64, n: int, c: int, i: int, j: int) -> float:
    """The entry at row i and column j of an image that is zero outside."""
    inside = 0 <= i < x.shape[2] and 0 <= j < x.shape[3]
    return float(x[n, c, i, j]) if inside else 0.0


def entries(window: Window) -> Any:
    """Each place of unfolded rows, with the place (n, c, i, j) of the image it shows.

    From the docstring of unfold_rows.
    """
    for h, c, v, s, n in np.ndindex(window.unfolded_shape):
        column = s * window.stride[1] + v - window.padding[1]
        yield (h, c, v, s, n), (n, c, h - window.padding[0], column)


def naive_unfold(x: F64, window: Window) -> F64:
    unfolded = np.full(window.unfolded_shape, np.nan)
    for place, position in entries(window):
        unfolded[place] = padded_entry(x, *position)
    return unfolded


def naive_fold(unfolded: F64, window: Window) -> F64:
    x = np.zeros(window.shape)
    for place, (n, c, i, j) in entries(window):
        if 0 <= i < x.shape[2] and 0 <= j < x.shape[3]:
            x[n, c, i, j] += unfolded[place]
    return x


# --- unfold_rows and fold_rows -------------------------------------------------------------------


@every_corner
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unfold_rows_shows_every_window_of_every_row(
    backend: Backend, dtype: str, window: Window
) -> None:
    host = arbitrary(window.shape).astype(dtype)
    x = backend.asarray(host)
    unfolded = unfold_rows(x, *window[1:])
    assert backend_of(unfolded) == backend
    assert unfolded.dtype == x.dtype
    # Copies only: nothing is rounded.
    np.testing.assert_array_equal(
        xbp.to_numpy(unfolded), naive_unfold(host.astype(np.float64), window)
    )
    np.testing.assert_array_equal(xbp.to_numpy(x), host)


@every_corner
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fold_rows_adds_every_window_where_it_came_from(
    backend: Backend, dtype: str, window: Window
) -> None:
    host = np.round(arbitrary(window.unfolded_shape), 1) * 10  # integers: sums are exact
    unfolded = backend.asarray(host, dtype=dtype)
    x = fold_rows(unfolded, window.shape, *window[1:])
    assert backend_of(x) == backend
    assert x.dtype == unfolded.dtype
    assert tuple(x.shape) == window.shape
    np.testing.assert_array_equal(xbp.to_numpy(x), naive_fold(host, window))
    np.testing.assert_array_equal(xbp.to_numpy(unfolded), host)


@many
@given(window=problems(), seed=st.integers(0, 2**32))
def test_both_equal_the_loops_for_any_window(backend: Backend, window: Window, seed: int) -> None:
    x = np.round(10 * arbitrary(window.shape, seed))
    unfolded = np.round(10 * arbitrary(window.unfolded_shape, seed))
    found = unfold_rows(backend.asarray(x), *window[1:])
    np.testing.assert_array_equal(xbp.to_numpy(found), naive_unfold(x, window))
    found = fold_rows(backend.asarray(unfolded), window.shape, *window[1:])
    np.testing.assert_array_equal(xbp.to_numpy(found), naive_fold(unfolded, window))


@many
@given(window=problems(), seed=st.integers(0, 2**32))
def test_fold_rows_is_the_adjoint_of_unfold_rows(
    backend: Backend, window: Window, seed: int
) -> None:
    x, c = arbitrary(window.shape, seed), arbitrary(window.unfolded_shape, seed + 1)
    there = xbp.to_numpy(unfold_rows(backend.asarray(x), *window[1:])) * c
    back = x * xbp.to_numpy(fold_rows(backend.asarray(c), window.shape, *window[1:]))
    # Both are the same products of x and c in another order; a sum of m terms may be off by m
    # roundings (2^-53) of the sum of their sizes, and so may the sums inside fold_rows.
    roundings = 2 * (there.size + 16) * 2.0**-53
    assert abs(there.sum() - back.sum()) <= roundings * (np.abs(there).sum() + 1e-300)


@every_corner
def test_the_order_in_memory_does_not_matter(window: Window) -> None:
    x, unfolded = arbitrary(window.shape), arbitrary(window.unfolded_shape)
    inner = np.transpose(np.ascontiguousarray(np.transpose(x, (2, 1, 3, 0))), (3, 1, 0, 2))
    every_second = np.repeat(unfolded, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(unfold_rows(inner, *window[1:]), unfold_rows(x, *window[1:]))
    np.testing.assert_array_equal(
        fold_rows(every_second, window.shape, *window[1:]),
        fold_rows(unfolded, window.shape, *window[1:]),
    )


def test_a_window_that_is_the_whole_image_is_the_image() -> None:
    x = arbitrary((1, 2, 3, 4))
    rows = unfold_rows(x, (3, 4), (1, 1), (0, 0))
    assert rows.reshape(3, 2, 4).tolist() == x[0].transpose(1, 0, 2).tolist()


# --- the rest ------------------------------------------------------------------------------------


@given(window=problems())
def test_output_size_counts_the_windows_that_fit(window: Window) -> None:
    assert output_size(window.shape[2:], *window[1:]) == window.output


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        ((28, 28), (5, 5), (1, 1), (2, 2), (28, 28)),
        ((28, 28), (2, 2), (2, 2), (0, 0), (14, 14)),
        ((5, 7), (2, 3), (2, 2), (0, 1), (2, 4)),
        ((2, 9), (3, 9), (1, 5), (0, 0), (0, 1)),  # none fits along the height
    ],
)
def test_output_size_is_rounded_down(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, expected: Pair
) -> None:
    assert output_size(size, kernel, stride, padding) == expected


@given(window=problems())
def test_windows_name_each_place_once_with_as_many_rows_and_columns_as_there_are_windows(
    window: Window,
) -> None:
    places = []
    height, width = (size + 2 * p for size, p in zip(window.shape[2:], window.padding, strict=True))
    for i, j, rows, columns in windows(window.kernel, window.stride, window.output):
        places.append((i, j))
        starts = range(height)[rows], range(width)[columns]
        assert [*starts[0]] == [i + r * window.stride[0] for r in range(window.output[0])]
        assert [*starts[1]] == [j + s * window.stride[1] for s in range(window.output[1])]
    assert places == list(np.ndindex(window.kernel))


@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 0), (0, 1)])
@pytest.mark.parametrize("value", [0.0, 1.5, -np.inf])
def test_pad2d_frames_every_image_and_unpad2d_takes_the_frame_off(
    backend: Backend, value: float, padding: Pair
) -> None:
    host = arbitrary((2, 3, 4, 5)).astype(np.float32)
    x = backend.asarray(host)
    padded = pad2d(x, padding, value)
    frame = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    expected = np.pad(host, frame, constant_values=value)
    assert backend_of(padded) == backend
    assert padded.dtype == x.dtype
    np.testing.assert_array_equal(xbp.to_numpy(padded), expected)
    np.testing.assert_array_equal(xbp.to_numpy(unpad2d(padded, padding)), host)


def test_pad2d_frames_with_zeros_unless_told_otherwise_and_copies_only_where_it_must() -> None:
    x = arbitrary((1, 1, 2, 2))
    assert pad2d(x, (1, 1))[0, 0, 0].tolist() == [0.0] * 4
    assert pad2d(x, (0, 0)) is x
    pad2d(x, (1, 1))[...] = 7.0
    assert x.tolist() == arbitrary((1, 1, 2, 2)).tolist()


def test_unpad2d_is_a_view() -> None:
    x = np.zeros((1, 1, 4, 4))
    unpad2d(x, (1, 1))[...] = 1.0
    assert x.sum() == 4.0


def test_rows_first_and_images_undo_each_other_as_views(backend: Backend) -> None:
    host = arbitrary((2, 3, 4, 5))
    x = backend.asarray(host)
    rows = rows_first(x)
    assert tuple(rows.shape) == (4, 3, 5, 2)
    np.testing.assert_array_equal(xbp.to_numpy(as_nchw(rows)), host)
    as_nchw(rows)[1, 2, 3, 4] = 100.0
    assert float(xbp.to_numpy(x)[1, 2, 3, 4]) == 100.0
    assert float(xbp.to_numpy(rows)[3, 2, 4, 1]) == 100.0
