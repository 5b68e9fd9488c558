"""Compiled updates of optimizers, of all parameters in one call.

Of the update of a small network, most was the preparation of calls array by array.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.arrays import ARGUMENTS, LAYOUT, is_known

Real = NDArray[Any]
KINDS = {np.dtype("float32"): ctypes.c_float, np.dtype("float64"): ctypes.c_double}


def add_scaled(p: Real, factor: float, g: Real) -> Any:
    """See `xbp.primitives.add_scaled`."""
    return _in_place("add_scaled", (p, g), (factor,))


def average(mean: Real, beta: float, *factors: Real) -> Any:
    """See `xbp.primitives.average`."""
    if len(factors) not in (1, 2):
        return NotImplemented
    name = "average" if len(factors) == 1 else "average_product"
    return _in_place(name, (mean, *factors), (beta, 1 - beta))


def accumulate(total: Real, beta: float, g: Real, share: float = 1.0) -> Any:
    """See `xbp.primitives.accumulate`."""
    return _in_place("average", (total, g), (beta, share))


def rescale(p: Real, factor: float) -> Any:
    """See `xbp.primitives.rescale`."""
    return _in_place("rescale", (p,), (factor,))


def normalized_step(p: Real, rate: float, m: Real, scale: float, v: Real, eps: float) -> Any:
    """See `xbp.primitives.normalized_step`."""
    return _in_place("normalized_step", (p, m, v), (rate, scale, eps))


def _in_place(name: str, arrays: tuple[Any, ...], numbers: tuple[float, ...]) -> Any:
    """A pass that changes the first array, or each array of a first list."""
    for number in numbers:
        if not isinstance(number, float | int):
            return NotImplemented
    several = isinstance(arrays[0], list)
    if several and {(type(array), len(array)) for array in arrays} != {(list, len(arrays[0]))}:
        return NotImplemented
    # a list of our own, which nobody else changes during the call
    everything = list(chain.from_iterable(arrays)) if several else list(arrays)
    dtype = everything[0].dtype
    if dtype not in KINDS or not is_known():
        return NotImplemented
    s, t, u = (*numbers, 0.0, 0.0)[:3]
    update, threads = _update(name, dtype), native.threads()
    if update(LAYOUT, id(everything), dtype.num, s, t, u, threads):
        count = len(everything) // len(arrays)  # partners of another memory order, or declined
        everything[count:] = map(contiguous, everything[count:])
        if update(LAYOUT, id(everything), dtype.num, s, t, u, threads):
            return NotImplemented
    return None


@cache
def _update(name: str, dtype: np.dtype[Any]) -> Callable[..., int]:
    arguments = (*ARGUMENTS, *(KINDS[dtype],) * 3, ctypes.c_int)
    update: Callable[..., int] = native.function(f"{name}_{dtype.name}", arguments)
    return update


ACCELERATORS = (add_scaled, average, accumulate, rescale, normalized_step)
