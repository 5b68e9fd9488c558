"""Shapes of convolutions, drawn over the whole range that people use."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

CHANNELS = (1, 3, 8, 16, 32, 64, 128, 256, 512)
SIZES = (4, 5, 7, 8, 12, 14, 16, 28, 32, 64)
BATCHES = (1, 2, 8, 16, 32, 64, 100, 128, 256, 512)
KERNELS = (1, 3, 5)
MOST_ENTRIES = 2**24
"""Of the largest array of a step."""


class Convolutions(NamedTuple):
    """A network ["convolutions", channels, outputs, size, kernel] and a batch."""

    channels: int
    outputs: int
    size: int
    kernel: int
    batch: int

    @property
    def model(self) -> list[Any]:
        return ["convolutions", *self[:4]]

    @property
    def work(self) -> int:
        """FLOP of a training step, about."""
        pixels, weights = self.batch * self.size**2, self.kernel**2 * self.outputs
        return 6 * pixels * weights * (self.channels + self.outputs)

    def __str__(self) -> str:
        size, kernel = f"{self.size} × {self.size}", f"{self.kernel} × {self.kernel}"
        return f"{self.batch} × {self.channels} × {size}, {self.outputs} kernels {kernel}"


def draw_shapes(count: int, most_work: float, seed: int = 0) -> list[Convolutions]:
    """Different shapes, each value equally often, of no more than `most_work` FLOP a step.

    >>> draw_shapes(1, 1e9)[0].work <= 1e9
    True
    """
    rng, found = np.random.default_rng(seed), dict[Convolutions, None]()
    while len(found) < count:
        values = (CHANNELS, CHANNELS, SIZES, KERNELS, BATCHES)
        shape = Convolutions(*(int(rng.choice(each)) for each in values))
        entries = shape.batch * max(shape.channels, shape.outputs) * shape.size**2
        if shape.work <= most_work and entries <= MOST_ENTRIES:
            found[shape] = None
    return list(found)
