"""Every accelerator against its reference: odd sizes, batches that do not fill a block.

All arrays lie in guarded memory: a kernel that reads or writes outside of one ends the process.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from blocks import convolution_block, linear_block
from layouts import LAYOUTS, assert_close, contiguous, elsewhere, rows_first, unaligned
from numpy.typing import NDArray

from xbp import accelerators, primitives
from xbp.accelerators.cpu import affine, convolution, elementwise, native, product
from xbp.errors import InputError

pytestmark = [
    pytest.mark.skipif(native.library() is None, reason=native.status()),
    pytest.mark.usefixtures("threads", "guards"),
]

Real = NDArray[Any]


# n, c, h, w, o, (kh, kw), stride, padding, relu, pool
CONVOLUTIONS = [
    (37, 1, 28, 28, 6, (5, 5), (1, 1), (2, 2), True, (2, 2)),
    (20, 6, 14, 14, 16, (5, 5), (1, 1), (0, 0), True, (2, 2)),
    (4, 2, 7, 6, 5, (3, 3), (1, 1), (1, 1), False, (1, 1)),
    (18, 3, 11, 9, 9, (3, 2), (2, 1), (1, 0), True, (1, 1)),
    (17, 2, 9, 10, 4, (2, 2), (3, 2), (1, 1), False, (2, 1)),
    (5, 4, 8, 8, 20, (3, 3), (1, 1), (2, 2), False, (3, 3)),
    (16, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), True, (1, 1)),
    (1, 2, 9, 8, 5, (3, 3), (1, 1), (1, 1), True, (2, 2)),
    (33, 7, 5, 5, 7, (5, 5), (1, 1), (4, 4), True, (4, 2)),
    (9, 3, 12, 4, 3, (1, 4), (4, 3), (0, 3), True, (1, 1)),
    # As wide as high only with their frame; one row, and more only with it:
    (6, 2, 5, 3, 3, (2, 2), (1, 1), (0, 1), False, (1, 1)),
    (6, 3, 1, 6, 4, (2, 3), (1, 1), (1, 0), False, (1, 1)),
    (5, 1, 20, 8, 8, (3, 3), (1, 1), (1, 1), False, (1, 1)),  # several bands of rows
    (5, 2, 8, 8, 3, (3, 3), (1, 1), (1, 1), True, (3, 2)),
    (5, 2, 8, 8, 3, (3, 3), (1, 1), (1, 1), False, (2, 3)),
    # Channels enough for Winograd's products, forward and backward:
    (17, 8, 9, 8, 8, (3, 3), (1, 1), (1, 1), False, (1, 1)),
    (18, 9, 6, 7, 17, (3, 3), (1, 1), (1, 1), True, (2, 2)),
    (5, 10, 8, 5, 12, (2, 3), (2, 1), (1, 2), True, (1, 1)),
    (16, 8, 7, 11, 9, (3, 3), (1, 1), (0, 0), False, (1, 1)),
    (33, 8, 9, 8, 8, (3, 3), (1, 1), (1, 1), True, (1, 2)),
    (20, 11, 9, 9, 8, (4, 3), (1, 1), (3, 0), True, (3, 1)),
    (3, 8, 8, 8, 8, (3, 3), (2, 2), (1, 1), False, (1, 1)),  # only backward
    (2, 8, 12, 6, 8, (1, 3), (3, 1), (0, 1), False, (1, 1)),  # rows that no kernel sees
    (18, 3, 5, 10, 5, (1, 2), (1, 3), (0, 0), False, (1, 1)),  # columns that none sees
    (5, 9, 9, 16, 9, (3, 3), (2, 2), (1, 1), True, (1, 1)),
    (5, 3, 4, 2, 3, (3, 3), (2, 4), (1, 1), False, (1, 1)),  # fewer columns than a stride
    # Several chunks of tiles, of several rows or parts of one; windows across two chunks:
    (17, 24, 34, 9, 24, (3, 3), (1, 1), (1, 1), False, (1, 1)),
    (6, 24, 34, 8, 25, (3, 3), (1, 1), (1, 1), True, (3, 2)),
    (6, 40, 5, 50, 16, (3, 3), (1, 1), (2, 2), False, (1, 1)),
    (18, 24, 18, 9, 24, (3, 3), (1, 1), (1, 1), True, (1, 1)),
    # Vectors of positions: images one by one, positions one by one, all rows at once, groups of
    # columns and of positions, rows one by one:
    (5, 17, 5, 4, 3, (1, 1), (1, 1), (0, 0), True, (1, 1)),
    (33, 8, 4, 5, 17, (5, 5), (1, 1), (2, 2), True, (1, 1)),
    (2, 3, 7, 9, 20, (3, 3), (1, 1), (1, 1), True, (2, 2)),
    (2, 209, 3, 45, 2, (3, 1), (1, 1), (0, 0), False, (1, 1)),
    (8, 1, 20, 16, 50, (1, 1), (1, 1), (0, 0), False, (1, 1)),
    (4, 2, 5, 40, 9, (3, 2), (1, 1), (1, 0), True, (1, 1)),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolution(case: Any, layout: str, dtype: str) -> None:
    n, c, h, w, o, kernel, stride, padding, relu, pool = case
    rng = np.random.default_rng(0)
    x = LAYOUTS[layout](rng.normal(size=(n, c, h, w)).astype(dtype))
    weight = contiguous(rng.normal(size=(o, c, *kernel)).astype(dtype))
    bias = contiguous(rng.normal(size=2 * o).astype(dtype))
    bias = bias[::2] if layout == "mirrored" else bias[o:]  # with gaps, up to the end of memory
    window: dict[str, Any] = {"stride": stride, "padding": padding, "relu": relu, "pool": pool}
    y, backward = elsewhere(convolution.convolve, x, weight, bias, **window)
    double = [a.astype(np.float64) for a in (x, weight, bias)]
    with accelerators.disabled():
        truth, true_backward = convolution_block(*double, **window)
    assert y.dtype == dtype
    terms = c * math.prod(kernel)
    assert_close(y, truth, terms)
    dy = LAYOUTS[layout](rng.normal(size=y.shape).astype(dtype))
    with accelerators.disabled():
        true_dx, true_dw, true_db = true_backward(dy.astype(np.float64))
    dx, dw, db = elsewhere(backward, dy)
    assert_close(dx, true_dx, o * math.prod(kernel))
    assert_close(dw, true_dw, n * math.prod(truth.shape[2:]))
    assert_close(db, true_db, n * math.prod(truth.shape[2:]))
    without, dw_again, db_again = elsewhere(backward, dy, False)
    assert without is None
    assert np.array_equal(dw, dw_again)
    assert np.array_equal(db, db_again)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [(2, 2), (3, 1)])
def test_the_first_of_equal_maxima_has_the_gradient(
    pool: tuple[int, int], relu: bool, dtype: str
) -> None:
    """Small integers, many of them equal, whose sums are exact."""
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.integers(-1, 2, shape).astype(dtype) for shape in ((19, 2, 8, 7), (3, 2, 2, 2), (3,))
    )
    window: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "relu": relu, "pool": pool}
    y, backward = elsewhere(convolution.convolve, x, weight, bias, **window)
    dy = rng.integers(-2, 3, y.shape).astype(dtype)
    with accelerators.disabled():
        truth, true_backward = convolution_block(x, weight, bias, **window)
        expected = true_backward(dy)
    np.testing.assert_array_equal(y, truth)
    for found, right in zip(elsewhere(backward, dy), expected, strict=True):
        np.testing.assert_array_equal(found, right)


# n, c, h, w, kernel, stride, padding
POOLS = [
    (17, 3, 6, 7, (2, 2), (2, 2), (0, 0)),
    (5, 1, 9, 9, (3, 3), (2, 2), (1, 1)),
    (4, 2, 8, 5, (3, 2), (1, 1), (1, 1)),
    (33, 2, 7, 7, (2, 3), (3, 4), (0, 1)),
    (16, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
]


@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_pooling(case: Any, layout: str, kind: str, dtype: str) -> None:
    n, c, h, w, *window = case
    rng = np.random.default_rng(0)
    # Few values, so that maxima are tied: the first one must win.
    x = LAYOUTS[layout](rng.integers(-2, 3, (n, c, h, w)).astype(dtype))
    options = dict(zip(("kernel_size", "stride", "padding"), window, strict=True))
    y, backward = elsewhere(getattr(convolution, kind), x, **options)
    truth, true_backward = getattr(primitives, kind).reference(x.astype(np.float64), **options)
    assert_close(y, truth, math.prod(window[0]))
    dy = LAYOUTS[layout](rng.normal(size=y.shape).astype(dtype))
    (dx,), (true_dx,) = elsewhere(backward, dy), true_backward(dy.astype(np.float64))
    assert_close(dx, true_dx, math.prod(window[0]))
    assert backward(dy, False) == (None,)
    if window[0] == (1, 1):
        assert np.array_equal(dx, dy)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_average_of_more_places_than_a_byte_tells_apart(layout: str, dtype: str) -> None:
    test_pooling((3, 2, 20, 40, (18, 20), (1, 20), (0, 0)), layout, "average_pool", dtype)


def test_a_mean_goes_back_exactly(dtype: str) -> None:
    """Equal in each image to the last bit of 1/3, which is 1."""
    x = np.ones((35, 2, 4, 4), dtype)
    y, backward = convolution.average_pool(x, kernel_size=(2, 2), stride=(2, 2))
    third = np.asarray(1, dtype) / 3
    assert np.all(backward(np.full(y.shape, third))[0] == third / 4)


@pytest.mark.parametrize("shape", [(40_001,), (300, 200), (5, 7, 40, 33)])
def test_rectify(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = contiguous(rng.normal(size=shape).astype(dtype))
    x = x.transpose() if len(shape) == 4 else x
    dy = rng.normal(size=x.shape).astype(dtype)  # laid out otherwise
    y, backward = elementwise.rectify(x)
    assert np.array_equal(y, np.maximum(x, 0)) and y.strides == x.strides
    assert np.array_equal(backward(dy)[0], dy * (x > 0))


@pytest.mark.parametrize("shape", [(40_001,), (5, 7, 40, 33)])
def test_add(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, other = (contiguous(rng.normal(size=shape).astype(dtype)).transpose() for _ in range(2))
    other[0], other[1], other[2] = np.nan, np.inf, -np.inf
    y = elementwise.add(x, other)
    assert np.array_equal(y, x + other, equal_nan=True) and y.strides == x.strides
    assert elementwise.add(x[::2], other[::2]) is NotImplemented  # too small, or with gaps
    assert elementwise.add(x, other.astype("f2")) is NotImplemented
    assert elementwise.add(x, x[:1]) is NotImplemented
    if len(shape) > 1:
        assert elementwise.add(x, other.copy("C")) is NotImplemented  # another order in memory


@pytest.mark.parametrize(
    "shape", [(128, 400, 120), (65, 90, 5000), (4096, 512, 1), (301, 300, 17), (37, 200, 99)]
)
@pytest.mark.parametrize("stored", ["as such", "transposed", "in a larger one"])
def test_matmul(shape: tuple[int, int, int], stored: str, dtype: str, threads: int) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)

    def draw(rows: int, columns: int) -> Real:
        if stored == "in a larger one":
            return contiguous(rng.normal(size=(rows + 2, columns + 3)).astype(dtype))[1:-1, 2:-1]
        if stored == "transposed":
            return contiguous(rng.normal(size=(columns, rows)).astype(dtype)).T
        return contiguous(rng.normal(size=(rows, columns)).astype(dtype))

    a, b = draw(m, k), draw(k, n)
    c = product.matmul(a, b)
    direct = math.prod(shape) <= product.most_direct() and stored != "transposed" and n > 16
    blocked = product.is_blocked(m, n, math.prod(shape))
    if not (direct or blocked) and (product.blas(np.dtype(dtype)) is None or threads == 1):
        assert c is NotImplemented
        return
    assert c.dtype == dtype
    assert_close(c, a.astype("f8") @ b.astype("f8"), k)


@pytest.mark.parametrize(
    "shape", [(128, 128, 130), (37, 1030, 70), (532, 4099, 66), (16, 4200, 64)], ids=str
)
def test_products_by_blocks(
    shape: tuple[int, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.lanes(4) < 16:
        pytest.skip("a BLAS is faster with vectors of less than 64 bytes")
    monkeypatch.setattr(product, "most_direct", lambda: 0)
    (m, k, n), some = shape, np.random.default_rng(3).normal(size=1009).astype(dtype)
    left, right = np.resize(some, (m, k)), np.resize(some[::-1], (k, n))
    truth = left.astype("f8") @ right.astype("f8")
    for turned in (False, True):
        a, b = (contiguous(x.T).T if turned else contiguous(x) for x in (left, right))
        found = []
        for threads in (1, 3):
            monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
            found.append(product.matmul(a, b))
        assert_close(found[0], truth, k)
        assert np.array_equal(*found)


def test_matmul_declines_what_blas_cannot_read(dtype: str) -> None:
    a = np.ones((300, 300), dtype)
    for left, right in [
        (np.ones((300, 600), dtype)[:, ::2], a),
        (a[::-1], a),
        (np.broadcast_to(a[0], (300, 300)), a),
        (a, a.astype("f8" if dtype == "float32" else "f4")),
        (np.ones((2, 300, 300), dtype), a),
        (a[:4, :4], a[:4, :4]),
        (unaligned(a), a),
    ]:
        assert product.matmul(left, right) is NotImplemented
        assert np.array_equal(primitives.matmul(left, right), np.matmul(left, right))
    with pytest.raises(ValueError, match="matmul"):
        primitives.matmul(a, a[:200])


# rows, in, out: tiles, panels and vectors that are full, and that are not
AFFINES = [
    (128, 400, 120),
    (130, 790, 129),
    (37, 33, 70),
    (4, 16, 1),
    (7, 90, 17),
    (65, 64, 65),
    (300, 21, 150),
]


@pytest.mark.parametrize("shape", AFFINES, ids=str)
@pytest.mark.parametrize("layout", ["row-major", "transposed", "unaligned"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_affine(
    shape: tuple[int, int, int], layout: str, relu: bool, bias: bool, dtype: str
) -> None:
    rng = np.random.default_rng(0)

    def draw(*sizes: int) -> Real:
        array = rng.normal(size=sizes).astype(dtype)
        if layout == "transposed":
            return contiguous(array.T).T
        return unaligned(array) if layout == "unaligned" else contiguous(array)

    rows, features, out = shape
    x, weight, b = draw(rows, features), draw(out, features), draw(out) if bias else None
    if math.prod(shape) > product.most_direct():  # of this level
        assert affine.affine(x, weight, b, relu=relu) is NotImplemented
        return
    y, backward = elsewhere(affine.affine, x, weight, b, relu=relu)
    wide = None if b is None else b.astype("f8")
    with accelerators.disabled():
        truth, true_backward = linear_block(x.astype("f8"), weight.astype("f8"), wide, relu=relu)
    assert y.dtype == dtype
    assert_close(y, truth, features)
    dy = draw(rows, out)
    # Where y is within rounding of 0, only y itself says whether the rectifier passed it.
    dy[np.abs(truth) < 1e-4] = 0
    given = [array.copy() for array in (x, weight, dy)]
    dx, dweight, dbias = elsewhere(backward, dy)
    true_dx, true_dweight, true_dbias = true_backward(dy.astype("f8"))
    assert_close(dx, true_dx, out)
    assert_close(dweight, true_dweight, rows)
    if bias:
        assert_close(dbias, true_dbias, rows)
    else:
        assert dbias is None
    without_dx, *same = elsewhere(backward, dy, False)
    assert without_dx is None
    assert all(np.array_equal(a, b) for a, b in zip(same, (dweight, dbias), strict=True) if bias)
    assert all(np.array_equal(a, b) for a, b in zip((x, weight, dy), given, strict=True))


def test_affine_of_just_enough_features(dtype: str) -> None:
    lanes = native.lanes(np.dtype(dtype).itemsize)
    x, weight = np.ones((4, lanes), dtype), np.ones((3, lanes), dtype)
    assert np.array_equal(affine.affine(x, weight, None)[0], np.full((4, 3), lanes))
    assert affine.affine(x[:, 1:], weight[:, 1:], None) is NotImplemented


def test_affine_of_any_number_of_leading_axes(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 5, 40)).astype(dtype), rng.normal(size=(9, 40)).astype(dtype)
    y, backward = affine.affine(x, weight, None)
    assert_close(y, x.astype("f8") @ weight.astype("f8").T, 40)
    dx, dweight, _ = backward(y)
    assert_close(dx, y.astype("f8") @ weight, 9)
    assert_close(dweight, np.einsum("abo,abi->oi", y.astype("f8"), x), 15)
    with pytest.raises(InputError, match="has shape"):
        backward(y[:, :4])


def test_affine_declines_what_it_is_not_made_for(dtype: str) -> None:
    x, weight, bias = np.ones((8, 32), dtype), np.ones((5, 32), dtype), np.ones(5, dtype)
    other = "f8" if dtype == "float32" else "f4"
    for arguments in [
        (x[:3], weight, bias),  # too few rows
        (x[:, :1], weight[:, :1], bias),  # less than a vector of features
        (x[:, :31], weight, bias),
        (x[0, 0], weight, bias),
        (x, weight.astype(other), bias),
        (x, weight, bias.astype(other)),
        (x, weight, np.ones(1, dtype)),
        (x.astype("f2"), weight.astype("f2"), bias.astype("f2")),
        (np.ones((600, 600), dtype), np.ones((600, 600), dtype), None),  # a BLAS is faster
    ]:
        assert affine.affine(*arguments) is NotImplemented


@pytest.mark.parametrize("shape", [(37, 3, 5, 4), (2, 1, 2, 1), (64, 16, 5, 5), (17, 2, 3, 3)])
def test_flatten(shape: tuple[int, ...], dtype: str) -> None:
    x = rows_first(np.random.default_rng(0).normal(size=shape).astype(dtype))
    for given in (x, unaligned_rows(x)):
        y, backward = elsewhere(convolution.flatten, given)
        assert y.flags.c_contiguous and np.array_equal(y, x.reshape(len(x), -1))
        assert np.array_equal(backward(y)[0], x)
    assert convolution.flatten(np.ascontiguousarray(x)) is NotImplemented
    assert convolution.flatten(x[:0]) is NotImplemented
    assert convolution.flatten(x[:, 0, 0]) is NotImplemented
    assert convolution.flatten(x.astype("f2")) is NotImplemented


def unaligned_rows(x: Real) -> Real:
    """Like `rows_first`, but not aligned."""
    return unaligned(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


def test_matmul_gives_the_blas_its_threads_back() -> None:
    functions = product.blas(np.dtype("float64"))
    if functions is None:
        pytest.skip("numpy has another BLAS")
    count = ctypes.CFUNCTYPE(ctypes.c_int)(functions[1])
    change = ctypes.CFUNCTYPE(None, ctypes.c_int)(functions[2])
    before, a = count(), np.ones((300, 300))
    for threads in (before, before + 1):  # its own value, and the value that was set
        change(threads)
        try:
            with ThreadPoolExecutor(4) as executor:
                results = list(executor.map(primitives.matmul, [a] * 40, [a] * 40))
            assert count() == threads
        finally:
            change(before)
        assert all(np.array_equal(c, a @ a) for c in results)


@pytest.mark.parametrize("labels", ["int64", "uint8", "int32", "longlong", ">i8"])
def test_cross_entropy(labels: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = contiguous((10 * rng.normal(size=(13, 7))).astype(dtype))
    target = rng.integers(0, 7, 13).astype(labels)
    value, gradient = elementwise.cross_entropy(logits, target, 0.5)
    reference = primitives.cross_entropy.reference  # type: ignore[attr-defined]
    truth, true_gradient = reference(logits.astype("f8"), target, 0.5)
    assert value.dtype == dtype and np.shape(value) == ()
    assert_close(np.asarray(value), truth, 13)
    assert_close(gradient, true_gradient, 7)
    assert elementwise.cross_entropy(logits, target[:5], 0.5) is NotImplemented
    assert elementwise.cross_entropy(logits, target.astype(dtype), 0.5) is NotImplemented
    for wrong in (7, -1):
        target = target.astype("int64")
        target[5] = wrong
        assert elementwise.cross_entropy(logits, target, 0.5) is NotImplemented


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 2), (3, 5), (33, 2), (64, 4), (37, 8), (259, 10), (16, 16), (5, 17), (2, 70)],
)
def test_cross_entropy_of_any_size_and_memory_order(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(1)
    logits, target = (
        (30 * rng.normal(size=shape)).astype(dtype),
        rng.integers(0, shape[1], shape[0]),
    )
    if shape[1] > 4:
        logits[0, (target[0] + 1) % shape[1]] = -np.inf  # p = 0
        logits[-1, (target[-1] + 2) % shape[1]] -= 1000
    reference = primitives.cross_entropy.reference  # type: ignore[attr-defined]
    with np.errstate(invalid="ignore"):  # 0 · ∞, which it leaves out afterwards
        truth, true_gradient = reference(logits.astype("f8"), target, 0.5)
    apart = np.repeat(target, 2)[::2]
    for z, t in ((contiguous(logits), target), (np.asfortranarray(logits), apart)):
        value, gradient = elementwise.cross_entropy(z, t, 0.5)
        assert_close(np.asarray(value), truth, shape[0])
        # e^d errs by |d| ulp, d = z - top being rounded, and is at most 1/|d| e⁻¹ of the largest
        assert_close(gradient, true_gradient, shape[1] + 3)


def test_cross_entropy_has_the_same_bits_with_any_number_of_threads(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, (n, c) = np.random.default_rng(2), (3000, 7)
    logits, target = rng.normal(size=(n, c)).astype(dtype), rng.integers(0, c, n)
    value, gradient = elementwise.cross_entropy(logits, target, 1 / n)
    reference = primitives.cross_entropy.reference  # type: ignore[attr-defined]
    truth, true_gradient = reference(logits.astype("f8"), target, 1 / n)
    assert_close(np.asarray(value), truth, 2)
    assert_close(gradient, true_gradient, 1 / n)
    for threads in (2, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        again, same = elementwise.cross_entropy(logits, target, 1 / n)
        assert again == value and np.array_equal(same, gradient)


def test_nan_and_infinity_come_out_as_from_the_reference(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(16, 1, 6, 6)).astype(dtype)
    x[0, 0, 1, 1], x[1, 0, 2, 2], x[2, 0, 3, 3] = np.nan, np.inf, -np.inf
    weight = np.ones((1, 1, 1, 1), dtype)

    def outputs(run: Callable[[], Any]) -> list[Real]:
        y, backward = run()
        return [y, *(g for g in backward(np.ones_like(y)) if g is not None)]

    def block() -> Any:
        return convolution_block(x, weight, relu=True, pool=(2, 2))

    def pool() -> Any:
        return primitives.max_pool(x, kernel_size=(2, 2), stride=(2, 2))

    def rectified() -> Any:
        return primitives.rectify(np.tile(x, (300, 1, 1, 1)))

    def linear() -> Any:
        rows = x.reshape(16, 36)
        return linear_block(rows, np.ones((7, 36), dtype), np.ones(7, dtype), relu=True)

    with np.errstate(invalid="ignore"):
        for run in (block, pool, rectified, linear):
            fast = outputs(run)
            with accelerators.disabled():
                slow = outputs(run)
            for a, b in zip(fast, slow, strict=True):
                # Sums over the batch: another order, a few roundings.
                np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "huge"])
@pytest.mark.parametrize("whose", ["x", "weight", "dy"])
@pytest.mark.parametrize("index", [1, -1])  # in the first block of images, or the last
def test_what_is_not_moderate_is_multiplied_directly(
    value: Any, whose: str, index: int, dtype: str
) -> None:
    """Winograd's differences would make nan of an infinity, and overflow where products do not."""
    rng = np.random.default_rng(0)
    shapes = {"x": (18, 8, 7, 9), "weight": (9, 8, 3, 3), "dy": (18, 9, 5, 7)}
    own = {name: contiguous(rng.normal(size=shape).astype(dtype)) for name, shape in shapes.items()}
    if value == "huge":
        value = np.finfo(dtype).max / 2
    own[whose][index, 2, 1, 2] = value

    def outputs(convolve: Callable[..., Any]) -> list[Real]:
        y, backward = convolve(own["x"], own["weight"])
        # A weight that is not finite meets the zeros around dy, of which the kernel skips some.
        return [y, *backward(own["dy"])[: 0 if whose == "weight" else 2]]

    with np.errstate(all="ignore"):
        pairs = zip(
            outputs(convolution.convolve), outputs(primitives.convolve.reference), strict=True
        )
        for fast, slow in pairs:
            np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_declined() -> None:
    x, weight = np.ones((8, 1, 5, 5)), np.ones((1, 1, 3, 3))
    assert convolution.convolve(x[:0], weight) is NotImplemented
    assert convolution.convolve(x, weight, padding=(3, 0)) is NotImplemented
    assert convolution.convolve(x, weight, padding=((0, 1), (0, 0))) is NotImplemented
    assert convolution.convolve(x, weight, stride=(1, 2), dilation=(1, 2)) is NotImplemented
    two = np.ones((8, 2, 5, 5)), np.ones((2, 1, 3, 3))
    assert convolution.convolve(*two, groups=2) is NotImplemented  # too small
    assert convolution.convolve(x, weight, np.ones(2)) is NotImplemented
    assert convolution.convolve(x, weight, np.ones(1, "f4")) is NotImplemented
    whole = np.ones((200, 200), np.int64)
    assert product.matmul(whole, whole) is NotImplemented
    half = [array.astype("f2") for array in (x, weight, np.ones(1))]
    assert convolution.convolve(*half) is NotImplemented
    large = {"kernel_size": (16, 16), "stride": (1, 1)}
    assert convolution.max_pool(np.ones((8, 1, 20, 20)), **large) is NotImplemented


