"""The table of convolutions, their tiles, and the cost model's times of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xbp.accelerators.cuda import launch, wide

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
