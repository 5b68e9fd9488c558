"""``--ranks n``: the processes of a command that train together.

The process that the user started starts the ranks, by the ``mpiexec`` of the MPI that mpi4py uses,
passes on what they say, and ends with their status. Each rank is the same command once more; it
joins the group, and rank 0 alone prints. Ranks that the user's own ``mpiexec``, ``srun`` or
torchrun started join in the same way.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

import xbp
from xbp import parallel
from xbp.arguments import integer
from xbp.backend import Backend, find_backend
from xbp.cli.options import Options
from xbp.cli.starting import start
from xbp.errors import BackendError, InputError, XBPError
from xbp.launchers import Launched, cores, launched
from xbp.parallel import Group

_joined: list[Any] = []
"""The group of this process, once it has joined one."""


def ready(options: Options) -> tuple[Backend, Group | None]:
    """Check options, set the backend, and join the ranks: a training's first call.

    In the process in which the user asks for several ranks it starts them, and exits as they do.

    Returns
    -------
    backend : Backend
        On the device of this rank.
    group : Group or None
        None if this process is alone.

    Raises
    ------
    XBPError
        An option is wrong; there are fewer cores than ranks; there is no MPI.
    """
    group = join(options.ranks)
    options.check()
    if group is None and options.ranks is not None:
        start_if_several(options.ranks)
    device = options.device
    if group is not None and options.backend == "cupy":  # not yet run on a GPU
        device = device or f"cuda:{group.local_rank}"
    backend = find_backend(options.backend, device=device)
    xbp.set_backend(backend.name, device=device)
    if group is not None and options.backend == "cupy":
        group = parallel.group("nccl")
    return backend, group


def group_of(ranks: int | None) -> Group | None:
    """The same for a command without `Options`."""
    group = join(ranks)
    if group is None and ranks is not None:
        start_if_several(ranks)
        group = parallel.group()  # of one
    return group


def join(ranks: int | None) -> Group | None:
    """The group of the processes with which this one was started; None if it is alone.

    Raises
    ------
    InputError
        --ranks differs from their number.
    BackendError
        See `xbp.parallel.group`.
    """
    start = launched()
    if start is None:
        return None
    if start.by == "torchrun":
        start_from_the_first(start)
    if not _joined:
        _joined.append(parallel.group("mpi"))
        if start.rank:
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    group: Group = _joined[0]
    if ranks not in (None, group.size):
        msg = f"--ranks is {ranks}, but {start.by} has started {group.size}; leave --ranks out"
        raise InputError(msg)
    return group


def first(group: Group | None) -> bool:
    """Whether this process writes the files of a run."""
    return group is None or group.rank == 0


def end_all_ranks(sentence: str, status: int = 2) -> None:
    """End all ranks, of which one prints the sentence; return where MPI does not work."""
    with suppress(XBPError):
        join(None)
    if not _joined:
        return
    from xbp.parallel.mpi import engine
    from xbp.parallel.watch import end_all, wait_for_rank_0

    rank = _joined[0].rank
    wait_for_rank_0(rank)
    end_all(f"rank {rank}: {sentence}", engine(), status)


def start_if_several(ranks: int) -> None:
    """Start so many ranks, and exit as they do; return if it is one.

    Raises
    ------
    InputError
        There are fewer cores.
    BackendError
        mpi4py or an MPI is not installed.
    """
    ranks = integer("--ranks", ranks, least=1)
    if ranks > cores():
        msg = (
            f"--ranks {ranks} are more processes than the {cores()} cores here, which would wait "
            f"for one another; give at most {cores()}"
        )
        raise InputError(msg)
    if ranks > 1:
        raise typer.Exit(start(ranks))


def start_from_the_first(launch: Launched) -> None:
    """Of processes that were started without MPI: the first one starts ranks, the others end.

    Raises
    ------
    BackendError
        They are on several machines.
    """
    if launch.size != launch.local_size:
        msg = (
            f"{launch.by} has started {launch.size} processes on several machines, without MPI, "
            "which xbp needs there; start them with mpiexec or srun"
        )
        raise BackendError(msg)
    raise typer.Exit(start(launch.size) if launch.rank == 0 else 0)
