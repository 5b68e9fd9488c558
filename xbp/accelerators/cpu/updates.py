"""Compiled updates of optimizers, of all parameters in one call.

Of the update of a small network, most was the preparation of calls. Here C reads the addresses, and
checks the arrays, by the layouts of CPython's lists and numpy's arrays; where these are not as
`updates.h` has them, everything is declined.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.affine import contiguous

Real = NDArray[Any]
HEADER = object.__basicsize__
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


class Layout(ctypes.Structure):
    """`layout` in updates.h."""

    _fields_ = (("header", ctypes.c_long), ("array", ctypes.c_void_p))


LAYOUT = Layout(HEADER, id(np.ndarray))


def _in_place(name: str, arrays: tuple[Any, ...], numbers: tuple[float, ...]) -> Any:
    """A pass that changes the first array, or each array of a first list."""
    for number in numbers:
        if not isinstance(number, float | int):
            return NotImplemented
    several = isinstance(arrays[0], list)
    if several and {(type(array), len(array)) for array in arrays} != {(list, len(arrays[0]))}:
        return NotImplemented
    # a list of our own, which nobody else changes during the call
    all_of_them = list(chain.from_iterable(arrays)) if several else list(arrays)
    dtype = all_of_them[0].dtype
    if dtype not in KINDS or not is_known():
        return NotImplemented
    s, t, u = (*numbers, 0.0, 0.0)[:3]
    update, threads = _update(name, dtype), native.threads()
    if update(LAYOUT, id(all_of_them), dtype.num, s, t, u, threads):
        count = len(all_of_them) // len(arrays)  # partners of another memory order, or declined
        all_of_them[count:] = map(contiguous, all_of_them[count:])
        if update(LAYOUT, id(all_of_them), dtype.num, s, t, u, threads):
            return NotImplemented
    return None


@cache
def _update(name: str, dtype: np.dtype[Any]) -> Callable[..., int]:
    function: Any = getattr(native.library(), f"{name}_{dtype.name}")
    pointers = ctypes.POINTER(Layout), ctypes.c_void_p
    function.argtypes = (*pointers, ctypes.c_int, *(KINDS[dtype],) * 3, ctypes.c_int)
    return function  # type: ignore[no-any-return]


# --- layouts ---


class ListFields(ctypes.Structure):
    """`list_fields` in updates.h."""

    _fields_ = (("size", ctypes.c_ssize_t), ("items", ctypes.POINTER(ctypes.c_void_p)))


class DtypeFields(ctypes.Structure):
    """`dtype_fields` in updates.h."""

    _fields_ = (
        ("scalar", ctypes.c_void_p),
        *((name, ctypes.c_char) for name in ("kind", "letter", "order", "flags")),
        ("number", ctypes.c_int),
    )


class ArrayFields(ctypes.Structure):
    """`array_fields` in updates.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("axes", ctypes.c_int),
        *((name, ctypes.POINTER(ctypes.c_ssize_t)) for name in ("shape", "strides")),
        *((name, ctypes.c_void_p) for name in ("base", "dtype")),
        ("flags", ctypes.c_int),
    )


@cache
def is_known() -> bool:
    """Whether lists and arrays lie in memory as updates.h has them."""
    if sys.implementation.name != "cpython":
        return False
    array = np.empty((5, 3), np.float32)[1:, 1:]
    held: list[Any] = [array, None]
    found = ListFields.from_address(id(held) + HEADER)
    fields = ArrayFields.from_address(id(array) + HEADER)
    kind = DtypeFields.from_address(id(array.dtype) + HEADER)
    return (
        (found.size, found.items[0], found.items[1]) == (2, id(array), id(None))
        and ctypes.c_void_p.from_address(id(array) + HEADER - 8).value == id(np.ndarray)
        and fields.data == array.ctypes.data
        and (fields.axes, fields.shape[:2], fields.strides[:2]) == (2, [4, 2], [12, 4])
        and (fields.base, fields.dtype) == (id(array.base), id(array.dtype))
        and fields.flags == array.flags.num
        and (kind.kind, kind.order, kind.number) == (b"f", b"=", array.dtype.num)
    )


ACCELERATORS = (add_scaled, average, accumulate, rescale, normalized_step)
