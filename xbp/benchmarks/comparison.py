"""Numbers of the sides, compared: losses, costs, errors after training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TypeAlias

Costs: TypeAlias = "dict[str, list[float | None]]"
"""The costs of each side, round by round; None for a goal not reached."""

Epoch: TypeAlias = "dict[str, float]"
"""Seconds and accuracy after an epoch."""


def deviation(values: list[float], expected: list[float]) -> float:
    """Largest relative difference of two lists; 0 if they are empty, infinite if one has a nan."""
    pairs = zip(values, expected, strict=True)
    apart = [abs(a - b) / abs(b) if b else abs(a) for a, b in pairs]
    return math.inf if any(map(math.isnan, apart)) else max(apart, default=0.0)


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def spread(theirs: list[float | None], ours: list[float | None]) -> list[float] | None:
    """Median, least and largest of theirs / ours in the same round."""
    pairs = zip(theirs, ours, strict=True)
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return [statistics.median(ratios), min(ratios), max(ratios)] if ratios else None


def disagreements(costs: Costs) -> list[str]:
    """A sentence for each side whose mean differs from the last side's by more than seeds do."""
    known = {side: [v for v in values if v is not None] for side, values in costs.items()}
    means = {side: statistics.fmean(values) for side, values in known.items()}
    apart, last = max(max(values) - min(values) for values in known.values()), [*known][-1]
    return [
        f"the mean of {side} is {mean:.3%}, that of {last} {means[last]:.3%}, and seeds differ by "
        f"{apart:.3%} at most"
        for side, mean in means.items()
        if abs(mean - means[last]) > apart
    ]


def after_last_epoch(trained: dict[str, list[list[Epoch]]]) -> dict[str, list[Epoch]]:
    """What was measured after the last epoch of each training, by side."""
    return {side: [epochs[-1] for epochs in all_] for side, all_ in trained.items()}
