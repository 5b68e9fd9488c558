"""Attention by blocks: tiles, and where it takes less time than products.

All by an estimate; none of its numbers was measured for these kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from xbp.accelerators.cuda.launch import PROCESSORS, blocks

WIDTHS = (16, 32, 64, 96, 128)
"""Features of a row in shared memory; heads of fewer are padded by zeros."""
SIDES = ((64, 32), (32, 32), (32, 16), (16, 32), (16, 16), (8, 8))
"""Rows and columns of the tiles to choose from."""
PARTS = ((4, 4), (2, 4), (4, 2), (2, 2), (2, 1), (1, 1))
"""Those of a thread, the ones with most products for a number read from shared memory first."""
MOST_SHARED = 48 * 1024
"""Bytes of shared memory that a block has without asking for more."""
LEAST_THREADS, MOST_HELD = 64, 100
"""Two warps at least; and of the 168 registers of a thread those for scores, sums and factors."""

SECONDS_OF_LAUNCH = 3.5e-6
"""On the longest path of a graph, with the work of a small kernel (H200; see `whole`)."""
BY_PRODUCTS = ((7, 2, 4), (6, 4, 7))
"""Forward and backward by products: launches, products, and how often scores are written or read.
Besides products and a pass launches are copies, of q, k, v, y and ∂L/∂y, since products read them
by heads and projections by time steps."""
SECONDS_OF_STEP = 1e-6
"""The least for a tile that a block walks to, forward: memory's latency, and barriers. A guess."""
BLOCKS_PER_SECOND = {4: 15e12, 8: 10e12}
"""Floating-point operations of these kernels, by bytes of a number, with 4 × 4 scores a thread: a
quarter of what an H100 has for float32, and a third for float64. A guess."""
PRODUCTS_PER_SECOND = {4: 32e12, 8: 45e12}
"""Those of cuBLAS (float32: measured in the MLP on an H200; float64: expected)."""
BYTES_PER_SECOND = 3.3e12
"""The bandwidth of an H100's memory."""
DOUBT = 2
"""Blocks may take so many times their estimate and still take no longer than products."""
ENOUGH_THREADS = 256
"""On a multiprocessor, for the rates above."""


class Sizes(NamedTuple):
    """The sizes of an attention."""

    heads: int
    """Of all samples."""
    queries: int
    keys: int
    d: int
    e: int
    """Features of keys, and of values."""
    itemsize: int
    causal: bool

    @property
    def seen(self) -> float:
        """The part of all scores that are not hidden by `causal`."""
        if not self.causal:
            return 1.0
        most = min(self.queries, self.keys)
        pairs = most * (most + 1) / 2 + (self.queries - most) * self.keys
        return pairs / (self.queries * self.keys)


class Tile(NamedTuple):
    """How the scores of a head are divided: the parameters of the kernels."""

    rows: int
    columns: int
    """Scores of a block at a time."""
    tall: int
    wide: int
    """Scores of a thread."""
    width: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // (self.tall * self.wide)

    def shared(self, itemsize: int, backward: bool) -> int:
        """Bytes of shared memory: rows, a weight for each score, and two numbers a query."""
        lanes = 16 // itemsize
        own, others = (2, 2) if backward else (1, 2)
        numbers = (own * self.rows + others * self.columns) * (self.width + lanes)
        numbers += self.rows * (self.columns + lanes)
        return itemsize * (numbers + backward * 2 * max(self.rows, self.columns))

    def suits(self, itemsize: int, backward: bool) -> bool:
        """Whether a block has its memory, and a thread its registers and whole features."""
        across = self.columns // self.wide
        each = self.width // across  # features of a thread
        sums = self.tall * (self.wide + each)
        factors = 16 // itemsize * (self.tall + self.wide) + min(each, 8)
        held = (1 + backward) * sums + factors
        return (
            self.shared(itemsize, backward) <= MOST_SHARED
            and self.threads >= LEAST_THREADS
            and self.width % across == 0
            and held * itemsize // 4 <= MOST_HELD
        )


@lru_cache
def tiles(width: int, itemsize: int, backward: bool) -> tuple[Tile, ...]:
    """The tiles of rows of a width, the largest first."""
    found = []
    for sides in SIDES:
        ways = (Tile(*sides, *parts, width) for parts in PARTS)
        found += [tile for tile in ways if tile.suits(itemsize, backward)][:1]
    return tuple(found)


def seconds(tile: Tile, sizes: Sizes, backward: bool) -> float:
    """The estimated time of a launch, beyond that of an empty one.

    Either the operations of all blocks take the most time, or the tiles that one of them walks to.
    """
    forward = [(2, sizes.queries, sizes.keys)]  # products, rows of blocks, rows that they walk over
    walks = [(4, *sizes[2:0:-1]), (3, *sizes[1:3])] if backward else forward
    count, operations, longest = 0, 0.0, 0.0
    for products, own, others in walks:
        rows, columns = blocks(own, tile.rows), blocks(others, tile.columns)
        count += sizes.heads * rows
        scores = sizes.heads * rows * columns * tile.rows * tile.columns
        operations += scores * sizes.seen * products * 2 * tile.width
        longest = max(longest, columns * products / 2)
    reuse = min(1.0, tile.tall * tile.wide / (tile.tall + tile.wide) / 2)
    busy = min(1.0, count * tile.threads / (ENOUGH_THREADS * PROCESSORS))
    rate = BLOCKS_PER_SECOND[sizes.itemsize] * reuse * busy
    return max(operations / rate, longest * SECONDS_OF_STEP)


@lru_cache
def plan(sizes: Sizes) -> tuple[Tile, Tile]:
    """The tiles of the forward and of the backward, by their estimated times."""
    width = next(width for width in WIDTHS if width >= max(sizes.d, sizes.e))
    forward, backward = (
        min(tiles(width, sizes.itemsize, back), key=lambda tile: seconds(tile, sizes, back))
        for back in (False, True)
    )
    return forward, backward


@lru_cache
def pays(sizes: Sizes) -> bool:
    """Whether blocks take no longer than products by a cautious estimate, forward and both ways.

    Products are computed faster by cuBLAS, but also where scores are hidden; they take more
    launches, and write and read the scores of all pairs.
    """
    pairs = sizes.heads * sizes.queries * sizes.keys
    saved: list[float] = []
    for (launches, products, passes), tile in zip(BY_PRODUCTS, plan(sizes), strict=True):
        operations = products * pairs * (sizes.d + sizes.e)
        one = sizes.queries == 1  # q and y, which then have both orders
        by_products = (launches - 2 * one) * SECONDS_OF_LAUNCH
        by_products += operations / PRODUCTS_PER_SECOND[sizes.itemsize]
        by_products += passes * pairs * sizes.itemsize / BYTES_PER_SECOND
        by_blocks = SECONDS_OF_LAUNCH + DOUBT * seconds(tile, sizes, backward=len(saved) > 0)
        saved.append(by_products - by_blocks)
    return saved[0] >= 0 and sum(saved) >= 0
