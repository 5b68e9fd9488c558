"""Layers of `whole`, and how blocks of threads divide their work.

The numbers here are those of whole.h's templates: a layer's text is a type there, and a plan's
macros say where its arrays are in shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeAlias

from xbp.accelerators.cuda.launch import PROCESSORS, blocks
from xbp.accelerators.shared import Shape

THREADS = 512
"""Threads of a block: two blocks of samples share a multiprocessor, if registers and shared memory
suffice. Not yet measured."""
MOST_BYTES = 48 * 1024
"""Shared memory of a block that every GPU has."""
MOST_SAMPLES = 8
MOST_SUMS = 16
"""Sums of a thread in a linear layer."""
MOST_TEAMS = 16
"""The most threads that share a sum, if their sums fit into shared memory."""
WARP = 32
Division: TypeAlias = "tuple[int, int]"
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
        return _tile(self.o, self.rows * self.columns, self.c)

    @property
    def tile_back(self) -> int:
        """Channels of a thread for ∂L/∂x."""
        return _tile(self.c, self.pixels, self.o)

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
        return _whole(self.c * self.kh * self.kw * tiles * _padded(self.tile))

    @property
    def kernels_back(self) -> int:
        """The same for ∂L/∂x."""
        tiles = blocks(self.c, self.tile_back)
        return _whole(self.o * self.kh * self.kw * tiles * _padded(self.tile_back))

    def teams(self, spare: int, spare_back: int) -> tuple[Division, Division, Division]:
        """Teams for y, ∂L/∂x and ∂L/∂W, with so many numbers for their sums."""
        tiles, positions = blocks(self.o, self.tile), self.rows * self.columns
        places, items = self.pool_h * self.pool_w, self.o * self.c * self.kh
        tiles_back = blocks(self.c, self.tile_back)
        return (
            _teams(self.c, positions * tiles, tiles * self.tile * places * positions, spare),
            _teams(self.o, self.pixels * tiles_back, self.inputs, spare_back),
            _teams(positions, items, items * (self.kw + 1), spare_back),
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

    def teams(self, samples: int, vector: int, spare: int) -> Division:
        """Teams for ∂L/∂x."""
        return _teams(self.outputs, self.inputs // vector, samples * self.inputs, spare)

    def text(self, samples: int, vector: int, spare: int) -> str:
        at_once = min(8, blocks(self.outputs, THREADS // WARP), max(1, MOST_SUMS // samples))
        teams, _ = self.teams(samples, vector, spare)
        numbers = (self.inputs, self.outputs, vector, at_once, teams)
        return f"linear<{','.join(map(str, numbers))},{self.kind}>"


Layer: TypeAlias = "Convolution | Pooling | Linear"


class Plan(NamedTuple):
    """How a network is computed.

    Attributes
    ----------
    samples : int
        Of a block.
    forward : dict
        The macros of whole_forward.
    backward : tuple of dict
        Those of whole_backward, without and with ∂L/∂x.
    step : dict
        Those of whole_step.
    """

    layers: tuple[Layer, ...]
    samples: int
    threads: int
    forward: dict[str, Any]
    backward: tuple[dict[str, Any], ...]
    step: dict[str, Any]


@lru_cache(256)
def plan(layers: tuple[Layer, ...], n: int, itemsize: int, loads: tuple[int, ...]) -> Plan | None:
    """The plan with most samples a block that fits into shared memory; None if none does.

    Parameters
    ----------
    layers : tuple of Layer
    n : int
        The batch size.
    itemsize : int
        Bytes of a number.
    loads : tuple of int
        Of each layer with parameters, how many neighbouring weights are loaded at once.
    """
    given = iter(loads)
    loads = tuple(next(given) if layer.learned else 1 for layer in layers)
    most = MOST_BYTES // itemsize
    for samples in range(samples_for(n), 0, -1):
        forward = _places(*forward_arrays(layers, samples))
        backward = [
            _places(*backward_arrays(layers, samples, it, itemsize)) for it in (False, True)
        ]
        # Parameters' gradients have the same bits with and without ∂L/∂x.
        spare, spare_back = most - forward["SHARED"], most - backward[True]["SHARED"]
        if min(spare, spare_back) >= 0:
            texts = _texts(layers, samples, loads, spare, spare_back)
            sums, sums_back = _sums(layers, samples, loads, spare, spare_back)
            forward = _with_sums(forward, "AT_SUMS", sums)
            backward = [_with_sums(places, "BACK_SUMS", sums_back) for places in backward]
            ends_there = _ends_there(layers)
            for places in backward:
                places["AT_DELTA"] = places["AT_VECTORS"] if ends_there else 0
            step = {**backward[False], **forward}
            step["SHARED"] = max(forward["SHARED"], backward[False]["SHARED"])
            step["AT_LOSSES"] = 0 if ends_there else forward["AT_VECTORS"]
            return Plan(
                layers, samples, THREADS,
                {**texts, "WANTS_DX": 0, **forward},
                tuple({**texts, "WANTS_DX": it, **places} for it, places in enumerate(backward)),
                {**texts, "WANTS_DX": 0, **step},
            )  # fmt: skip
    return None


def samples_for(n: int) -> int:
    """The samples of a block, so that each multiprocessor has one, and at most `MOST_SAMPLES`."""
    return min(blocks(n, PROCESSORS), MOST_SAMPLES)


def forward_arrays(layers: Sequence[Layer], samples: int) -> Iterator[tuple[str, int]]:
    """Names and sizes of the arrays in shared memory, but for teams' sums."""
    images, linear = _split(layers)
    yield from _vectors(linear, samples)
    yield "AT_KERNELS", sum(it.kernels for it in images if isinstance(it, Convolution))
    yield "AT_IMAGES", max((layer.inputs for layer in images[::2]), default=0)
    yield "AT_OTHERS", max((layer.inputs for layer in images[1::2]), default=0)


