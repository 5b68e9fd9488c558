"""The choice of parts for the time that is left, and the limit of each."""

from __future__ import annotations

import math
from collections.abc import Iterable

from benchmarks.gpu.parts import Part

END = 10.0
"""Seconds kept for the page."""
LEAST, MOST = 0.5, 3.0
"""In units of the time that a part takes: it starts if the one is left, and may take the other."""
TOGETHER = 0.6
"""The share of the time that may go to what runs together: the rest is for benchmarks."""


def allowance(part: Part, left: float) -> float:
    """The seconds that a part may take where `left` are left; 0 if it is not to be started.

    >>> part = Part("step", "", (), seconds=60)
    >>> [allowance(part, left) for left in (math.inf, 700, 100, 40, 39)]
    [inf, 180.0, 90.0, 30.0, 0.0]
    """
    if left == math.inf:
        return left
    usable = max(0.0, left - END) * (TOGETHER if part.together else 1.0)
    return min(usable, MOST * part.seconds) if usable >= LEAST * part.seconds else 0.0


def forecast(parts: Iterable[Part], left: float) -> list[str]:
    """The names of the parts that are reached, if each takes as long as it usually does."""
    parts = list(parts)
    beside = [part for part in parts if part.together and allowance(part, left)]
    left -= max((min(part.seconds, allowance(part, left)) for part in beside), default=0.0)
    reached = [part.name for part in beside]
    for part in parts:
        if not part.together and (most := allowance(part, left)):
            left -= min(part.seconds, most)
            reached.append(part.name)
    return reached
