"""Matrix products that can be captured into a CUDA graph, and the linear layer.

CuPy raises NotImplementedError for every call of cuBLAS while a stream is captured (cupy#6290).
Therefore

- small products use a kernel of our own, `product.cu`: one launch, which takes less time than
  cuBLAS takes to choose a kernel;
- large ones use cuBLAS by a handle of our own, `cublas.py`;
- without cuBLAS, our own kernel does all products.

Eager and captured steps make the same choice, and so give the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from xbp import registry
from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.large import affine_by
from xbp.accelerators.cuda.last import Parts, parts_of_sum
from xbp.accelerators.cuda.launch import (
    PROCESSORS,
    REALS,
    Machine,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, incoming

Size: TypeAlias = "tuple[int, int, int]"

Product = structure(
    "Product",
    **dict.fromkeys(("a", "b", "bias", "mask", "c", "total", "counters"), pointer),
    **dict.fromkeys(("a_row", "a_column", "b_row", "b_column", "apart"), ctypes.c_longlong),
    **dict.fromkeys(("m", "n", "k", "tiles", "part"), ctypes.c_int),
)
Task = structure("Task", of=Product * 2, first=ctypes.c_int)
A_ALONG, A_FOURS, B_ALONG, B_FOURS, SUMMED, TURNED = 1, 2, 4, 8, 16, 32  # as in product.cu
LEAST_LARGE = 2**27
"""The least m · n · k for cuBLAS. On an H200 a linear layer of 2048 × 400 × 120, below it, takes
46 µs, both ways; by cuBLAS, which leaves bias, ReLU and their gradients to passes, 66."""
YES_OR_NO = frozenset({(0,), (1,)})


class Tile(NamedTuple):
    """How a product is divided: the parameters of the kernel."""

    rows: int
    columns: int
    """Entries of C of a block."""
    tall: int
    wide: int
    """Entries of C of a thread."""
    depth: int
    """Terms in shared memory at a time."""
    threads: int = 256

    @property
    def step(self) -> int:
        """Terms that a block adds at a time: four for each group of threads that has a tile."""
        return 4 * self.threads * self.tall * self.wide // (self.rows * self.columns)


TILES = (
    Tile(64, 64, 4, 4, 32),
    Tile(32, 32, 4, 4, 64),
    Tile(32, 16, 4, 4, 128),
    Tile(16, 16, 4, 4, 256),
    Tile(16, 8, 4, 2, 256),
    Tile(8, 8, 2, 2, 256),
)
"""The tiles to choose from for float32, by size. On an H200 the choice for the products of LeNet-5,
batch 32 to 2048, takes 2.5 % longer than the best of some 14 tiles and depths, in the mean."""
SHAPES = frozenset({tile[:4] for tile in TILES} | {(16, 16, 4, 2), (64, 32, 8, 4)})
"""Rows and columns of a block, then of a thread, that may be chosen by measurements."""
MOST_SHARED, PAD = 48 << 10, 4
"""Bytes of shared memory of a block, and numbers between rows there, as in product.cu."""
ENOUGH = PROCESSORS // 2
"""The least blocks that compute at a time, for half of the multiprocessors of an H100 or H200."""
DEEPEST_OF_TWO = 128
"""The most terms in shared memory of two products: the sums of one of them are usually short."""
LEAST_DIVIDED, LEAST_PART = 768, 256
"""The fewest terms whose sum is divided, and the fewest terms of a part. (Of 768 terms, undivided,
∂L/∂W of 128 × 384 takes 17 µs on an H200; divided it was not measured yet.)"""


def division(machine: Machine, sizes: Sequence[Size], dtype: Any) -> tuple[Tile, list[int]]:
    """What was measured for products in one launch, or what `tile_for` chooses."""
    flat = tuple(size for three in sizes for size in three)
    decision = tuned.Decision("products", f"{dtype.name} {len(sizes)}", flat)

    def rule() -> tuned.Numbers:
        tile, parts = tile_for(sizes, dtype.itemsize)
        return (*tile[:5], *parts)

    numbers = tuned.choose(
        machine, decision, lambda them: divides(them, sizes, dtype.itemsize), rule
    )
    return Tile(*numbers[:5]), list(numbers[5:])


def divides(numbers: tuned.Numbers, sizes: Sequence[Size], itemsize: int) -> bool:
    """Whether the kernel can be divided by a tile and the parts of the sums of each product."""
    if numbers[:4] not in SHAPES or len(numbers) != 5 + len(sizes):
        return False
    tile, parts = Tile(*numbers[:5]), numbers[5:]
    staged = [max(s * (tile.depth + PAD), tile.depth * (s + PAD)) for s in tile[:2]]
    return (
        tile.depth > 0
        and tile.depth % tile.step == 0
        and sum(staged) * itemsize <= MOST_SHARED
        and tile.threads * tile.tall * tile.wide * itemsize <= MOST_SHARED
        and all(0 < part <= max(1, k // 4) for part, (_, _, k) in zip(parts, sizes, strict=True))
    )


def tile_for(sizes: Sequence[Size], itemsize: int) -> tuple[Tile, list[int]]:
    """The tile for products that are computed in one launch, and the parts of the sums of each.

    The largest tile with enough blocks for a GPU, as large tiles read less; no deeper than the sums
    are long, and half as deep for float64. The long sums of a product with few tiles are divided.

    Parameters
    ----------
    sizes : sequence of (m, n, k)
        For products of (m, k) and (k, n).
    itemsize : int
        Bytes of a number.
    """
    for tile in TILES:
        chosen = tile._replace(depth=depth_for(tile, sizes, itemsize))
        parts = [parts_for(size, tile) for size in sizes]
        if at_a_time(chosen, sizes, parts) >= ENOUGH:
            break
    return chosen, parts


def depth_for(tile: Tile, sizes: Sequence[Size], itemsize: int) -> int:
    """Terms in shared memory at a time."""
    most = min(tile.depth, DEEPEST_OF_TWO) if len(sizes) > 1 else tile.depth
    longest = max(k for _, _, k in sizes)
    return min(most * 4 // itemsize, blocks(longest, tile.step) * tile.step)


def parts_for(size: Size, tile: Tile) -> int:
    """Parts of long sums, so that each multiprocessor has a block."""
    if size[2] < LEAST_DIVIDED:
        return 1
    return min(blocks(PROCESSORS, tiles_of(size, tile)), size[2] // LEAST_PART)


def at_a_time(tile: Tile, sizes: Sequence[Size], parts: Sequence[int]) -> float:
    """The mean number of blocks at work until those with the longest sums have ended.

    Blocks with short sums end early, but none before its first `depth` terms.
    """
    both = list(zip(sizes, parts, strict=True))
    stages = [blocks(size[2], tile.depth * divided) for size, divided in both]
    counts = [tiles_of(size, tile) * divided for size, divided in both]
    return sum(c * s for c, s in zip(counts, stages, strict=True)) / max(stages)


def tiles_of(size: Size, tile: Tile) -> int:
    """The number of tiles of a product."""
    return blocks(size[0], tile.rows) * blocks(size[1], tile.columns)


def matmul(a: Array, b: Array) -> Any:
    """See `xbp.primitives.matmul`; for any leading axes of `a`, and none or the same of `b`."""
    if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2] or not fits(a, b):
        return NotImplemented
    if b.ndim > 2:
        return _one_by_one(a, b) if a.shape[:-2] == b.shape[:-2] else NotImplemented
    shape = (*a.shape[:-1], b.shape[1])
    a = a.reshape(-1, a.shape[-1])
    if is_large(a, b):
        machine = machine_of(a)
        c = machine.empty((a.shape[0], b.shape[1]), a.dtype)
        if machine.multiply(a, b, c, registry.rounded()):
            return c.reshape(shape)
    return multiply(Factors(a, b))[0][0].reshape(shape)


def _one_by_one(a: Array, b: Array) -> Any:
    """The products of corresponding matrices, by cuBLAS; matrices it cannot read are copied."""
    machine, leading = machine_of(a), a.shape[:-2]
    a, b = (array.reshape(-1, *array.shape[-2:]) for array in (a, b))
    c = machine.empty((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    how = registry.rounded()
    if not (machine.multiply(a, b, c, how) or machine.multiply(dense(a), dense(b), c, how)):
        return NotImplemented
    return c.reshape(*leading, *c.shape[1:])


def affine(x: Array, weight: Array, bias: Array | None = None, *, relu: bool = False) -> Any:
    """See `xbp.primitives.affine`; then ReLU if `relu`, for products too small for cuBLAS."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        return NotImplemented
    if not fits(x, weight, bias) or (bias is not None and bias.shape != weight.shape[:1]):
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1])
    if is_large(rows, weight.T):
        return NotImplemented if relu else affine_by(matmul, lambda array: array, x, weight, bias)
    ((y, _),) = multiply(Factors(rows, weight.T, bias=bias), relu=relu)
    mask, turned_mask = (y, y.T) if relu else (None, None)
    by_columns = rows.T.flags.c_contiguous and not rows.flags.c_contiguous  # and so ∂L/∂x, too
    shape, inside, dtype = (*x.shape[:-1], y.shape[1]), x.shape, x.dtype

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        delta = dense(incoming(dy, shape, dtype)).reshape(y.shape)
        both = (
            Factors(delta.T, rows, mask=turned_mask, sums=bias is not None),
            Factors(delta, weight, mask=mask, turned=by_columns),
        )
        # ∂L/∂W has the same bits without ∂L/∂x.
        tile, parts = division(machine_of(x), [size_of(it) for it in both], dtype)
        found = multiply(*both[: 1 + wants_dx], tile=tile, parts=parts)
        return found[1][0].reshape(inside) if wants_dx else None, *found[0]

    return y.reshape(shape), gradients


