"""Convolutions with many channels, as matrix products of tiles in registers.

The kernels of `convolution.cu` read an image once for a few output channels. Those of `wide.h` read
it once for a tile of up to 128, and a thread makes 64 products of 16 numbers from shared memory
(Volkov & Demmel 2008; for convolutions Chetlur et al. 2014, section 3).
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.activations import through_rectifier
from xbp.accelerators.cuda.launch import (
    PROCESSORS,
    REALS,
    Machine,
    as_nchw,
    batch_innermost,
    blocks,
    dense,
    lanes,
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
MOST_IMAGES = 64
"""The most images by which columns are ordered."""
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

    @property
    def numbers(self) -> tuned.Numbers:
        """The tile in a table of measured choices."""
        return (*self[:5], self.images)


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
    launches = Launches(x, weight.shape, stride, padding, dilation, groups, relu=relu)
    dtype, machine, shape = x.dtype, machine_of(x), (x.shape[0], *launches.output_shape)
    x, weight = batch_innermost(x), dense(weight)
    bias = None if bias is None else dense(bias)
    y = launches.output(x, weight, bias)
    mask = y if relu else None  # else y need not live until the backward

    def to_weight(dy: Array) -> tuple[Array, Array | None]:
        partial = launches.parts_to_weight(x, dy)
        total = partial[0] if partial.shape[0] == 1 else add_up(partial)
        dbias = None if bias is None else total[weight.size :]
        return total[: weight.size].reshape(weight.shape), dbias

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = batch_innermost(incoming(dy, shape, dtype))
        if mask is not None:
            dy = through_rectifier(mask, dy)
        if not wants_dx:
            return None, *to_weight(dy)
        of_weight, dx = machine.side_by_side(
            lambda: to_weight(dy), lambda: launches.to_input(weight, dy)
        )
        return as_nchw(dx), *of_weight

    return as_nchw(y), gradients


class Launches:
    """The kernels of a convolution, for dense arrays with the batch innermost.

    Parameters
    ----------
    x : array (N, C, H, W)
        Its shape and dtype count, and its library.
    weight : tuple of int
        The shape of the weight.
    stride, padding, dilation, groups
        As of `xbp.primitives.convolve`.
    relu : bool, optional
        Whether y is rectified.
    """

    def __init__(
        self,
        x: Array,
        weight: Shape,
        stride: Pair = (1, 1),
        padding: Padding = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        *,
        relu: bool = False,
    ) -> None:
        self.n, _, h, w = x.shape
        o, self.channels, kh, kw = weight
        rows, columns = output_size((h, w), (kh, kw), stride, padding, dilation)
        self.dtype, self.machine, self.groups = x.dtype, machine_of(x), groups
        self.outputs, self.output_shape = o // groups, (o, rows, columns)
        self.input_shape, self.per_output = (*x.shape[1:], self.n), self.channels * kh * kw
        self.per_input = self.outputs * kh * kw
        self.kind = f"{x.dtype.name} {kh}x{kw}/{stride[0]}x{stride[1]}"
        self.steps = [s if d == 1 else 1 for s, d in zip(stride, dilation, strict=True)]
        (top, _), (left, _) = sides(padding)
        self.macros: dict[str, Any] = {
            "real": REALS[x.dtype.name], "IN": self.channels, "OUT": self.outputs, "H": h, "W": w,
            "KH": kh, "KW": kw, "STRIDE_H": stride[0], "STRIDE_W": stride[1],
            "PAD_H": top, "PAD_W": left, "DIL_H": dilation[0], "DIL_W": dilation[1],
            "ROWS": rows, "COLUMNS": columns, "RELU": int(relu),
        }  # fmt: skip

    def output(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """y, rectified if it was asked for."""
        o, rows, columns = self.output_shape
        y = self.machine.empty((o, rows, columns, self.n), self.dtype)
        vector, positions = self._vector(x, y), rows * columns * self.n
        tile = self._tile("wide", vector, self.outputs, positions, self.per_output, self.groups)
        grid = (blocks(self.outputs, tile.m) * blocks(positions, tile.n), self.groups)
        arrays = {"x": x, "weight": weight, "bias": bias, "y": y}
        self._launch("wide", tile, vector, grid, arrays)
        return y

    def parts_to_weight(self, x: Array, dy: Array) -> Array:
        """∂L/∂W and ∂L/∂b, one after the other in each row; the sum of all rows is meant."""
        o, rows, columns = self.output_shape
        vector, sizes = self._vector(x, dy), (self.outputs, self.per_output)
        whole = (*sizes, rows * columns * self.n, self.groups)
        tile = self._tile("wide_to_weight", vector, *whole)
        _, parts, length = split((tile._replace(images=0),), *whole)
        grid = (math.prod(map(blocks, sizes, tile[:2])), self.groups * parts)
        partial = self.machine.empty((parts, o * (self.per_output + 1)), self.dtype)
        arrays = {"x": x, "dy": dy, "partial": partial}
        self._launch("wide_to_weight", tile, vector, grid, arrays, parts=parts, length=length)
        return partial

    def to_input(self, weight: Array, dy: Array) -> Array:
        """∂L/∂x."""
        dx = self.machine.empty(self.input_shape, self.dtype)
        vector, (_, h, w, n) = self._vector(dy, dx), self.input_shape
        pixels = blocks(h, self.steps[0]) * blocks(w, self.steps[1]) * n  # of the largest class
        copies = self.groups * math.prod(self.steps)
        terms = blocks(self.per_input, math.prod(self.steps))
        tile = self._tile("wide_to_input", vector, self.channels, pixels, terms, copies)
        grid = (blocks(self.channels, tile.m) * blocks(pixels, tile.n), copies)
        arrays = {"weight": weight, "dy": dy, "dx": dx}
        self._launch("wide_to_input", tile, vector, grid, arrays)
        return dx

    def _vector(self, *images: Array) -> int:
        """The numbers of a load: 16 bytes, if each row of images begins at a multiple of 16."""
        return lanes(self.dtype, self.n, *map(self.machine.address, images))

    def _tile(self, file: str, vector: int, *sizes: int) -> Tile:
        """The tile that was measured for rows, columns, terms and copies, or that of the rule."""
        decision = tuned.Decision(file, self.kind, sizes)
        return tile_by(self.machine, decision, tiles_of(self.dtype, vector))

    def _launch(
        self,
        file: str,
        tile: Tile,
        vector: int,
        grid: Pair,
        arrays: dict[str, Array | None],
        **more: int,
    ) -> None:
        address = self.machine.address
        given = {key: address(it) for key, it in arrays.items() if it is not None}
        images = 0 if "partial" in arrays else tile.images
        if images and (self.n % images or images % vector):
            images = 0
        macros = self.macros | tile.macros | {"VECTOR": vector, "IMAGES": images}
        task = Task(n=self.n, **given, **more)
        self.machine.launch((f"{file}.cu", f"convolve_{file}"), macros, grid, tile.threads, task)


def tile_by(machine: Machine, decision: tuned.Decision, tiles: tuple[Tile, ...]) -> Tile:
    """The tile that was measured, or that of the rule."""
    rows, columns, terms, copies = decision.sizes

    def rule() -> tuned.Numbers:
        if decision.family == "wide_to_weight":
            return split(tiles, rows, columns, terms, copies)[0].numbers
        return tile_of(tiles, rows, columns, copies).numbers

    known: dict[tuned.Numbers, Tile] = {tile[:5]: tile for tile in tiles}

    def allowed(numbers: tuned.Numbers) -> bool:
        return len(numbers) == 6 and numbers[:5] in known and numbers[5] <= MOST_IMAGES

    numbers = tuned.choose(machine, decision, allowed, rule)
    return known[numbers[:5]]._replace(images=numbers[5])


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
