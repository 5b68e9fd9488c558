"""Groups by name."""

from __future__ import annotations

from xbp.arguments import choice
from xbp.parallel.groups import Alone, Group


def group(name: str | Group | None = "alone") -> Group:
    """The group of the processes that were started together with this one.

    Parameters
    ----------
    name : {"alone", "mpi", "nccl"}, default "alone"
        None stands for "alone", and a group for itself.
        "mpi" is for arrays of any library: numpy's travel as they are, others by way of the host,
        which waits for their device. "nccl" is for CuPy's arrays on GPUs, without a wait. It has
        not yet been run on a GPU.

    Raises
    ------
    InputError
        There is no group of that name.
    BackendError
        What it needs is not installed.

    Examples
    --------
    >>> group()
    Alone(rank=0, size=1)
    """
    if name is not None and hasattr(name, "sum_"):
        return name  # type: ignore[return-value]
    name = choice("group", "alone" if name is None else name, ("alone", "mpi", "nccl"))
    if name == "alone":
        return Alone()
    if name == "mpi":
        from xbp.parallel.mpi import MPIGroup

        return MPIGroup()
    from xbp.parallel.nccl import NCCLGroup

    return NCCLGroup()
