"""Processes started by MPI, on one machine or on several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xbp.backend import Array, HostArray, backend_of, dtype_name, library_of, to_numpy
from xbp.errors import BackendError, InputError, RankError, brief
from xbp.launchers import launched
from xbp.parallel.groups import Joined, Part, fill
from xbp.parallel.shared import MOST, shared_sum
from xbp.parallel.watch import BARRIER, BROADCAST, SUM, Places, watch_world

LOST = 5.0
"""Seconds after which an error within a call is reported.

When a rank is killed, some calls of the others fail. Until then MPI's launcher has ended all.
"""
MAPS, MEMORY = Path("/proc/self/maps"), "mpich_shm_"
"""The files that this process has mapped, and how MPICH calls that of its ranks."""

INSTALL = 'install mpi4py and an MPI, as by pip install "xbackprop[mpi]"'


class MPIGroup(Joined):
    """The processes of an MPI communicator.

    Contiguous numpy arrays are summed in place. Arrays of other libraries are copied by way of
    the host, which waits for their device. All processes that were started together watch one
    another (`xbp.parallel.watch`); a few on one machine sum in memory that they share
    (`xbp.parallel.shared`).

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm, optional
        By default all processes that were started together: ``mpiexec -n 2 python -m mpi4py …``.
        An MPI must give every rank the same bits of a sum; MPICH and Open MPI do.

    Raises
    ------
    BackendError
        mpi4py or MPI is not installed, or is not the MPI that has started the processes.
    """

    def __init__(self, communicator: Any = None) -> None:
        MPI = engine()
        world = communicator is None
        self.communicator = MPI.COMM_WORLD if world else communicator
        self.rank: int = self.communicator.Get_rank()
        self.size: int = self.communicator.Get_size()
        if world and self.size == 1:
            check_alone()
        self._places = watch_world(MPI) if world and self.size > 1 else Places(self.rank)
        neighbours = self.communicator.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank: int = neighbours.Get_rank()
        self.local_size: int = neighbours.Get_size()
        if world and self.size > 1:
            neighbours.Barrier()  # all have opened it
            unlink_memory(MPI)
        neighbours.Free()
        self._MPI = MPI
        self._shares_memory = world and 1 < self.size == self.local_size <= MOST

    def sum_(self, array: Array) -> None:
        """Replace `array`, in place, by the sum over all ranks."""
        on_the_host(array, lambda host: self._call(SUM, self._sum, host, None))

    def sum_parts(self, whole: Array, parts: Sequence[Part]) -> None:
        """Make `whole` the sum over ranks of `parts`; see `xbp.parallel.groups.sum_parts`."""
        if type(whole) is HostArray:
            self._call(SUM, self._sum, whole, parts)
        else:
            fill(whole, parts)
            self.sum_(whole)

    def _sum(self, host: HostArray, parts: Sequence[Part] | None) -> None:
        if self._shares_memory:  # all ranks on one machine
            shared_sum(self._MPI)(host, parts)
            return
        if parts is not None:
            fill(host, parts)
        self.communicator.Allreduce(self._MPI.IN_PLACE, host)

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Replace `array`, in place, by the array of the rank `root`."""
        on_the_host(array, lambda host: self._call(BROADCAST, self.communicator.Bcast, host, root))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._call(BARRIER, self.communicator.Barrier)

    def count_step(self) -> None:
        """Begin the next step, for messages about ranks that wait in vain."""
        self._places.step()

    def _call(self, kind: int, call: Callable[..., object], *arguments: Any) -> None:
        self._places.enter(kind)
        try:
            call(*arguments)
        except self._MPI.Exception as error:
            time.sleep(LOST)
            msg = f"{self._places} when MPI reported {brief(error)}; another rank may have ended"
            raise RankError(msg) from None
        self._places.leave()


def unlink_memory(MPI: Any) -> None:
    """Unlink MPICH's shared memory, which its ranks have open, so that it ends with the last one.

    MPICH itself does that at the end of a program, and leaves megabytes when a rank is killed. Its
    end does not need the file in version 5, the one that has been tried.
    """
    vendor, version = MPI.get_vendor()
    if vendor == "MPICH" and version[0] == 5:
        with suppress(OSError):  # another system than Linux, or another rank was faster
            for line in MAPS.read_text(encoding="utf-8").splitlines():
                path = Path(line.split(maxsplit=5)[-1])
                if path.name.startswith(MEMORY) and path.exists():
                    path.unlink()


def check_alone() -> None:
    """Refuse to run as one of several processes that MPI does not connect.

    Raises
    ------
    BackendError
        Another MPI than mpi4py's has started them, or a launcher that starts no MPI.
    """
    start = launched()
    if start is not None:
        msg = (
            f"{start.by} has started {start.size} processes, and for mpi4py's MPI each is alone; "
            "start them by the mpiexec of the MPI that mpi4py uses, as xbp train … --ranks "
            f"{start.size} does"
        )
        raise BackendError(msg)


def engine() -> Any:
    """The module ``mpi4py.MPI``, whose import starts MPI.

    Raises
    ------
    BackendError
        It cannot be imported.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI
        msg = f"processes need MPI, which cannot be imported ({brief(error)}); {INSTALL}"
        raise BackendError(msg) from None
    return MPI


def on_the_host(array: Array, change: Callable[[Any], Any]) -> None:
    """Apply `change` to `array` as a numpy array, or to a copy that is written back."""
    check_changeable(array)
    if type(array) is HostArray and array.flags.c_contiguous:
        change(array)
        return
    host = to_numpy(array).copy(order="C")
    change(host)
    array[...] = host if type(array) is HostArray else backend_of(array).asarray(host)


def check_changeable(array: Any) -> None:
    """Refuse arrays that cannot be changed in place, and booleans, which have no sum."""
    if library_of(array) is None or not hasattr(array, "__setitem__"):
        msg = f"a group changes arrays in place, got {type(array).__name__}; give it an array"
        raise InputError(msg)
    if dtype_name(array.dtype) == "bool":
        msg = "a group sums numbers, got booleans; convert them with xbp.asarray(…, dtype='int64')"
        raise InputError(msg)
