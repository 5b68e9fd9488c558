"""Convolutions of many channels: y, ∂L/∂x and ∂L/∂W of VGG, ResNet-20 and FastCIFAR."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

from benchmarks.gpu.tuning.row import Case, Draw, Row, error_of
from xbp.accelerators.cuda import launch, wide
from xbp.primitives import convolve

FAMILY = "convolutions"
FILES = ("wide.cu", "wide_to_input.cu", "wide_to_weight.cu")
KINDS = {
    "y": frozenset({"convolve_wide"}),
    "∂L/∂x": frozenset({"convolve_wide_to_input"}),
    "∂L/∂W": frozenset({"convolve_wide_to_weight", "add_up"}),
}
"""The kernels of each product."""


class Shape(NamedTuple):
    """A square convolution: n images of c channels and h × h pixels, to o channels."""

    name: str
    n: int
    c: int
    h: int
    o: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1

    @property
    def out(self) -> int:
        """The side of an image of y."""
        return (self.h + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def flop(self) -> int:
        return 2 * self.n * self.c * self.o * self.kernel**2 * self.out**2

    def terms(self, kind: str) -> int:
        """The terms of each sum, on average."""
        window = self.kernel**2
        sums = {"y": self.c * window, "∂L/∂x": self.o * window // self.stride**2}
        return sums.get(kind, self.n * self.out**2)

    def small(self) -> Shape:
        """A shape for the emulation, with the same channels, stride and padding."""
        return self._replace(n=8 if self.n % 8 == 0 else 5, h=min(self.h, 6))


SHAPES = (
    Shape("VGG 3-64 @32", 128, 3, 32, 64),
    Shape("VGG 64-64 @32", 128, 64, 32, 64),
    Shape("VGG 64-128 @16", 128, 64, 16, 128),
    Shape("VGG 128-128 @16", 128, 128, 16, 128),
    Shape("VGG 128-256 @8", 128, 128, 8, 256),
    Shape("VGG 256-256 @8", 128, 256, 8, 256),
    Shape("ResNet-20 16-16 @32", 128, 16, 32, 16),
    Shape("ResNet-20 16-32 /2", 128, 16, 32, 32, stride=2),
    Shape("ResNet-20 32-32 @16", 128, 32, 16, 32),
    Shape("ResNet-20 64-64 @8", 128, 64, 8, 64),
    Shape("ResNet-20, batch 512, 16-16 @32", 512, 16, 32, 16),
    Shape("ResNet-20, batch 512, 64-64 @8", 512, 64, 8, 64),
    Shape("FastCIFAR 24-64 @31", 500, 24, 31, 64),
    Shape("FastCIFAR 64-128 @15", 500, 64, 15, 128),
    Shape("FastCIFAR 256-256 @3", 500, 256, 3, 256),
)
"""The table; @ is the side of the images."""


# --- tiles ---------------------------------------------------------------------------------------


def label(tile: wide.Tile) -> str:
    """Rows × columns × terms of a stage / threads @ images.

    >>> label(wide.Tile(64, 128, 16, 8, 8, 0.98))
    '64x128x16/128'
    """
    images = f"@{tile.images}" * bool(tile.images)
    return f"{tile.m}x{tile.n}x{tile.depth}/{tile.threads}{images}"


def loadable(shape: Shape) -> tuple[wide.Tile, ...]:
    return wide.loadable(wide.TILES["float32"], 4 if shape.n % 4 == 0 else 1)


def sizes(shape: Shape, kind: str) -> tuple[int, int, int]:
    """Rows and columns of a product, and the number of such products."""
    if kind == "y":
        return shape.o, shape.out**2 * shape.n, 1
    if kind == "∂L/∂x":
        pixels = launch.blocks(shape.h, shape.stride) ** 2 * shape.n
        return shape.c, pixels, shape.stride**2
    return shape.o, shape.c * shape.kernel**2, 1


def predicted(tile: wide.Tile, shape: Shape, kind: str) -> float:
    """The time of a product by the cost model, in no unit."""
    rows, columns, copies = sizes(shape, kind)
    number, length = wide.number_of(tile, rows, columns, copies), shape.terms(kind)
    if kind == "∂L/∂W":
        _, parts, length = wide.split.__wrapped__((tile,), rows, columns, length)
        number *= parts
    return length * wide.time(tile, number)


def chosen(tiles: Sequence[wide.Tile], shape: Shape, kind: str) -> wide.Tile:
    """The tile that the rule chooses."""
    return min(tiles, key=lambda tile: predicted(tile, shape, kind))


def tiles_for(shape: Shape, kind: str) -> dict[str, wide.Tile]:
    """The rule's tile, those that are no waste of rows, and the rule's with other images."""
    tiles, rows = loadable(shape), sizes(shape, kind)[0]
    rule = chosen(tiles, shape, kind)
    others = [t for t in tiles if min(rows, 64) // 2 <= t.m <= max(16, rows)]
    images = [i for i in (32, 16, 20) if shape.n % i == 0 and kind != "∂L/∂W"]
    found = [rule, *others, *(rule._replace(images=i) for i in images)]
    return {label(tile): tile for tile in found}


# --- what is computed ----------------------------------------------------------------------------


def rows(small: bool = False) -> Iterator[Row]:
    """The products of the table; `small`, of a size for the emulation."""
    for shape in SHAPES:
        it = shape.small() if small else shape
        for kind, kernels in KINDS.items():
            tiles = tiles_for(it, kind)
            case = partial(case_of, it, kind)
            yield Row(FAMILY, f"{shape.name} {kind}", it.flop, tiles, kernels, case)


class Data:
    """The arrays of a shape, in the order in memory that the kernels read."""

    def __init__(self, shape: Shape, draw: Draw) -> None:
        n, c, h, o, kernel, stride, padding = shape[1:]
        self.window = {"stride": (stride, stride), "padding": (padding, padding)}
        self.x = draw(c, h, h, n).transpose(3, 0, 1, 2)
        self.weight = draw(o, c, kernel, kernel)
        self.dy = draw(o, shape.out, shape.out, n).transpose(3, 0, 1, 2)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The reference's results in float64."""
        x, weight, dy = (array.astype("f8") for array in (self.x, self.weight, self.dy))
        y, backward = convolve.reference(x, weight, **self.window)
        dx, dweight, _ = backward(dy)
        return {"y": y, "∂L/∂x": dx, "∂L/∂W": dweight}


