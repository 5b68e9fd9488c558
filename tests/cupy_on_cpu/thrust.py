"""The functions of Thrust that CuPy calls, by numpy, in place of `cupy.cuda.thrust`.

Sorts are in the order of the current stream, and so in a capture too.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

available = True


def get_build_version() -> int:
    return 0


def sort(dtype: Any, data: int, keys: int, shape: Any) -> None:
    _in_order(lambda: _array(data, dtype, shape).sort(axis=-1, kind="stable"))


def argsort(dtype: Any, to: int, data: int, keys: int, shape: Any) -> None:
    def work() -> None:
        order = _array(data, dtype, shape).argsort(axis=-1, kind="stable")
        _array(to, np.uintp, shape)[...] = order

    _in_order(work)


def lexsort(dtype: Any, to: int, keys: int, k: int, n: int) -> None:
    def work() -> None:
        _array(to, np.uintp, (n,))[...] = np.lexsort(_array(keys, dtype, (k, n)))

    _in_order(work)


def _in_order(work: Any) -> None:
    from cupy.cuda import get_current_stream

    get_current_stream().launch_host_func(lambda _: work(), None)


def _array(address: int, dtype: Any, shape: Any) -> NDArray[Any]:
    """The array at an address."""
    size = int(np.prod(shape, dtype=np.intp)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(address) if size else b""
    return np.frombuffer(memory, dtype).reshape(shape)
