"""Collective operations of processes: a group's interface, and the group of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from xbp.backend import Array, array_namespace

Part = tuple[slice, Array | None]
"""A part of a 1-D array: its place, and its values; None for zeros."""


class Group(Protocol):
    """Processes, called ranks, which all make the same calls in the same order.

    If one rank leaves a call out, or makes it with another shape, the others wait for it. Arrays
    of numpy are taken by every group.
    """

    rank: int
    """The number of this process, from 0 to size - 1."""

    size: int

    local_rank: int
    """The rank among the processes on the same machine."""

    local_size: int

    def sum_(self, array: Array) -> None:
        """Replace `array`, in place, by the sum over all ranks: the same bits on every rank."""

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Replace `array`, in place, by the array of the rank `root`."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""


class Alone:
    """The group of one process, which sends nothing and never waits.

    Examples
    --------
    >>> import numpy as np
    >>> alone, a = Alone(), np.ones(2)
    >>> alone.sum_(a)
    >>> alone.rank, alone.size, a.tolist()
    (0, 1, [1.0, 1.0])
    """

    rank, size = 0, 1
    local_rank, local_size = 0, 1

    def sum_(self, array: Array) -> None:
        """The sum over one rank is its own array."""

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Do nothing: there are no other ranks."""

    def barrier(self) -> None:
        """Do nothing: there are no other ranks."""

    def __repr__(self) -> str:
        return shown(self)


def sum_parts(group: Group, whole: Array, parts: Sequence[Part]) -> None:
    """Make `whole` the sum over ranks of `parts`, which lie in it as the slices say.

    A group that has a method of this name does it with fewer copies.
    """
    own = getattr(group, "sum_parts", None)
    if own is not None:
        own(whole, parts)
        return
    fill(whole, parts)
    group.sum_(whole)


def fill(whole: Array, parts: Sequence[Part]) -> None:
    """Copy parts, of any shapes, into a 1-D array."""
    xp = array_namespace(whole)
    for where, part in parts:
        whole[where] = 0.0 if part is None else xp.reshape(part, (-1,))


def shown(group: Group) -> str:
    """The repr of a group, on one line."""
    return f"{type(group).__name__}(rank={group.rank}, size={group.size})"


class Joined:
    """Base of groups of several processes.

    A copied model keeps its group, which cannot be copied; one that is pickled is alone where it
    comes back, as its processes are not there.
    """

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return Alone, ()

    def count_step(self) -> None:
        """Note that a step begins its sum of gradients."""

    def __repr__(self) -> str:
        return shown(self)  # type: ignore[arg-type]
