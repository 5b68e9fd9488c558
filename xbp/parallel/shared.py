"""The sum over ranks of one machine, in memory that they share.

Each rank copies its array into memory of its own that all can read, and adds up those of all ranks,
in their order: so all get the same bits. Two pieces of memory take turns. When a rank writes to one
of them, the others have read it, as they have come to the meeting after that:

    write piece 0 │ meet │ read piece 0, write piece 1 │ meet │ read piece 1, write piece 0 │ …

Larger arrays travel in several pieces. n ranks read n arrays each; the sum of MPI divides this work
among them, and is better for many ranks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from xbp.accelerators.cpu.stream import stream
from xbp.errors import RankError
from xbp.parallel.groups import Part, fill

MOST = 4
"""The largest number of ranks that sum in this way."""

PIECE = 2**20
"""Bytes of a piece: less than a core's cache; containers often have 64 MB of shared memory."""

HEAD = 64
"""Bytes before the pieces: the number of meetings, then size and dtype of either piece."""

POLLS, PAUSE = 2000, 5e-5
"""The looks for other ranks in a row, and the seconds between two later ones.

The former take some 0.2 ms, more than steps of a small model differ between cores. Then a rank that
shares its core leaves it to another one.
"""

KEPT = 64
"""The most sizes and dtypes for which arrays in the memory are kept."""


class SharedSum:
    """A sum of contiguous numpy arrays over ranks of one machine. All ranks make it.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm
    MPI : module
        ``mpi4py.MPI``.
    """

    def __init__(self, communicator: Any, MPI: Any) -> None:
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self.window = MPI.Win.Allocate_shared(HEAD + 2 * PIECE, 1, comm=communicator)
        self.window.Lock_all()  # until `free`
        memory = [memoryview(self.window.Shared_query(rank)[0]) for rank in range(self.size)]
        self.heads = [each[:HEAD].cast("b").cast("q") for each in memory]
        starts = HEAD, HEAD + PIECE
        self.pieces = [[each[start : start + PIECE] for each in memory] for start in starts]
        self.arrays: dict[Any, list[Any]] = {}
        self.met = self.heads[self.rank][0] = 0
        communicator.Barrier()

    def __call__(self, whole: Any, parts: Sequence[Part] | None = None) -> None:
        """Make `whole` the sum over ranks of itself, or of `parts`, which lie in it one by one.

        Raises
        ------
        RankError
            Another rank sums an array of another size or dtype.
        """
        flat = whole.reshape(-1)
        if parts is not None and flat.nbytes <= PIECE and _fit(parts):
            self._sum(flat, [_contiguous(flat, *part) for part in parts])
            return
        if parts is not None:
            fill(flat, parts)
        count = PIECE // flat.itemsize
        for start in range(0, max(flat.size, 1), count):
            piece = flat[start : start + count]
            self._sum(piece, [piece])

    def free(self) -> None:
        """Give the memory back. All ranks call it, and none sums any more."""
        self.window.Unlock_all()
        self.window.Free()

    def _sum(self, piece: Any, parts: list[Any]) -> None:
        first, second, *others = given = self._memory(piece)
        stream(given[self.rank], parts)
        self._meet(piece)
        np.add(first, second, out=piece)
        for other in others:
            piece += other

    def _memory(self, piece: Any) -> list[Any]:
        """The arrays of all ranks, in the half whose turn it is."""
        key = self.met % 2, piece.dtype, piece.size
        found = self.arrays.get(key)
        if found is None:
            if len(self.arrays) >= KEPT:
                self.arrays.clear()
            half = self.pieces[self.met % 2]
            found = [np.frombuffer(memory, piece.dtype, piece.size) for memory in half]
            self.arrays[key] = found
        return found

    def _meet(self, piece: Any) -> None:
        """Wait until all ranks are here, and see what they have written before."""
        own, turn = self.heads[self.rank], 1 + 2 * (self.met % 2)
        self.met = met = self.met + 1
        own[turn], own[turn + 1] = what = piece.size, ord(piece.dtype.char)
        self.window.Sync()
        own[0] = met
        for head in self.heads:
            looks = 0
            while head[0] < met:
                looks += 1
                if looks > POLLS:
                    time.sleep(PAUSE)
        self.window.Sync()
        for rank, head in enumerate(self.heads):
            if head[turn] != what[0] or head[turn + 1] != what[1]:
                theirs, ours = (
                    f"{size:,} numbers of {np.dtype(chr(code)).name}"
                    for size, code in ((head[turn], head[turn + 1]), what)
                )
                msg = (
                    f"rank {rank} sums {theirs}, and rank {self.rank} {ours}; every rank must make "
                    "the same calls"
                )
                raise RankError(msg)


@cache
def shared_sum(MPI: Any) -> SharedSum:
    """The sum over all ranks; they make it together, in their first one."""
    return SharedSum(MPI.COMM_WORLD, MPI)


def free_memory(MPI: Any) -> None:
    """Free what `shared_sum` has made, as MPI asks for before it ends."""
    if shared_sum.cache_info().currsize:
        shared_sum(MPI).free()
        shared_sum.cache_clear()


def _fit(parts: Sequence[Part]) -> bool:
    return all(part is None or part.size == where.stop - where.start for where, part in parts)


def _contiguous(whole: Any, where: slice, part: Any) -> Any:
    if part is None:
        return np.zeros(where.stop - where.start, whole.dtype)
    return np.ascontiguousarray(part, whole.dtype)