data_of = lru_cache(None)(Data)


def case_of(shape: Shape, kind: str, draw: Draw) -> Case:
    data = data_of(shape, draw)
    window = (*data.window.values(), (1, 1))

    def forward() -> Any:
        return wide.convolve(data.x, data.weight, None, *window, groups=1, relu=False)

    def call(tile: wide.Tile) -> Callable[[], Any]:
        with launching(frozenset(), data.x):
            _, backward = forward()  # which does not read y

        def run() -> Any:
            with tiles_are(tile), launching(KINDS[kind], data.x):
                if kind == "y":
                    return forward()[0]
                return backward(data.dy, kind == "∂L/∂x")[0 if kind == "∂L/∂x" else 1]

        return run

    def error(found: Any) -> float:
        return error_of(found, data.truth[kind], shape.terms(kind))

    return Case(call, error, lambda: by_torch(shape, kind, data))


@contextmanager
def tiles_are(tile: wide.Tile) -> Iterator[None]:
    """Within the block, `tile` is the only one to choose from."""
    before = wide.TILES
    wide.TILES = {**before, "float32": (tile,)}
    try:
        yield
    finally:
        wide.TILES = before


@contextmanager
def launching(kernels: frozenset[str], array: Any) -> Iterator[None]:
    """Within the block, other kernels are left out, whose results are not looked at."""
    machine: Any = launch.machine_of(array)
    whole = machine.launch

    def some(kernel: tuple[str, str], *rest: Any) -> None:
        if kernel[1] in kernels:
            whole(kernel, *rest)

    machine.launch = some
    try:
        yield
    finally:
        del machine.launch


def by_torch(shape: Shape, kind: str, data: Data) -> Callable[[], Any]:
    """cuDNN's convolution, in PyTorch's order in memory."""
    import cupy
    import torch.utils.dlpack

    arrays = (data.x, data.weight, data.dy)
    x, weight, dy = (
        torch.utils.dlpack.from_dlpack(cupy.ascontiguousarray(array)) for array in arrays
    )
    cupy.cuda.Device().synchronize()  # PyTorch has a stream of its own
    window = ([shape.stride] * 2, [shape.padding] * 2)
    if kind == "y":
        return lambda: torch.nn.functional.conv2d(x, weight, None, *window)
    wanted = [kind == "∂L/∂x", kind == "∂L/∂W", False]
    options = ([1, 1], False, [0, 0], 1, wanted)
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(dy, x, weight, None, *window, *options)
