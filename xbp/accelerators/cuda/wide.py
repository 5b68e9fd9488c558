"""Convolutions with many channels, as matrix products of tiles in registers.

The kernels of `convolution.cu` read an image once for a few output channels. Those of `wide.h` read
it once for a tile of up to 128, and a thread makes 64 products of 16 numbers from shared memory
(Volkov & Demmel 2008; for convolutions Chetlur et al. 2014, section 3).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

from xbp.accelerators.cuda.activations import through_rectifier
from xbp.accelerators.cuda.launch import (
    PROCESSORS,
    REALS,
    as_nchw,
    batch_innermost,
    blocks,
    dense,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.passes import add_up
from xbp.accelerators.shared import Array, Pair, Shape, incoming
from xbp.primitives.images import Padding, output_size, sides

Task = structure(
    "Task",
    **dict.fromkeys(("x", "weight", "bias", "dy", "y", "dx", "partial"), pointer),
    **dict.fromkeys(("n", "parts", "length"), ctypes.c_int),
)
LEAST_PAIRS, LEAST_CHANNELS = 128, 16
"""The least pairs of channels, in a group, and the least outputs: fewer fill no tile.

On an H200 convolutions of 3 to 64 channels, 192 pairs, take 151 µs in place of 249, y and both
gradients; of fewer pairs nothing was measured."""
RESIDENT = 512
"""Threads that a multiprocessor computes with at once, as in wide.h."""
LATENCY = 48
"""Threads with which it would wait for half of the time. Fitted, with the tiles' speeds, to 45
products of VGG, ResNet-20 and FastCIFAR on an H200: the choice takes 1 % longer than the best."""
MOST_COPIES = 65535
"""CUDA's limit of a grid's second dimension: groups and, for ∂L/∂x, classes of pixels."""
CHOICES = 1024
"""The number of products whose tiles are cached."""
LEAST_LENGTH = 256
"""The least terms in a part of a sum of ∂L/∂W."""


class Tile(NamedTuple):
    """Entries of a product that a block computes, terms of a stage, and entries of a thread.

    If `images` is not 0 and divides the batch, columns of y and ∂L/∂x are ordered by so many
    images at all positions, so that the windows of a tile overlap.

    `speed` is the arithmetic rate relative to the largest tile, fitted as `LATENCY`: the numbers
    that a thread reads from shared memory for each product are few in a large tile.
    """

    m: int
    n: int
    depth: int
    sums_m: int
    sums_n: int
    speed: float
    images: int = 0

    @property
    def threads(self) -> int:
        return self.m // self.sums_m * (self.n // self.sums_n)

    @property
    def macros(self) -> dict[str, int]:
        names = ("TILE_M", "TILE_N", "DEPTH", "SUMS_M", "SUMS_N")
        return dict(zip(names, self[:5], strict=True))


TILES: dict[str, tuple[Tile, ...]] = {
    "float32": (
        Tile(128, 128, 16, 8, 8, 1.0),
        Tile(128, 128, 8, 8, 8, 1.0),
        Tile(64, 128, 16, 8, 8, 0.98),
        Tile(64, 128, 8, 8, 8, 0.98),
        Tile(64, 64, 8, 8, 8, 0.7),
        Tile(64, 64, 8, 8, 4, 0.88),
        Tile(32, 256, 8, 8, 8, 0.91),
        Tile(32, 128, 8, 4, 8, 0.65),
        Tile(16, 256, 8, 4, 8, 0.55),
        Tile(16, 128, 8, 4, 4, 0.49),
    ),
    "float64": (Tile(64, 64, 8, 4, 4, 1.0), Tile(16, 64, 8, 4, 2, 0.6)),
}
"""What `tile_of` chooses from; the last tile of each has no more columns than threads."""


def suits(weight: Shape, stride: Pair, groups: int) -> bool:
    """Whether a convolution, with a weight of this shape, has enough channels to fill tiles."""
    copies = groups * stride[0] * stride[1]
    o, channels = weight[0] // groups, weight[1]
    return o >= LEAST_CHANNELS and o * channels >= LEAST_PAIRS and copies <= MOST_COPIES


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    *,
    groups: int,
    relu: bool,
) -> tuple[Array, Any]:
    """See `xbp.primitives.convolve`; then ReLU, if `relu`.

    A weight that is not finite makes ∂L/∂x nan also where its windows would lie in the padding.
    """
    n, _, h, w = x.shape
    o, channels, kh, kw = weight.shape
    rows, columns = output_size((h, w), (kh, kw), stride, padding, dilation)
    dtype, machine = x.dtype, machine_of(x)
    x, weight = batch_innermost(x), dense(weight)
    bias = None if bias is None else dense(bias)
    (top, _), (left, _) = sides(padding)
    macros: dict[str, Any] = {
        "real": REALS[dtype.name], "IN": channels, "OUT": o // groups, "H": h, "W": w,
        "KH": kh, "KW": kw, "STRIDE_H": stride[0], "STRIDE_W": stride[1],
        "PAD_H": top, "PAD_W": left, "DIL_H": dilation[0], "DIL_W": dilation[1],
        "ROWS": rows, "COLUMNS": columns, "RELU": int(relu),
    }  # fmt: skip
    per_group, per_output, positions = o // groups, channels * kh * kw, rows * columns * n

    def vector_of(*images: Array) -> int:
        """The numbers of a load: 16 bytes, if each row of images begins at a multiple of 16."""
        lanes = 16 // dtype.itemsize
        whole = n % lanes == 0 and all(machine.address(array) % 16 == 0 for array in images)
        return lanes if whole else 1

    def launch(
        file: str, tile: Tile, vector: int, grid: Pair, arrays: dict[str, Any], **more: int
    ) -> None:
        given = {key: machine.address(it) for key, it in arrays.items() if it is not None}
        images = 0 if "partial" in arrays else tile.images
        if images and (n % images or images % vector):
            images = 0
        whole = macros | tile.macros | {"VECTOR": vector, "IMAGES": images}
        task = Task(n=n, **given, **more)
        machine.launch((f"{file}.cu", f"convolve_{file}"), whole, grid, tile.threads, task)

    def output() -> Array:
        y = machine.empty((o, rows, columns, n), dtype)
        vector = vector_of(x, y)
        tile = tile_of(tiles_of(dtype, vector), per_group, positions, groups)
        grid = (blocks(per_group, tile.m) * blocks(positions, tile.n), groups)
        launch("wide", tile, vector, grid, {"x": x, "weight": weight, "bias": bias, "y": y})
        return y

    def to_weight(dy: Array) -> tuple[Array, Array | None]:
        vector, size = vector_of(x, dy), weight.size + o
        sizes = (per_group, per_output, positions)
        tile, parts, length = split(tiles_of(dtype, vector), *sizes, groups)
        grid = (blocks(per_group, tile.m) * blocks(per_output, tile.n), groups * parts)
        partial = machine.empty((parts, size), dtype)
        arrays = {"x": x, "dy": dy, "partial": partial}
        launch("wide_to_weight", tile, vector, grid, arrays, parts=parts, length=length)
        total = partial[0] if parts == 1 else add_up(partial)
        dbias = None if bias is None else total[weight.size :]
        return total[: weight.size].reshape(weight.shape), dbias

    def to_input(dy: Array) -> Array:
        dx = machine.empty(x.shape, dtype)
        vector = vector_of(dy, dx)
        steps = [s if d == 1 else 1 for s, d in zip(stride, dilation, strict=True)]
        pixels = blocks(h, steps[0]) * blocks(w, steps[1]) * n  # of the largest class
        copies = groups * steps[0] * steps[1]
        tile = tile_of(tiles_of(dtype, vector), channels, pixels, copies)
        grid = (blocks(channels, tile.m) * blocks(pixels, tile.n), copies)
        launch("wide_to_input", tile, vector, grid, {"weight": weight, "dy": dy, "dx": dx})
        return as_nchw(dx)

    y, shape = output(), (n, o, rows, columns)
    mask = y if relu else None  # else y need not live until the backward

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = batch_innermost(incoming(dy, shape, dtype))
        if mask is not None:
            dy = through_rectifier(mask, dy)
        if not wants_dx:
            return None, *to_weight(dy)
        of_weight, dx = machine.side_by_side(lambda: to_weight(dy), lambda: to_input(dy))
        return dx, *of_weight

    return as_nchw(y), gradients


def tiles_of(dtype: Any, vector: int) -> tuple[Tile, ...]:
    """The tiles of which a row of C can be loaded by the threads of a block."""
    return loadable(TILES[dtype.name], vector)


@lru_cache(CHOICES)
def loadable(tiles: tuple[Tile, ...], vector: int) -> tuple[Tile, ...]:
    return tuple(tile for tile in tiles if tile.n <= tile.threads * vector)


@lru_cache(CHOICES)
def tile_of(tiles: tuple[Tile, ...], rows: int, columns: int, copies: int = 1) -> Tile:
    """The tile for a product, by the time of the busiest multiprocessor."""
    return min(tiles, key=lambda tile: time(tile, number_of(tile, rows, columns, copies)))


@lru_cache(CHOICES)
def split(
    tiles: tuple[Tile, ...], rows: int, columns: int, terms: int, copies: int = 1
) -> tuple[Tile, int, int]:
    """The tile for a product with long sums, the number of their parts, and terms in each.

    There are as many parts as multiprocessors can compute at once.
    """
    choices = []
    for tile in tiles:
        number = number_of(tile, rows, columns, copies)
        most = PROCESSORS * max(1, RESIDENT // tile.threads) // number
        length = tile.depth * blocks(terms, max(1, min(most, terms // LEAST_LENGTH)) * tile.depth)
        parts = blocks(terms, length)
        choices.append((length * time(tile, number * parts), tile, parts, length))
    _, tile, parts, length = min(choices, key=lambda choice: choice[0])
    return tile, parts, length


def number_of(tile: Tile, rows: int, columns: int, copies: int) -> int:
    """The number of tiles of a product."""
    return copies * blocks(rows, tile.m) * blocks(columns, tile.n)


def time(tile: Tile, number: int) -> float:
    """The time of the busiest multiprocessor for a term of each sum, in no unit.

    Its blocks take turns at waiting; where there are few, nothing is computed meanwhile.
    """
    each = blocks(number, PROCESSORS)
    waits = LATENCY / min(each * tile.threads, RESIDENT)
    return each * tile.m * tile.n / tile.speed * (1 + waits)
