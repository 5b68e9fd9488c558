"""Memory that shows a kernel's mistakes: full of nan, between pages without access."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
FILL = 255  # in each byte: nan as a float, -1 as an integer

_protect: Any = getattr(ctypes.CDLL(None), "mprotect", None)
if _protect is not None:
    _protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guards:
    """Makes arrays that end at the end of a page; access to the pages around ends the process."""

    def __init__(self) -> None:
        self.margins: list[NDArray[np.uint8]] = []

    def empty(self, shape: Any, dtype: Any = float, **_: Any) -> NDArray[Any]:
        dtype = np.dtype(dtype)
        size = math.prod(shape if isinstance(shape, list | tuple) else [shape]) * dtype.itemsize
        pages = max(1, -(-size // PAGE))
        block = mmap.mmap(-1, (pages + 2) * PAGE)
        everything = np.frombuffer(block, np.uint8)
        everything[PAGE:-PAGE] = FILL
        for page in (0, pages + 1):
            if _protect is not None:
                assert not _protect(everything.ctypes.data + page * PAGE, PAGE, 0)
        begin = (pages + 1) * PAGE - size
        self.margins.append(everything[PAGE:begin])
        return np.ndarray(shape, dtype, everything, begin)

    def empty_like(self, array: NDArray[Any], dtype: Any = None, **_: Any) -> NDArray[Any]:
        axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        like = self.empty([array.shape[axis] for axis in axes], dtype or array.dtype)
        return like.transpose(np.argsort(axes)) if axes else like

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """A contiguous copy."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def check(self) -> None:
        """Check that nothing was written before the arrays."""
        assert all(np.all(margin == FILL) for margin in self.margins)
