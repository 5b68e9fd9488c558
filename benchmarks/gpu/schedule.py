"""The choice of parts for the time that is left, and the limit of each."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.gpu.parts import Part

END = 10.0
"""Seconds kept for the page."""
LEAST, MOST = 0.5, 3.0
"""Least time left for a part to start, and its limit, in units of its expected time."""
TOGETHER = 0.6
"""The share of the time for concurrent parts; the rest is for benchmarks."""


def allowance(part: Part, left: float) -> float:
    """The limit of a part in seconds if `left` are left; 0 if it is not to be started.

    >>> part = Part("step", "", (), seconds=60)
    >>> [allowance(part, left) for left in (math.inf, 700, 100, 40, 39)]
    [inf, 180.0, 90.0, 30.0, 0.0]
    """
    if left == math.inf:
        return left
    usable = max(0.0, left - END) * (TOGETHER if part.together else 1.0)
    return min(usable, MOST * part.seconds) if usable >= LEAST * part.seconds else 0.0


def forecast(parts: Iterable[Part], left: float) -> list[str]:
    """The names of the parts that are reached, if each takes its expected time."""
    parts = list(parts)
    beside = [part for part in parts if part.together and allowance(part, left)]
    left -= max((min(part.seconds, allowance(part, left)) for part in beside), default=0.0)
    reached = [part.name for part in beside]
    for part in parts:
        if not part.together and (most := allowance(part, left)):
            left -= min(part.seconds, most)
            reached.append(part.name)
    return reached
