"""What a fault does to a value. Numbers, arrays of any library, and None, which stays None."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from xbp.backend import array_namespace, dtype_name, library_of


def _is_array(value: Any) -> bool:
    return library_of(value) is not None


def scaled(value: Any) -> Any:
    """1 % too large; an integer twice as large."""
    if _is_array(value) and array_namespace(value).isdtype(value.dtype, "integral"):
        return 2 * value
    return None if value is None else value * (2 if type(value) is int else 1.01)


def shifted(value: Any) -> Any:
    """Too large by 0.01, an integer by 1."""
    if _is_array(value) and array_namespace(value).isdtype(value.dtype, "integral"):
        return value + 1
    return None if value is None else value + (1 if type(value) is int else 0.01)


def rounded(value: Any) -> Any:
    """Rounded to float32 and back: about 7 digits are left, and the dtype is unchanged."""
    if not _is_array(value):
        return value if value is None else ctypes.c_float(value).value
    xp = array_namespace(value)
    return xp.astype(xp.astype(value, xp.float32), value.dtype)


def dtype(value: Any) -> Any:
    """In another dtype: float64 as float32, float32 as float64, integers as int32."""
    if not _is_array(value):
        return None if value is None else np.float64(value)
    xp, name = array_namespace(value), dtype_name(value.dtype)
    return xp.astype(value, {"float64": xp.float32, "float32": xp.float64}.get(name, xp.int32))


def waited(value: Any) -> Any:
    """Unchanged, but read once, which waits on a device."""
    if isinstance(value, tuple | list):
        return type(value)(map(waited, value))
    if _is_array(value) and 0 not in value.shape:
        float(array_namespace(value).reshape(value, (-1,))[0])
    return value


def untransposed(value: Any, *axes: int) -> Any:
    """The shape of the transpose, with the entries in their old order."""
    xp = array_namespace(value)
    order = axes or range(len(value.shape))[::-1]
    return xp.reshape(value, tuple(value.shape[axis] for axis in order))
