"""Copies into memory that another core reads next."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.calls import address
from xbp.registry import enabled


def stream(to: NDArray[Any], parts: Sequence[NDArray[Any]]) -> None:
    """Copy contiguous arrays, one after the other, into `to`, of their dtype and common size.

    With the kernels they bypass the caches: a core that has read these lines before need not be
    asked for them.
    """
    count = len(parts)
    copy = _kernel() if enabled() else None
    if copy is None:
        np.concatenate([part.reshape(-1) for part in parts], out=to)
        return
    addresses, sizes = _lists(count)
    for k, part in enumerate(parts):
        addresses[k], sizes[k] = address(part), part.nbytes
    copy(address(to), addresses, sizes, count)


@cache
def _lists(count: int) -> tuple[Any, Any]:
    return (ctypes.c_void_p * count)(), (ctypes.c_int64 * count)()


@cache
def _kernel() -> Callable[..., None] | None:
    library = native.library()
    if library is None:
        return None
    function = library.xbp_stream
    function.argtypes = (*(ctypes.c_void_p,) * 3, ctypes.c_int64)
    function.restype = None
    return function  # type: ignore[no-any-return]