class Factors(NamedTuple):
    """What is computed of a product: a b + bias, and optionally the sums of the rows of a.

    a counts as 0 where `mask`, an array of a's memory layout, is not positive.
    """

    a: Array
    b: Array
    bias: Array | None = None
    mask: Array | None = None
    sums: bool = False
    turned: bool = False
    """Whether the result is stored column by column."""


def multiply(
    *given: Factors, relu: bool = False, tile: Tile | None = None, parts: Sequence[int] = ()
) -> list[tuple[Array, Array | None]]:
    """One product, rectified if `relu`, or two independent ones, in one launch of the kernel.

    Either all of them have a mask, or none. Without a tile, `division` chooses it and the parts.
    """
    machine, dtype = machine_of(given[0].a), given[0].a.dtype
    sizes = [size_of(it) for it in given]
    if tile is None:
        tile, parts = division(machine, sizes, dtype)
    task, kinds, results, count, before = Task(), [-1, -1], list[Parts](), 0, 0
    for index, (it, size, divided) in enumerate(zip(given, sizes, parts, strict=False)):
        m, n, k = size
        after_all_terms = relu or it.bias is not None
        part = k if after_all_terms else blocks(blocks(k, divided), 4) * 4
        rows, tiles = blocks(k, part), tiles_of(size, tile)
        shape, each = (rows, m * n + m * it.sums), blocks(tile.rows * tile.columns, tile.threads)
        result = parts_of_sum(machine, shape, dtype, tiles, each * rows, before)
        before += tiles
        bias = None if it.bias is None else dense(it.bias)
        places = {"a": it.a, "b": it.b, "bias": bias, "mask": it.mask}
        places |= {"c": result.partial, "total": result.total}
        addresses = {k: machine.address(array) for k, array in places.items() if array is not None}
        (a_row, a_column), (b_row, b_column) = steps(it.a), steps(it.b)
        task.of[index] = Product(
            **addresses, counters=result.counters,
            a_row=a_row, a_column=a_column, b_row=b_row, b_column=b_column,
            apart=shape[1], m=m, n=n, k=k, tiles=tiles, part=part,
        )  # fmt: skip
        a_along, a_fours = order_of(it.a, addresses["a"], addresses.get("mask", 0))
        b_across, b_fours = order_of(it.b, addresses["b"])
        kinds[index] = a_along * A_ALONG + a_fours * A_FOURS + (not b_across) * B_ALONG
        kinds[index] += b_fours * B_FOURS + it.sums * SUMMED + it.turned * TURNED
        results.append(result)
        count += tiles * rows
        task.first = task.first or count
    macros = {
        "real": REALS[dtype.name], "TILE_ROWS": tile.rows, "TILE_COLUMNS": tile.columns,
        "TALL": tile.tall, "WIDE": tile.wide, "DEPTH": tile.depth, "THREADS": tile.threads,
        "RELU": int(relu), "MASKED": int(given[0].mask is not None),
        "FIRST": kinds[0], "SECOND": kinds[1],
        "DIVIDED": int(any(result.counters for result in results)),
    }  # fmt: skip
    machine.launch(("product.cu", "multiply"), macros, (count, 1), tile.threads, task)
    found = []
    for (m, n, _), it, result in zip(sizes, given, results, strict=True):
        total = result.sum()
        c = total[: m * n].reshape((n, m)).T if it.turned else total[: m * n].reshape((m, n))
        found.append((c, total[m * n :] if it.sums else None))
    return found


