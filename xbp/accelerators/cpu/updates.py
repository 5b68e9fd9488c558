"""Compiled updates of optimizers, of all parameters in one call.

Of the update of a small network, most was the preparation of calls array by array.
"""

from __future__ import annotations

import ctypes
import struct
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
KINDS: dict[Any, Any] = {np.dtype("float32"): ctypes.c_float, np.dtype("float64"): ctypes.c_double}
NUMBERS = (float, int)
PACK = {dtype: struct.Struct(f"7{dtype.char}").pack for dtype in KINDS}
"""The numbers of `adaptive_step` as bytes, in a tenth of the time that an array of ctypes takes."""


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


def adaptive_step(
    p: Real, m: Real, v: Real, g: Real, beta1: float, beta2: float, *numbers: float
) -> Any:
    """See `xbp.primitives.adaptive_step`; all of it in one pass."""
    return _in_place("adaptive_step", (p, m, v, g), (*betas(beta1, beta2), *numbers), changed=3)


def betas(beta1: float, beta2: float) -> tuple[float, float, float, float]:
    """The first numbers of `adaptive_step` in updates.h."""
    return beta1, 1 - beta1, beta2, 1 - beta2


def _in_place(
    name: str, arrays: tuple[Any, ...], numbers: tuple[float, ...], changed: int = 1
) -> Any:
    """A pass that changes the first arrays, or each array of the first lists."""
    for number in numbers:
        if type(number) is not float and not isinstance(number, NUMBERS):
            return NotImplemented
    # a list of our own, which nobody else changes during the call
    everything = list(arrays)
    if isinstance(arrays[0], list):
        if set(map(type, arrays)) != {list} or len(set(map(len, arrays))) > 1:
            return NotImplemented
        everything = list(chain.from_iterable(arrays))
    dtype = everything[0].dtype
    if dtype not in KINDS or not is_known():
        return NotImplemented
    update, threads = _update(name, dtype), native.threads()
    given: tuple[Any, ...] = (*numbers, 0.0, 0.0)[:3]
    if name == "adaptive_step":
        given = (PACK[dtype](*numbers),)
    if update(LAYOUT, id(everything), dtype.num, *given, threads):
        # partners of another memory order, or declined
        count = changed * (len(everything) // len(arrays))
        everything[count:] = map(contiguous, everything[count:])
        if update(LAYOUT, id(everything), dtype.num, *given, threads):
            return NotImplemented
    return None


@cache
def _update(name: str, dtype: np.dtype[Any]) -> Callable[..., int]:
    kind = KINDS[dtype]
    numbers = (ctypes.c_char_p,) if name == "adaptive_step" else (kind,) * 3
    arguments = (*ARGUMENTS, *numbers, ctypes.c_int)
    update: Callable[..., int] = native.function(f"{name}_{dtype.name}", arguments)
    return update


ACCELERATORS = (add_scaled, average, accumulate, rescale, normalized_step, adaptive_step)
