"""Calls of the C kernels, which check nothing: their arguments from numpy arrays."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators import shared
from xbp.accelerators.cpu import native, replay
from xbp.backend import RECORDING
from xbp.errors import InputError

Real = NDArray[Any]
DTYPES = (np.dtype("float32"), np.dtype("float64"))


def addressable(array: Real) -> Real:
    """`array`, or a copy, aligned and with strides of whole entries."""
    return array if array.flags.aligned else replay.copied(np.array(array), array)


def incoming(dy: Real, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Real:
    """`shared.incoming`, aligned."""
    return addressable(shared.incoming(dy, shape, dtype))


def address(array: Real | None) -> int | None:
    """The address of an array's first entry; None for None."""
    if array is None:
        return None
    return _pointer(id(array) + _DATA).value if _LIKE_C else array.ctypes.data


# In CPython an id is an address, and an array begins with an object's header and the address of its
# data (PyArrayObject_fields). A training step reads a hundred addresses, and `ctypes.data` takes
# six times as long.
_DATA = object.__basicsize__
_pointer = ctypes.c_void_p.from_address
_probe = np.empty(())
_LIKE_C = sys.implementation.name == "cpython" and (
    _pointer(id(_probe) + _DATA).value == _probe.ctypes.data
)


LINE = 64
"""Bytes of a cache line, and of the largest vector."""
LEAST_ALIGNED = 2**14
"""Bytes of an array from which on vectors across two cache lines take longer than aligning it.
Where a line has numbers of two blocks of images, their threads also take it from each other."""


def aligned(shape: tuple[int, ...], dtype: Any) -> Real:
    """Uninitialized memory; if it is large, it begins with a cache line."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_ALIGNED:
        return np.empty(shape, dtype)
    memory = np.empty(size + LINE, np.uint8)
    start = -(address(memory) or 0) % LINE
    array: Real = memory[start : start + size].view(dtype).reshape(shape)
    return array


def descriptor(array: Real | None) -> native.Images:
    """The descriptor of a 4-D array, or of None: its address and strides, `images` in C."""
    if array is None:
        return native.Images()
    size = array.itemsize
    n, c, h, w = array.strides
    return native.Images(address(array), n // size, c // size, h // size, w // size)


def run(
    name: str,
    dtype: np.dtype[Any],
    task: ctypes.Structure,
    read: Sequence[Real | None] = (),
    written: Sequence[Real | None] = (),
) -> None:
    """Call a kernel, and note the call if a step is being recorded.

    Parameters
    ----------
    name : str
    dtype : dtype
    task : ctypes.Structure
    read, written : sequence of arrays or None
        All that the task points to; without them, the call cannot be recorded.

    Raises
    ------
    MemoryError
        There is no memory for the workspace.
    """
    if _kernel(name, dtype)(ctypes.byref(task)):
        msg = f"{name} found no memory for its workspace; use a smaller batch"
        raise MemoryError(msg)
    if written and RECORDING.tape is not None:
        _check_named(name, task, {address(array) for array in (*read, *written)})
        replay.note(f"{name}_{dtype.name}", type(task).from_buffer_copy(task), read, written)


def _check_named(name: str, task: ctypes.Structure, known: set[int | None]) -> None:
    """Refuse a task that points to more than the `known` addresses."""
    for field, kind, *_ in task._fields_:
        value = getattr(task, field)
        if isinstance(value, ctypes.Structure):
            _check_named(name, value, known)
        elif kind is ctypes.c_void_p and value is not None and value not in known:
            msg = f"{name} reads or writes {field!r}, which is not on the tape"
            raise InputError(msg)


@cache
def _kernel(name: str, dtype: np.dtype[Any]) -> Callable[[Any], int]:
    kernel: Callable[[Any], int] = native.function(f"{name}_{dtype.name}")
    return kernel
