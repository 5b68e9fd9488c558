"""Kinds of layers of `whole`, and how threads divide their work.

The numbers here are those of whole.h's templates: a layer's text is a type there.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import ClassVar, TypeAlias

from xbp.accelerators.cuda.launch import blocks
from xbp.accelerators.shared import Shape

MOST_SUMS = 16
"""Sums of a thread in a linear layer."""
MOST_TEAMS = 16
"""The most threads that share a sum, if their sums fit into shared memory."""
WARP = 32
Teams: TypeAlias = "tuple[int, int]"
"""Teams of threads, and numbers in shared memory for their sums."""


@dataclass(frozen=True)
class Convolution:
    """A convolution, an activation, and before it optionally the maximum of windows."""

    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    has_bias: bool
    pool_h: int = 1
    pool_w: int = 1
    kind: str = "identity"
    threads: int = 0
    """Of a block, once that is planned."""

    learned: ClassVar[bool] = True
    launches: ClassVar[int] = 4
    """By operations: forward, ∂L/∂x, and two for ∂L/∂W."""

    @property
    def rows(self) -> int:
        return ((self.h + 2 * self.pad_h - self.kh) // self.stride_h + 1) // self.pool_h

    @property
    def columns(self) -> int:
        return ((self.w + 2 * self.pad_w - self.kw) // self.stride_w + 1) // self.pool_w

    @property
    def size(self) -> Shape:
        return self.o, self.rows, self.columns

    @property
    def inputs(self) -> int:
        return self.c * self.h * self.w

    @property
    def outputs(self) -> int:
        return math.prod(self.size)

    @property
    def biases(self) -> int:
        return self.o

    @property
    def parameters(self) -> int:
        return self.o * (self.c * self.kh * self.kw + 1)

    @property
    def has_places(self) -> bool:
        return self.pool_h * self.pool_w > 1

    @property
    def tile(self) -> int:
        """Outputs of a thread."""
        return _tile(self.o, self.rows * self.columns, self.c, self.threads)

    @property
    def tile_back(self) -> int:
        """Channels of a thread for ∂L/∂x."""
        return _tile(self.c, self.pixels, self.o, self.threads)

    @property
    def pixels(self) -> int:
        """Blocks of pixels of ∂L/∂x, each of which a thread computes."""
        steps = (self.pool_h * self.stride_h, self.pool_w * self.stride_w)
        sizes, pads = (self.h, self.w), (self.pad_h, self.pad_w)
        return math.prod(
            (size - 1 + pad) // step - pad // step + 1
            for size, pad, step in zip(sizes, pads, steps, strict=True)
        )

    @property
    def kernels(self) -> int:
        """Numbers of the kernels in shared memory, forward."""
        tiles = blocks(self.o, self.tile)
        return whole_loads(self.c * self.kh * self.kw * tiles * _padded(self.tile))

    @property
    def kernels_back(self) -> int:
        """The same for ∂L/∂x."""
        tiles = blocks(self.c, self.tile_back)
        return whole_loads(self.o * self.kh * self.kw * tiles * _padded(self.tile_back))

    def teams(self, spare: int, spare_back: int) -> tuple[Teams, Teams, Teams]:
        """Teams for y, ∂L/∂x and ∂L/∂W, with so many numbers for their sums."""
        tiles, positions = blocks(self.o, self.tile), self.rows * self.columns
        places, items = self.pool_h * self.pool_w, self.o * self.c * self.kh
        tiles_back = blocks(self.c, self.tile_back)
        return (
            _teams(self, self.c, positions * tiles, tiles * self.tile * places * positions, spare),
            _teams(self, self.o, self.pixels * tiles_back, self.inputs, spare_back),
            _teams(self, positions, items, items * (self.kw + 1), spare_back),
        )

    def text(self, spare: int, spare_back: int) -> str:
        (y, _), (dx, _), (dw, _) = self.teams(spare, spare_back)
        numbers = (
            *astuple(self)[:10],
            self.pool_h,
            self.pool_w,
            self.tile,
            y,
            self.tile_back,
            dx,
            dw,
        )
        return f"convolution<{','.join(map(str, numbers))},{self.kind}>"


@dataclass(frozen=True)
class Pooling:
    """The maximum or mean of windows, and an activation."""

    c: int
    h: int
    w: int
    kh: int
    kw: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    average: bool
    kind: str = "identity"

    learned: ClassVar[bool] = False
    launches: ClassVar[int] = 2
    parameters: ClassVar[int] = 0
    biases: ClassVar[int] = 0

    @property
    def size(self) -> Shape:
        return (
            self.c,
            (self.h + 2 * self.pad_h - self.kh) // self.stride_h + 1,
            (self.w + 2 * self.pad_w - self.kw) // self.stride_w + 1,
        )

    @property
    def inputs(self) -> int:
        return self.c * self.h * self.w

    @property
    def outputs(self) -> int:
        return math.prod(self.size)

    @property
    def has_places(self) -> bool:
        return not self.average

    def text(self) -> str:
        return f"pooling<{','.join(map(str, astuple(self)[:9]))},{int(self.average)},{self.kind}>"


@dataclass(frozen=True)
class Linear:
    """A linear layer and an activation."""

    inputs: int
    outputs: int
    has_bias: bool
    kind: str = "identity"
    threads: int = 0
    """Of a block, once that is planned."""

    learned: ClassVar[bool] = True
    launches: ClassVar[int] = 2
    has_places: ClassVar[bool] = False

    @property
    def size(self) -> Shape:
        return (self.outputs,)

    @property
    def biases(self) -> int:
        return self.outputs

    @property
    def parameters(self) -> int:
        return (self.inputs + 1) * self.outputs

    def teams(self, samples: int, vector: int, spare: int) -> Teams:
        """Teams for ∂L/∂x."""
        return _teams(self, self.outputs, self.inputs // vector, samples * self.inputs, spare)

    def text(self, samples: int, vector: int, spare: int) -> str:
        at_once = min(8, blocks(self.outputs, self.threads // WARP), max(1, MOST_SUMS // samples))
        teams, _ = self.teams(samples, vector, spare)
        numbers = (self.inputs, self.outputs, vector, at_once, teams)
        return f"linear<{','.join(map(str, numbers))},{self.kind}>"


Layer: TypeAlias = "Convolution | Pooling | Linear"


def _tile(channels: int, positions: int, terms: int, threads: int) -> int:
    """The channels of a thread: as many as leave enough threads, 4 at most."""
    for tiles in (blocks(channels, 4), blocks(channels, 2)):
        if 2 * positions * tiles * terms >= threads:
            return blocks(channels, tiles)
    return 1


def _teams(layer: Convolution | Linear, terms: int, items: int, size: int, spare: int) -> Teams:
    """The teams that share the terms of `items` sums, and numbers in shared memory for their sums.

    `size` numbers a team, of which there are `spare`; a team alone needs none.
    """
    most = max(1, min(MOST_TEAMS, terms, layer.threads // items, spare // size))
    teams = blocks(terms, blocks(terms, most))  # so few that each has about as many terms
    return teams, size * teams if teams > 1 else 0


def _padded(tile: int) -> int:
    """Numbers of a tile in shared memory."""
    return tile if tile <= 2 else whole_loads(tile)


def whole_loads(count: int) -> int:
    """Numbers in whole loads of 16 bytes."""
    return blocks(count, 4) * 4
