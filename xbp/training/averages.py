"""Averages over an epoch that do not make the device wait."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xbp.backend import Array, array_namespace, to_numpy


class Averages:
    """Sums of batch averages, left on the device until someone looks.

    Parameters
    ----------
    loss : the loss
        Where its ``reduction`` is "sum", losses are added up; else averaged over the samples.
    names : the names of the values of each batch, the loss first
    """

    def __init__(self, loss: Any, names: tuple[str, ...]) -> None:
        self.summed = getattr(loss, "reduction", "mean") == "sum"
        self.sizes: list[int] = []
        self.waiting: dict[str, list[Array]] = {name: [] for name in names}
        self.seen: dict[str, list[float]] = {name: [] for name in names}

    def add(self, size: int, *values: Array) -> None:
        """The values of one batch of `size` samples."""
        self.sizes.append(size)
        for waiting, value in zip(self.waiting.values(), values, strict=True):
            waiting.append(value)

    def look(self) -> None:
        """Bring what waits to the host, in one transfer for each name."""
        for name, waiting in self.waiting.items():
            if waiting:
                xp = array_namespace(waiting[0])
                values = xp.stack(waiting) if len(waiting) > 1 else waiting[0]
                self.seen[name] += np.atleast_1d(to_numpy(values)).tolist()
                waiting.clear()

    def value(self, name: str, index: int) -> float:
        return self.seen[name][index]

    def first_not_finite(self, name: str) -> int | None:
        """The index of the first batch whose value is infinite or nan."""
        start = len(self.seen[name])
        self.look()
        new = self.seen[name][start:]
        return next((start + i for i, value in enumerate(new) if not math.isfinite(value)), None)

    def result(self) -> dict[str, float]:
        """Each average over all samples so far."""
        self.look()
        total = sum(self.sizes)
        result = {
            name: math.fsum(n * v for n, v in zip(self.sizes, values, strict=True)) / total
            for name, values in self.seen.items()
        }
        if self.summed:
            result["loss"] = math.fsum(self.seen["loss"])
        return result