def size_of(it: Factors) -> Size:
    """(m, n, k) of a product of (m, k) and (k, n)."""
    return it.a.shape[0], it.b.shape[1], it.a.shape[1]


def order_of(matrix: Array, *addresses: int) -> tuple[bool, bool]:
    """Whether the numbers of a row are closest in memory, and whether four may be loaded at once.

    Four at once are neighbours at a multiple of 16 bytes, none of them outside of the matrix.
    """
    along = matrix.strides[1] <= matrix.strides[0]
    near, far = steps(matrix)[::-1] if along else steps(matrix)
    whole = matrix.shape[along] % 4 == 0 and far % 4 == 0
    return along, near == 1 and whole and all(address % 16 == 0 for address in addresses)


def is_large(a: Array, b: Array) -> bool:
    """Whether cuBLAS should take a product: measured, or from `LEAST_LARGE` on."""
    (m, k), n = a.shape, b.shape[1]
    decision = tuned.Decision("large", f"{a.dtype.name} {registry.rounded()}".strip(), (m, n, k))
    return tuned.choose(
        machine_of(a), decision, YES_OR_NO.__contains__, lambda: (int(m * n * k >= LEAST_LARGE),)
    ) == (1,)


def steps(matrix: Array) -> tuple[int, int]:
    """The strides of rows and columns, in entries."""
    rows, columns = matrix.strides
    return rows // matrix.itemsize, columns // matrix.itemsize


ACCELERATORS = (matmul, affine)
