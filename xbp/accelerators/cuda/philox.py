"""Random bits in one launch."""

from __future__ import annotations

import ctypes
import math
from numbers import Integral
from typing import Any

from xbp.accelerators.cuda.launch import blocks, machine_of, pointer, structure
from xbp.accelerators.shared import Array, Shape

THREADS = 256  # as in philox.cu
Word = structure("Word", at=pointer, value=ctypes.c_longlong)
Task = structure(
    "Task", to=pointer, size=ctypes.c_longlong, counter=Word * 3, key=ctypes.c_uint * 2
)


def random_bits(
    like: Array, shape: Shape, *, key: tuple[int, int], counter: tuple[Any, Any, Any]
) -> Any:
    """See `xbp.primitives.random_bits`."""
    size = math.prod(shape)
    if not 0 < size <= 4 * (2**32 - 1):
        return NotImplemented
    machine = machine_of(like)
    bits = machine.empty(shape, "int64")
    task = Task(to=machine.address(bits), size=size, key=key)
    for word, given in zip(task.counter, counter, strict=True):
        if isinstance(given, Integral):
            word.value = int(given)
        elif type(given) is type(like) and given.ndim == 0 and given.dtype.name == "int64":
            word.at = machine.address(given)
        else:
            return NotImplemented
    grid = (blocks(size, 4 * THREADS), 1)
    machine.launch(("philox.cu", "philox"), {}, grid, THREADS, task)
    return bits


ACCELERATORS = (random_bits,)
