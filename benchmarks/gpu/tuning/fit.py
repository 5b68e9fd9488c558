"""The constants of `wide.time` that fit measured times, and how good the choice by them is."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from benchmarks.gpu.tuning.shapes import KINDS, Shape, chosen, label, predicted
from xbp.accelerators.cuda import wide

LATENCIES = tuple(range(4, 513, 4))
TRIALS = 2000
"""Random changes of constants after the least squares."""


class Measured(NamedTuple):
    """The times of a product by label of the tile, in µs."""

    shape: Shape
    kind: str
    times: Mapping[str, float]


class Constants(NamedTuple):
    """Relative speeds by label of the tile, and `wide.LATENCY`."""

    speeds: Mapping[str, float]
    latency: float

    def tiles(self) -> tuple[wide.Tile, ...]:
        """The package's tiles with these speeds."""
        every = wide.TILES["float32"]
        return tuple(t._replace(speed=self.speeds.get(label(t), t.speed)) for t in every)


def current() -> Constants:
    """The constants of the package."""
    return Constants({label(tile): tile.speed for tile in wide.TILES["float32"]}, wide.LATENCY)


@contextmanager
def latency_is(latency: float) -> Iterator[None]:
    """Within the block, `wide.time` has another constant."""
    before = wide.LATENCY
    wide.LATENCY = latency  # type: ignore[assignment]
    try:
        yield
    finally:
        wide.LATENCY = before


def regret(constants: Constants, measured: Sequence[Measured]) -> float:
    """How many times as long as the best the choice takes, the geometric mean."""
    logs = []
    with latency_is(constants.latency):
        for shape, kind, times in measured:
            tiles = [tile for tile in constants.tiles() if label(tile) in times]
            if tiles:
                choice = label(chosen(tiles, shape, kind))
                logs.append(math.log(times[choice] / min(times[label(tile)] for tile in tiles)))
    return math.exp(sum(logs) / max(1, len(logs)))


def least_squares(measured: Sequence[Measured]) -> Constants:
    """The constants with the least squares of relative errors of all times.

    For a given latency, log(time) = log(model without speed) - log(speed) + log(unit), with a
    unit for each kind of product, is linear in the unknown logarithms. The largest tile's speed
    is 1.
    """
    every = wide.TILES["float32"]
    known = {label(tile) for _, _, times in measured for tile in every if label(tile) in times}
    tiles = [tile for tile in every if label(tile) in known]
    kinds = [kind for kind in KINDS if any(it.kind == kind for it in measured)]
    entries = [(it, i) for it in measured for i, t in enumerate(tiles) if label(t) in it.times]
    matrix = np.zeros((len(entries), len(tiles) - 1 + len(kinds)))
    for at, (it, i) in enumerate(entries):
        if i:
            matrix[at, i - 1] = -1
        matrix[at, len(tiles) - 1 + kinds.index(it.kind)] = 1
    best = (math.inf, current())
    for latency in LATENCIES:
        with latency_is(latency):
            models = [predicted(tiles[i]._replace(speed=1), *it[:2]) for it, i in entries]
        target = np.log([it.times[label(tiles[i])] for it, i in entries]) - np.log(models)
        found = np.linalg.lstsq(matrix, target, rcond=None)[0]
        error = float(((matrix @ found - target) ** 2).sum())
        speeds = [1.0, *np.exp(found[: len(tiles) - 1]).tolist()]
        fitted = Constants({label(t): s for t, s in zip(tiles, speeds, strict=True)}, latency)
        best = min(best, (error, fitted), key=lambda choice: choice[0])
    return best[1]


def search(begin: Constants, measured: Sequence[Measured], trials: int = TRIALS) -> Constants:
    """Constants with less regret than `begin`, if random changes find any."""
    rng = random.Random(0)
    best, least = begin, regret(begin, measured)
    for _ in range(trials):
        speeds = {
            name: round(min(1.2, max(0.3, s + rng.gauss(0, 0.05))), 2) if rng.random() < 0.4 else s
            for name, s in best.speeds.items()
        }
        factor = math.exp(rng.gauss(0, 0.2)) if rng.random() < 0.4 else 1.0
        tried = Constants(speeds, best.latency * factor)
        found = regret(tried, measured)
        if found < least - 1e-9:
            best, least = tried, found
    return best


def fit(measured: Sequence[Measured], trials: int = TRIALS) -> Constants:
    """The constants with the least regret, from the package's or from least squares."""
    begin = [current(), *([least_squares(measured)] if measured else [])]
    found = [search(constants, measured, trials) for constants in begin]
    return min(found, key=lambda constants: regret(constants, measured))
