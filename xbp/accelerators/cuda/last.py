"""Sums of parts by the block that comes last, in place of a launch of `add_up`.

A launch in a graph takes 3.5 to 4 µs on an H200. A thread that reads `MOST_READS` numbers, 16 at a
time, waits about as long for the second-level cache. So short sums are left to the last block of
each stripe, and long ones to `add_up`, whose threads are many. (By arithmetic; not yet measured.)
"""

from __future__ import annotations

from typing import NamedTuple

from xbp.accelerators.cuda.launch import COUNTER, Machine
from xbp.accelerators.cuda.passes import add_up
from xbp.accelerators.shared import Array

MOST_READS = 96
"""The most numbers of other blocks that a thread of the last block reads."""


class Parts(NamedTuple):
    """Where a kernel writes the parts of a sum, and where it finds the sum afterwards.

    Attributes
    ----------
    partial : array (parts, size)
    total : array (size,) or None
        Where the last blocks write the sum; None if the launch leaves the parts as they are.
    counters : int
        The address of a counter for each stripe; 0 without a total.
    """

    partial: Array
    total: Array | None
    counters: int

    def sum(self) -> Array:
        """The sum, after the launch."""
        if self.total is not None:
            return self.total
        return self.partial[0] if self.partial.shape[0] == 1 else add_up(self.partial)


def parts_of_sum(
    machine: Machine,
    shape: tuple[int, int],
    dtype: object,
    stripes: int,
    reads: int,
    before: int = 0,
) -> Parts:
    """Memory for the parts of a sum.

    Parameters
    ----------
    machine : Machine
    shape : (parts, size)
    dtype : dtype
    stripes : int
        The number of counters: blocks with different numbers of stripes share no part of the sum.
    reads : int
        The numbers that a thread of a last block would read.
    before : int
        Counters of the same launch that are another sum's.
    """
    partial, total, counters = machine.empty(shape, dtype), None, 0
    if shape[0] > 1 and reads <= MOST_READS:
        counters = machine.counters(before + stripes)
    if counters:
        total, counters = machine.empty(shape[1:], dtype), counters + COUNTER * before
    return Parts(partial, total, counters)
