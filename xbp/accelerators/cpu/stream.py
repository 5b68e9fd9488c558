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
    copy = _kernel() if enabled() else None
    if copy is None:
        np.concatenate([part.reshape(-1) for part in parts], out=to)
        return
    count = len(parts)
    if sum(part.size for part in parts) != to.size:
        msg = f"{count} parts do not fill an array of {to.size} entries"
        raise ValueError(msg)
    addresses = (ctypes.c_void_p * count)(*map(address, parts))
    sizes = (ctypes.c_int64 * count)(*(part.nbytes for part in parts))
    copy(address(to), addresses, sizes, count)


@cache
def _kernel() -> Callable[..., None] | None:
    if native.library() is None:
        return None
    arguments = (*(ctypes.c_void_p,) * 3, ctypes.c_int64)
    copy: Callable[..., None] = native.function("xbp_stream", arguments, None)
    return copy