@pytest.mark.parametrize(("images", "size", "kernels_do_it"), [(1, 64, False), (1, 8, True)])
def test_few_images_leave_lanes_empty(images: int, size: int, kernels_do_it: bool) -> None:
    """With many products at a stride a BLAS is faster for them."""
    if native.lanes(8) < 8:
        pytest.skip("a vector holds fewer than 8 numbers here")
    x, weight = np.ones((images, 16, size, size)), np.ones((16, 16, 3, 3))
    for more in (0, 1):
        x = np.concatenate([x] * (1 + more))
        found = convolution.convolve(x, weight, stride=(2, 2), padding=(1, 1))
        assert (found is not NotImplemented) == (kernels_do_it or more > 0)
        assert convolution.convolve(x, weight, padding=(1, 1)) is not NotImplemented


# n, c, o, kernel, pixels; for vectors of 16 lanes
OF_POSITIONS = [
    (1, 1, 6, (5, 5), 784),
    (2, 3, 5, (3, 3), 64),
    (128, 64, 64, (1, 1), 64),
    (64, 32, 16, (5, 5), 64),
]
OF_IMAGES = [
    (32, 1, 6, (5, 5), 784),  # LeNet-5
    (32, 6, 16, (5, 5), 100),
    (64, 64, 64, (3, 3), 1024),  # VGG, ResNet
    (16, 3, 64, (3, 3), 1024),
    (512, 8, 3, (1, 1), 64),
    (512, 3, 64, (1, 1), 196),
]


