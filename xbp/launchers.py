"""The launcher of this process, the number of its processes, and the cores of each.

The environment variables of launchers and of libraries below numpy; nothing here imports numpy, as
those libraries read theirs when they are loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Launched(NamedTuple):
    """A process with its numbers from the launcher."""

    by: str
    rank: int
    size: int
    local_rank: int
    """The rank among the processes on the same machine."""

    local_size: int


class Variables(NamedTuple):
    """The environment variables in which a launcher writes these numbers."""

    rank: str
    size: str
    local_rank: str
    local_size: str


LAUNCHERS = {
    "MPICH": Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Open MPI": Variables(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # The step's variables, as a batch script, a single process, has those of the job.
    "Slurm": Variables(
        "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"
    ),
    "torchrun": Variables("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
}
"""Launchers that start MPI come first: `srun` and `mpiexec` may run within one another."""

THREADS = (
    *("XBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)
"""Numbers of threads for the kernels of xbp and for the libraries below numpy."""


def launched(environment: Mapping[str, str] | None = None) -> Launched | None:
    """The launcher and numbers of this process; None if it was started alone.

    >>> launched({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"})
    Launched(by='MPICH', rank=1, size=2, local_rank=1, local_size=2)
    >>> launched({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1",
    ...           "SLURM_STEP_TASKS_PER_NODE": "2(x3)"})
    Launched(by='Slurm', rank=5, size=6, local_rank=1, local_size=2)
    """
    environment = os.environ if environment is None else environment
    for launcher, names in LAUNCHERS.items():
        rank, size, local_rank, local_size = (_number(environment.get(name)) for name in names)
        if rank is None or size is None or size < 2:
            continue
        return Launched(launcher, rank, size, local_rank or 0, local_size or 1)
    return None


def _number(text: str | None) -> int | None:
    """The first number of a text: Slurm writes "2(x3)" for three machines with two ranks each."""
    match = re.match(r"\d+", text or "")
    return int(match[0]) if match else None


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_of_cores(local_size: int) -> dict[str, str]:
    """The variables of `THREADS` for one of the processes on a machine, unless they are set.

    All of them follow OMP_NUM_THREADS where that is set.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    share = str(max(1, cores() // local_size))
    return {name: share for name in THREADS if name not in os.environ}


def take_share_of_cores() -> None:
    """In a process that was started with others: as many threads as its share of the cores.

    Called before numpy is imported.
    """
    start = launched()
    if start is not None:
        os.environ.update(share_of_cores(start.local_size))
