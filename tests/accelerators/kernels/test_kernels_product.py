"""Matrix products and affine maps, emulated on the CPU, against their references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from blocks import linear_block
from layouts import Real, assert_close

from xbp import primitives
from xbp.accelerators.cuda import (
    convolution,
    cross_entropy,
    passes,
    philox,
    pooling,
    product,
)
from xbp.errors import InputError

pytestmark = needs_a_compiler


# m, k, n
PRODUCTS = [(64, 400, 120), (1, 1, 1), (17, 129, 33), (5, 3, 70), (700, 20, 900), (130, 65, 4)]


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("stored", ["as such", "transposed", "in a larger one", "mirrored"])
def test_matmul(shape: Any, stored: str, dtype: str, machine: Emulation) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)

    def draw(rows: int, columns: int) -> Real:
        a = rng.normal(size=(rows + 2, columns + 3)).astype(dtype)
        if stored == "in a larger one":
            return a[1:-1, 2:-1]
        a = machine.guarded(a[2:, 3:].copy())
        if stored == "mirrored":
            return a[::-1, ::-1]
        return machine.guarded(a.T.copy()).T if stored == "transposed" else a

    a, b = draw(m, k), draw(k, n)
    c = product.matmul(a, b)
    assert c.dtype == dtype and machine.launches == ["multiply"]
    assert_close(c, a.astype("f8") @ b.astype("f8"), k)


def test_matmul_of_many_axes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4, 5)), rng.normal(size=(5, 2))
    assert_close(product.matmul(a, b), a @ b, 5)
    same = np.broadcast_to(a[0, 0], (6, 5))
    assert_close(product.matmul(same, b), same @ b, 5)
    for left, right in [(a, rng.normal(size=(3, 5, 2))), (a[0, 0], b), (a, b[:4]), (a[:0], b)]:
        assert product.matmul(left, right) is NotImplemented
    assert product.matmul(a, b.astype("f4")) is NotImplemented
    wide = np.broadcast_to(b[:, :1], (5, 2**20))
    np.testing.assert_array_equal(
        product.matmul(a[:1], wide), product.matmul(a[:1], wide[:, :1]).repeat(2**20, -1)
    )


# rows, in, out
AFFINE = [((64,), 400, 120), ((3, 4), 5, 2), ((1,), 1, 1), ((130,), 33, 129), ((900,), 7, 700)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("case", AFFINE, ids=str)
def test_affine(case: Any, relu: bool, with_bias: bool, dtype: str, machine: Emulation) -> None:
    rows, features, out = case
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Real:
        return rng.normal(size=shape).astype(dtype)

    x, weight = machine.guarded(draw(features, *rows).T), machine.guarded(draw(out, features))
    x = x.T.reshape(features, -1).T.reshape(*rows, features)  # or a copy of it
    bias = machine.guarded(draw(2 * out))[::2] if with_bias else None
    y, backward = product.affine(x, weight, bias, relu=relu)
    dy = machine.guarded(draw(*y.shape[::-1]).T)
    double = [None if a is None else a.astype("f8") for a in (x, weight, bias)]
    truth, true_backward = linear_block(*double, relu=relu)
    count = math.prod(rows)
    found, true = [y, *backward(dy)], [truth, *true_backward(dy.astype("f8"), True)]
    assert (found[3] is None) is (not with_bias)
    for a, b, terms in zip(found, true, (features, out, count, count), strict=True):
        if b is not None:
            assert a.dtype == dtype
            assert_close(a, b, terms)
    without, *others = backward(dy, False)
    assert without is None and np.array_equal(others[0], found[2])
    with pytest.raises(InputError, match="shape"):
        backward(dy[..., :0])


@pytest.mark.parametrize("rows", [5, 20, 1])
def test_the_gradient_of_the_input_is_stored_as_the_input(rows: int, machine: Emulation) -> None:
    """Images of a convolution, flattened, have the batch innermost; so no copy is needed."""
    rng = np.random.default_rng(0)
    x = machine.guarded(rng.normal(size=(6, rows))).T
    weight, delta = rng.normal(size=(3, 6)), rng.normal(size=(rows, 3))
    y, backward = product.affine(x, weight)
    (dx, dweight, _), (dx_by_rows, *others) = (
        backward(delta),
        product.affine(x.copy(), weight)[1](delta),
    )
    assert dx.T.flags.c_contiguous and dx_by_rows.flags.c_contiguous
    assert np.array_equal(dx, dx_by_rows) and np.array_equal(dweight, others[0])
    assert_close(dx, delta @ weight, 3)
    assert_close(y, x @ weight.T, 6)


def test_affine_declines_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = np.ones((3, 5)), np.ones((2, 5)), np.ones(2)
    for given in [
        (x[0], weight, bias),
        (x[:, :4], weight, bias),
        (x, weight[None], bias),
        (x, weight, bias[:1]),
        (x, weight.astype("f4"), bias),
        (x, weight, bias.astype("f4")),
        (x[:0], weight, bias),
    ]:
        assert product.affine(*given) is NotImplemented
    monkeypatch.setattr(product, "LEAST_LARGE", 31)
    assert product.affine(x, weight, bias)[0].tolist() == [[6.0, 6.0]] * 3
    monkeypatch.setattr(product, "LEAST_LARGE", 30)
    assert product.affine(x, weight, bias, relu=True) is NotImplemented


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_large_linear_layer(
    biased: bool, shape: Any, order: int, dtype: str, machine: Emulation, monkeypatch: Any
) -> None:
    """By products of its own, whose gradients may be computed in either order."""
    monkeypatch.setattr(product, "LEAST_LARGE", 0)
    machine.order, seen = order, []

    def multiply(a: Real, b: Real, c: Real, rounded: str) -> bool:
        seen.append((*a.shape, b.shape[1]))
        c[...] = a @ b
        return not rounded

    monkeypatch.setattr(machine, "multiply", multiply)
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.normal(size=s).astype(dtype) for s in (shape, (4, 5), 4, (6, 4)))
    y, backward = product.affine(x, weight, bias if biased else None)
    dy = dy.reshape(y.shape)
    found, (none, *others) = (y, *backward(dy)), backward(dy, False)
    expected, reference = primitives.affine.reference(  # type: ignore[attr-defined]
        *(array.astype("f8") for array in (x, weight)), bias.astype("f8") if biased else None
    )
    for one, right in zip(found, (expected, *reference(dy.astype("f8"))), strict=True):
        if right is None:
            assert one is None
        else:
            assert one.dtype == dtype
            assert_close(one, right, 6)
    assert none is None and np.array_equal(others[0], found[2])
    both = [(4, 6, 5), (6, 4, 5)]
    assert seen == [(6, 5, 4), *(both[::-1] if order else both), (4, 6, 5)]
    with pytest.raises(InputError, match="has shape"):
        backward(dy[:1])


def test_large_products_are_for_cublas(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "LEAST_LARGE", 30)

    def multiply(a: Real, b: Real, c: Real, rounded: str) -> bool:
        assert not rounded
        c[...] = -(a @ b)
        return True

    monkeypatch.setattr(machine, "multiply", multiply)
    a, b = np.arange(15.0).reshape(3, 5), np.arange(10.0).reshape(5, 2)
    assert np.array_equal(product.matmul(a[:2], b), a[:2] @ b)
    assert machine.launches == ["multiply"]
    assert np.array_equal(product.matmul(a.reshape(3, 1, 5), b), -(a @ b).reshape(3, 1, 2))
    assert machine.launches == ["multiply"]
    monkeypatch.setattr(machine, "multiply", lambda *given: False)
    assert np.array_equal(product.matmul(a, b), a @ b)


# m, k, n
DIVIDED = [(33, 530, 18), (64, 1024, 40), (7, 70, 9)]


@pytest.mark.parametrize("tile", product.TILES, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("shape", DIVIDED, ids=str)
def test_every_tile_and_division_of_the_sums(
    tile: product.Tile, parts: int, shape: Any, machine: Emulation
) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype("f4") for size in ((k, m), (k, n)))
    mask = np.maximum(rng.normal(size=a.shape), 0).astype("f4")
    a, b, mask = (machine.guarded(array) for array in (a, b, mask))
    half = tile._replace(depth=max(tile.depth // 2, tile.step))
    given = product.Factors(a.T, b, mask=mask.T, sums=True)
    ((c, sums),) = product.multiply(given, tile=half, parts=(parts,))
    assert machine.launches == ["multiply"]
    covered = (a * (mask > 0)).astype("f8")
    assert_close(c, covered.T @ b, k)
    assert sums is not None
    assert_close(sums, covered.sum(axis=0), k)


def test_two_products_in_one_launch(dtype: str, machine: Emulation) -> None:
    rng = np.random.default_rng(0)
    delta, x, w = (rng.normal(size=s).astype(dtype) for s in ((1100, 10), (1100, 84), (10, 84)))
    first, second = product.Factors(delta.T, x, sums=True), product.Factors(delta, w)
    (dw, sums), (dx, none) = product.multiply(first, second)
    assert none is None and machine.launches == ["multiply"]  # though 1100 terms are divided
    for found, a, b in ((dw, delta.T, x), (dx, delta, w)):
        assert_close(found, a.astype("f8") @ b, a.shape[1])
    assert sums is not None
    assert_close(sums, delta.sum(axis=0, dtype="f8"), 1100)


def test_the_tile_is_the_largest_with_enough_blocks() -> None:
    def chosen(*sizes: Any, itemsize: int = 4) -> tuple[int, int, int, list[int]]:
        tile, parts = product.tile_for(sizes, itemsize)
        return tile.rows, tile.columns, tile.depth, parts

    # LeNet-5 with batches of 128: the three layers, and the first one's gradients
    assert chosen((128, 120, 400)) == (16, 8, 256, [1])
    assert chosen((128, 84, 120)) == (16, 8, 128, [1])
    assert chosen((128, 10, 84)) == (8, 8, 128, [1])
    assert chosen((120, 400, 128), (128, 400, 120)) == (32, 32, 64, [1, 1])
    # 512: the blocks of ∂L/∂x end early, and do not count for as much
    assert chosen((84, 120, 512), (512, 120, 84)) == (16, 16, 128, [1, 1])
    assert chosen((10, 84, 512), (512, 84, 10)) == (16, 8, 128, [1, 1])
    # 2048: the sums of ∂L/∂W are divided
    assert chosen((10, 84, 2048), (2048, 84, 10)) == (32, 32, 64, [8, 1])
    assert chosen((84, 120, 2048), (2048, 120, 84)) == (32, 32, 64, [8, 1])
    assert chosen((120, 400, 2048), (2048, 400, 120)) == (64, 64, 32, [8, 1])
    assert chosen((10, 84, 2048)) == (16, 8, 256, [8])
    assert chosen((10, 84, 767)) == (8, 8, 256, [1])
    # GPT of width 128, 12 texts of 64
    assert chosen((384, 128, 768), (768, 128, 384)) == (32, 32, 64, [3, 1])
    assert chosen((640, 640, 9)) == (64, 64, 12, [1])
    assert chosen((128, 120, 400), itemsize=8) == (16, 8, 128, [1])
    for tile in product.TILES:
        assert tile.depth % (2 * tile.step) == 0
        assert tile.rows % (4 * tile.tall) == tile.columns % 4 == 0


@pytest.mark.parametrize("rows", [8, 6])
def test_four_numbers_at_once_only_where_they_are_neighbours(rows: int) -> None:
    a = np.zeros((rows + 1, 12), "f4")
    address = 16
    assert product.order_of(a[:rows], address) == (True, True)
    assert product.order_of(a[:rows].T, address) == (False, True)
    assert product.order_of(a[:rows, :10], address) == (True, False)
    assert product.order_of(a[:, :8], address, address) == (True, True)
    assert product.order_of(a[:, :8], address, address + 4) == (True, False)
    assert product.order_of(a[:, :8], address + 4) == (True, False)
    assert product.order_of(a[:, ::2], address) == (True, False)
    assert product.order_of(a[:, ::-1], address) == (True, False)
    by_rows = np.zeros((12, rows), "f4")
    assert product.order_of(by_rows[:8], address) == (True, rows == 8)


def test_as_many_blocks_as_there_is_work_for(machine: Emulation) -> None:
    x = np.zeros((300, 2, 6, 6))
    philox.random_bits(x, (4097,), key=(0, 0), counter=(0, 0, 0))
    for size in (256, 257, 300_001):
        passes.add_scaled(np.zeros(size), 1.0, np.zeros(size))
    for m, n in ((129, 17), (704, 704), (640, 640), (200, 320)):
        product.multiply(product.Factors(np.zeros((m, 2)), np.zeros((2, n))))
    cross_entropy.cross_entropy(np.zeros((257, 32)), np.zeros(257, int), 1.0)
    cross_entropy.cross_entropy(np.zeros((257, 33)), np.zeros(257, int), 1.0)
    pooling.max_pool(x, kernel_size=(3, 3), stride=(1, 1))
    convolution.convolve(x, np.zeros((16, 2, 3, 3)))
    assert machine.grids == [
        *((5, 1), (1, 1), (2, 1), (1024, 1)),
        *((51, 1), (121, 1), (100, 1), (70, 1)),
        *((2, 1), (33, 1)),
        *((75, 1), (38, 2)),
    ]