def backward_arrays(
    layers: Sequence[Layer], samples: int, wants_dx: bool, itemsize: int
) -> Iterator[tuple[str, int]]:
    """The same for the backward."""
    images, linear = _split(layers)
    convolutions = {k: it for k, it in enumerate(images) if isinstance(it, Convolution)}
    into = [it.inputs if k or wants_dx or k in convolutions else 0 for k, it in enumerate(images)]
    kept = max((layer.outputs for layer in images if layer.has_places), default=0)
    yield from _vectors(linear, samples)
    yield "BACK_KERNELS", sum(it.kernels_back for k, it in convolutions.items() if k or wants_dx)
    yield "BACK_IMAGES", max(into[::2], default=0)
    yield "BACK_OTHERS", max(into[1::2], default=0)
    yield "BACK_PLACES", blocks(kept, itemsize)


def _sums(
    layers: Sequence[Layer], samples: int, loads: Sequence[int], spare: int, spare_back: int
) -> tuple[int, int]:
    """Numbers of teams' sums, in the forward and in the backward."""
    sums, sums_back = [0], [0]
    for layer, load in zip(layers, loads, strict=True):
        if isinstance(layer, Convolution):
            (_, y), (_, dx), (_, dw) = layer.teams(spare, spare_back)
            sums.append(y)
            sums_back += [dx, dw]
        elif isinstance(layer, Linear):
            sums_back.append(layer.teams(samples, load, spare_back)[1])
    return max(sums), max(sums_back)


def _texts(
    layers: Sequence[Layer], samples: int, loads: Sequence[int], spare: int, spare_back: int
) -> dict[str, Any]:
    """Layers as types, and sizes."""
    images, linear = _split(layers)
    of_images = [
        it.text(spare, spare_back) if isinstance(it, Convolution) else it.text() for it in images
    ]
    of_vectors = [
        layer.text(samples, load, spare_back)
        for layer, load in zip(linear, loads[len(images) :], strict=True)
    ]
    return {
        "THREADS": THREADS, "SAMPLES": samples,
        "IMAGES": ",".join(of_images), "VECTORS": ",".join(of_vectors),
        "INPUTS": layers[0].inputs, "FLAT": linear[0].inputs, "OUTPUTS": linear[-1].outputs,
    }  # fmt: skip


def _split(layers: Sequence[Layer]) -> tuple[list[Convolution | Pooling], list[Linear]]:
    """The layers on images, and those on vectors."""
    images = [layer for layer in layers if not isinstance(layer, Linear)]
    return images, [layer for layer in layers if isinstance(layer, Linear)]


def _vectors(linear: Sequence[Linear], samples: int) -> Iterator[tuple[str, int]]:
    """The two places of vectors, which inputs and outputs of the layers take in turn."""
    sizes = [linear[0].inputs, *(layer.outputs for layer in linear)]
    yield "", samples * max(sizes[::2])
    yield "AT_VECTORS", samples * max(sizes[1::2])


def _places(*arrays: tuple[str, int]) -> dict[str, int]:
    """Where each array begins, and the sum of their sizes, in whole loads of 16 bytes."""
    found, at = dict[str, int](), 0
    for name, size in arrays:
        if name:
            found[name] = at
        at += _whole(size)
    return {**found, "SHARED": at}


def _with_sums(places: dict[str, int], name: str, sums: int) -> dict[str, int]:
    """Places, with that of teams' sums at the end."""
    return {**places, name: places["SHARED"], "SHARED": places["SHARED"] + sums}


def _ends_there(layers: Sequence[Layer]) -> bool:
    """Whether the last layer's output takes the second place of vectors."""
    return sum(isinstance(layer, Linear) for layer in layers) % 2 == 1


def _tile(channels: int, positions: int, terms: int) -> int:
    """The channels of a thread: as many as leave enough threads, 4 at most."""
    for tiles in (blocks(channels, 4), blocks(channels, 2)):
        if 2 * positions * tiles * terms >= THREADS:
            return blocks(channels, tiles)
    return 1


def _teams(terms: int, items: int, size: int, spare: int) -> Division:
    """The teams that share the terms of `items` sums, and numbers in shared memory for their sums.

    `size` numbers a team, of which there are `spare`; a team alone needs none.
    """
    most = max(1, min(MOST_TEAMS, terms, THREADS // items, spare // size))
    teams = blocks(terms, blocks(terms, most))  # so few that each has about as many terms
    return teams, size * teams if teams > 1 else 0


def _padded(tile: int) -> int:
    """Numbers of a tile in shared memory."""
    return tile if tile <= 2 else _whole(tile)


def _whole(count: int) -> int:
    """Numbers in whole loads of 16 bytes."""
    return blocks(count, 4) * 4
