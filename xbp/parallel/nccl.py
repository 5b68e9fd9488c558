"""Processes with a GPU each, by NVIDIA's NCCL. Not yet run on a GPU."""

from __future__ import annotations

from xbp.accelerators.cuda.nccl import Communicator, new_id
from xbp.backend import Array, HostArray
from xbp.parallel.groups import Joined
from xbp.parallel.mpi import MPIGroup, check_changeable


class NCCLGroup(Joined):
    """The processes that MPI has started, each with the GPU of its local rank.

    MPI hands out the id by which they find one another; arrays travel by NCCL, on the current
    stream, without a wait for the device. So a step that is recorded has the sum in its graph.
    Arrays of numpy travel by MPI. Not yet run on a GPU.

    Parameters
    ----------
    processes : MPIGroup, optional
        By default all that were started together.

    Raises
    ------
    BackendError
        mpi4py, an MPI, CuPy or NCCL is not installed.
    """

    recordable = True

    def __init__(self, processes: MPIGroup | None = None) -> None:
        self.processes = MPIGroup() if processes is None else processes
        self.rank, self.size = self.processes.rank, self.processes.size
        self.local_rank = self.processes.local_rank
        self.local_size = self.processes.local_size
        number = new_id() if self.rank == 0 else None
        number = self.processes.communicator.bcast(number, 0)
        self._joined = Communicator(self.size, number, self.rank, device=self.local_rank)

    def sum_(self, array: Array) -> None:
        """Replace `array`, in place, by the sum over all ranks."""
        check_changeable(array)
        (self.processes if type(array) is HostArray else self._joined).sum_(array)

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Replace `array`, in place, by that of the rank `root`."""
        check_changeable(array)
        (self.processes if type(array) is HostArray else self._joined).broadcast_(array, root)

    def count_step(self) -> None:
        """Begin the next step, which is named if ranks wait in vain."""
        self.processes.count_step()

    def barrier(self) -> None:
        """Wait until all ranks are here, and what they have asked of their GPUs is done."""
        self._joined.synchronize()
        self.processes.barrier()
