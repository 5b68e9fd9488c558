"""Sums over GPUs of several processes by NCCL, on the current stream. Not yet run on a GPU."""

from __future__ import annotations

from typing import Any

from xbp.accelerators.shared import Array
from xbp.backend import whereabouts
from xbp.errors import BackendError, InputError

NAMES = {
    "int8": "NCCL_INT8",
    "uint8": "NCCL_UINT8",
    "int32": "NCCL_INT32",
    "uint32": "NCCL_UINT32",
    "int64": "NCCL_INT64",
    "uint64": "NCCL_UINT64",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}
"""NCCL's name of a dtype; a complex number is two floats."""


def engine() -> tuple[Any, Any]:
    """CuPy, and its bindings of NCCL.

    Raises
    ------
    BackendError
        One of them is not there.
    """
    try:
        import cupy
        from cupy.cuda import nccl
    except ImportError as error:
        msg = f"NCCL needs CuPy ({error}); docs/gpu.md says how to install it"
        raise BackendError(msg) from None
    if not nccl.available:
        msg = (
            "CuPy finds no NCCL; install it, as by pip install nvidia-nccl-cu12 (or -cu13), or "
            'take the group "mpi"'
        )
        raise BackendError(msg)
    return cupy, nccl


def new_id() -> Any:
    """What all ranks of a new communicator have to know."""
    return engine()[1].get_unique_id()


class Communicator:
    """A rank of an NCCL communicator, on one device.

    Parameters
    ----------
    size : int
    number : tuple
        `new_id` of rank 0.
    rank : int
    device : int
        The GPU, whose arrays are sent.
    """

    def __init__(self, size: int, number: Any, rank: int, *, device: int) -> None:
        self.cupy, self.nccl = engine()
        self.device = device
        with self.cupy.cuda.Device(device):
            self.communicator = self.nccl.NcclCommunicator(size, number, rank)

    def sum_(self, array: Array) -> None:
        with self.cupy.cuda.Device(self.device):
            whole = self._contiguous(array)
            at, (count, kind) = whole.data.ptr, self._kind(whole)
            total, stream = self.nccl.NCCL_SUM, self.cupy.cuda.get_current_stream().ptr
            self.communicator.allReduce(at, at, count, kind, total, stream)
            if whole is not array:
                array[...] = whole

    def broadcast_(self, array: Array, root: int) -> None:
        with self.cupy.cuda.Device(self.device):
            whole = self._contiguous(array)
            at, (count, kind) = whole.data.ptr, self._kind(whole)
            stream = self.cupy.cuda.get_current_stream().ptr
            self.communicator.broadcast(at, at, count, kind, root, stream)
            if whole is not array:
                array[...] = whole

    def synchronize(self) -> None:
        """Wait for the current stream of the device."""
        with self.cupy.cuda.Device(self.device):
            self.cupy.cuda.get_current_stream().synchronize()

    def _contiguous(self, array: Array) -> Array:
        if not isinstance(array, self.cupy.ndarray) or array.device.id != self.device:
            msg = (
                f"this rank sends arrays of cupy's device {self.device}, got one on "
                f"{whereabouts(array)}; make arrays there by xbp.set_backend('cupy', "
                f"device={self.device})"
            )
            raise InputError(msg)
        return self.cupy.ascontiguousarray(array) if array.ndim else array

    def _kind(self, array: Array) -> tuple[int, int]:
        """How many numbers, and NCCL's number for their dtype."""
        name, count = array.dtype.name, array.size
        if name.startswith("complex"):
            name, count = {"complex64": "float32", "complex128": "float64"}[name], 2 * count
        if name not in NAMES:
            msg = f"NCCL has no sum of {name}; convert the array first"
            raise InputError(msg)
        return count, getattr(self.nccl, NAMES[name])