@pytest.mark.parametrize("case", OF_POSITIONS + OF_IMAGES, ids=str)
def test_what_a_vector_holds(case: Any) -> None:
    assert convolution.by_positions(*case, 16) == (case in OF_POSITIONS)


def test_many_images_in_row_major_order_are_rearranged_block_by_block() -> None:
    found = [convolution.by_positions(32, 64, 16, (1, 1), 64, 16, order) for order in (True, False)]
    assert found == [True, False]


@pytest.mark.parametrize("n", [2, 33])
@pytest.mark.parametrize("o", [3, 20])
def test_taps_apart_from_each_other(n: int, o: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = (
        rng.normal(size=shape).astype(dtype) for shape in ((n, 9, 6, 7), (o, 9, 3, 2), (o,))
    )
    window: dict[str, Any] = {"padding": (3, 1), "dilation": (2, 3)}
    y, backward = elsewhere(convolution.convolve, x, weight, bias, **window)
    double = [a.astype(np.float64) for a in (x, weight, bias)]
    truth, true_backward = primitives.convolve.reference(*double, **window)
    assert_close(y, truth, 54)
    dy = rng.normal(size=y.shape).astype(dtype)
    gradients, true_gradients = elsewhere(backward, dy), true_backward(dy.astype(np.float64))
    for found, right in zip(gradients, true_gradients, strict=True):
        assert_close(found, right, n * y[0].size)


def test_a_window_larger_than_the_output_of_a_convolution() -> None:
    x, weight = np.ones((2, 3, 4, 4)), np.ones((2, 3, 3, 3))
    y, backward = convolution.convolve(x, weight, pool=(3, 1))
    assert y.shape == (2, 2, 0, 2)
    assert not any(np.any(gradient) for gradient in backward(y)[:2])


@pytest.mark.parametrize("kind", ["convolve", "max_pool", "average_pool", "rectify"])
def test_a_gradient_of_another_dtype_or_shape(kind: str) -> None:
    """Kernels trust their arguments, so arguments must be checked before."""
    x = np.random.default_rng(0).normal(size=(8, 2, 60, 60)).astype("float32")
    weight = [x[:3, :, :3, :3]] if kind == "convolve" else []
    window = {"kernel_size": (2, 2), "stride": (2, 2)} if kind.endswith("pool") else {}
    y, backward = getattr(primitives, kind)(x, *weight, **window)
    dy = np.random.default_rng(1).normal(size=y.shape)
    both = [backward(d) for d in (dy, dy.astype("float32"))]
    for a, b in zip(*both, strict=True):
        assert (a is b is None) or np.array_equal(a, b)
    for wrong in (dy[:3], dy[..., :-1], dy[0, 0, 0]):
        with pytest.raises(InputError, match="shape"):
            backward(wrong)


def test_weights_of_another_dtype_are_declined() -> None:
    x, weight = np.ones((8, 2, 5, 5), "float32"), np.ones((3, 2, 3, 3))
    assert convolution.convolve(x, weight) is NotImplemented
    single = weight.astype("float32")
    assert convolution.convolve(x, single, np.ones(3)) is NotImplemented
    assert convolution.convolve(x, single[:, :1]) is NotImplemented
