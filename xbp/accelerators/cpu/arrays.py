"""Arrays handed to C by the list: C reads their addresses, and checks them.

`arrays.h` has the layouts of CPython's lists and numpy's arrays. Where they are not like that, the
kernels that need them decline everything.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np

HEADER = object.__basicsize__


class Layout(ctypes.Structure):
    """`layout` in arrays.h."""

    _fields_ = (
        ("header", ctypes.c_int64),
        ("array", ctypes.c_void_p),
        ("none", ctypes.c_void_p),
    )


LAYOUT = Layout(HEADER, id(np.ndarray), id(None))
ARGUMENTS = ctypes.POINTER(Layout), ctypes.c_void_p, ctypes.c_int
"""The types of a kernel's first arguments: `LAYOUT`, the list's id, the number of the dtype.

The list must be one that nobody else changes during the call.
"""


class ListFields(ctypes.Structure):
    """`list_fields` in arrays.h."""

    _fields_ = (("size", ctypes.c_ssize_t), ("items", ctypes.POINTER(ctypes.c_void_p)))


class DtypeFields(ctypes.Structure):
    """`dtype_fields` in arrays.h."""

    _fields_ = (
        ("scalar", ctypes.c_void_p),
        *((name, ctypes.c_char) for name in ("kind", "letter", "order", "flags")),
        ("number", ctypes.c_int),
    )


class ArrayFields(ctypes.Structure):
    """`array_fields` in arrays.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("axes", ctypes.c_int),
        *((name, ctypes.POINTER(ctypes.c_ssize_t)) for name in ("shape", "strides")),
        *((name, ctypes.c_void_p) for name in ("base", "dtype")),
        ("flags", ctypes.c_int),
    )


@cache
def is_known() -> bool:
    """Whether lists and arrays lie in memory as arrays.h has them."""
    if sys.implementation.name != "cpython":
        return False
    array = np.empty((5, 3), np.float32)[1:, 1:]
    held: list[Any] = [array, None]
    found = ListFields.from_address(id(held) + HEADER)
    fields = ArrayFields.from_address(id(array) + HEADER)
    kind = DtypeFields.from_address(id(array.dtype) + HEADER)
    kind_of = ctypes.c_void_p.from_address(id(array) + HEADER - ctypes.sizeof(ctypes.c_void_p))
    return (
        (found.size, found.items[0], found.items[1]) == (2, id(array), id(None))
        and kind_of.value == id(np.ndarray)
        and fields.data == array.ctypes.data
        and (fields.axes, fields.shape[:2], fields.strides[:2]) == (2, [4, 2], [12, 4])
        and (fields.base, fields.dtype) == (id(array.base), id(array.dtype))
        and fields.flags == array.flags.num
        and (kind.kind, kind.order, kind.number) == (b"f", b"=", array.dtype.num)
    )
