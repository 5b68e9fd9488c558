"""Shapes of convolutions, drawn over the whole range that people use."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CHANNELS = (1, 3, 8, 16, 32, 64, 128, 256, 512)
SIZES = (4, 5, 7, 8, 12, 14, 16, 28, 32, 64)
BATCHES = (1, 2, 8, 16, 32, 64, 100, 128, 256, 512)
KERNELS = (1, 3, 5)
STRIDES, DILATIONS = (1, 2), (1, 2)
MOST_ENTRIES = 2**24
"""Of the largest array of a step."""


class Convolutions(NamedTuple):
    """A network ["convolutions", channels, outputs, size, kernel, …] and a batch."""

    channels: int
    outputs: int
    size: int
    kernel: int
    batch: int
    stride: int = 1
    dilation: int = 1
    depthwise: bool = False

    @property
    def model(self) -> list[Any]:
        window = [self.stride, self.dilation, int(self.depthwise)]
        return ["convolutions", *self[:4], *(window if self.has_window else [])]

    @property
    def has_window(self) -> bool:
        """Whether it has a stride, a dilation or groups."""
        return (self.stride, self.dilation, self.depthwise) != (1, 1, False)

    @property
    def work(self) -> int:
        """FLOP of a training step, about, without strides and groups."""
        pixels, weights = self.batch * self.size**2, self.kernel**2 * self.outputs
        return 6 * pixels * weights * (self.channels + self.outputs)

    def __str__(self) -> str:
        size, kernel = f"{self.size} × {self.size}", f"{self.kernel} × {self.kernel}"
        window = f", stride {self.stride}" if self.stride > 1 else ""
        window += f", dilation {self.dilation}" if self.dilation > 1 else ""
        kind = " depthwise" if self.depthwise else ""
        kernels = f"{self.outputs}{kind} kernels {kernel}"
        return f"{self.batch} × {self.channels} × {size}, {kernels}{window}"


def draw_shapes(
    count: int, most_work: float, seed: int = 0, *, windows: bool = False
) -> list[Convolutions]:
    """Different shapes, each value equally often, of no more than `most_work` FLOP a step.

    With `windows`, each shape has a stride, a dilation or a group for each channel.

    >>> draw_shapes(1, 1e9)[0].work <= 1e9
    True
    """
    rng, found = np.random.default_rng(seed), dict[Convolutions, None]()
    while len(found) < count:
        values = (CHANNELS, CHANNELS, SIZES, KERNELS, BATCHES)
        channels, outputs, size, kernel, batch = (int(rng.choice(each)) for each in values)
        shape = Convolutions(channels, outputs, size, kernel, batch)
        if windows:
            stride, dilation = int(rng.choice(STRIDES)), int(rng.choice(DILATIONS))
            shape = shape._replace(stride=stride, dilation=dilation if kernel > 1 else 1)
            if rng.integers(2):
                shape = shape._replace(outputs=channels, depthwise=True)
        entries = shape.batch * max(shape.channels, shape.outputs) * shape.size**2
        fits = shape.work <= most_work and entries <= MOST_ENTRIES
        if fits and shape.has_window == windows:
            found[shape] = None
    return list(found)
