"""Functions of array_api_strict with CuPy's values, where those differ from numpy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def arrays(tree: Any) -> list[Any]:
    """The arrays of array_api_strict in nested lists, tuples, slices and dictionaries."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, slice):
        tree = (tree.start, tree.stop, tree.step)
    if isinstance(tree, list | tuple):
        return [array for part in tree for array in arrays(part)]
    return [tree] if hasattr(tree, "_array") else []


def _wrapped(indices: Any, size: int) -> Any:
    host = np.mod(indices._array, size) if size else indices._array
    return type(indices)._new(host.astype(indices._array.dtype), device=indices._device)


def _take(original: Function) -> Function:
    def take(x: Any, indices: Any, /, *, axis: Any = None) -> Any:
        return original(x, _wrapped(indices, x.shape[axis or 0]), axis=axis)

    return take


def _take_along_axis(original: Function) -> Function:
    def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Any:
        return original(x, _wrapped(indices, x.shape[axis]), axis=axis)

    return take_along_axis


def _getitem(original: Function) -> Function:
    def getitem(x: Any, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if not any(arrays(part) and "int" in str(part.dtype) for part in parts):
            return original(x, key)
        used = sum(part is not None and part is not Ellipsis for part in parts)
        found, axis = [], 0
        for part in parts:
            if arrays(part) and "int" in str(part.dtype):
                part = _wrapped(part, x.shape[axis])
            found.append(part)
            axis += x.ndim - used if part is Ellipsis else part is not None
        return original(x, tuple(found) if isinstance(key, tuple) else found[0])

    return getitem


def _argmax(original: Function) -> Function:
    """argmax that finds the last of several nan, where numpy finds the first."""

    def argmax(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        result, host = original(x, axis=axis, keepdims=keepdims), x._array
        if host.dtype.kind == "f" and np.isnan(host).any():
            flat, along = (host.reshape(-1), 0) if axis is None else (host, axis)
            last = flat.shape[along] - 1 - np.argmax(np.flip(np.isnan(flat), along), along)
            last = np.reshape(last, result._array.shape)
            any_nan = np.reshape(np.isnan(flat).any(along), result._array.shape)
            result._array[...] = np.where(any_nan, last, result._array)
        return result

    return argmax


def _quotient(rest: bool, *, swapped: bool = False) -> Any:
    """⌊x / y⌋, or x - ⌊x / y⌋ y, of floats."""

    def change(original: Function) -> Function:
        def divided(x: Any, y: Any) -> Any:
            a, b = (np.copy(getattr(v, "_array", v)) for v in (x, y))
            result = original(x, y)
            if result is NotImplemented or result._array.dtype.kind != "f":
                return result
            a, b = (b, a) if swapped else (a, b)
            a, b = (v.astype(result._array.dtype) for v in (a, b))
            with np.errstate(all="ignore"):
                floor = np.floor(a / b)
                result._array[...] = a - floor * b if rest else floor
            return result

        return divided

    return change


OTHER_VALUES: dict[str, Callable[[Function], Function]] = {
    "take": _take,
    "take_along_axis": _take_along_axis,
    "__getitem__": _getitem,
    "argmax": _argmax,
    "argmin": _argmax,
    "floor_divide": _quotient(False),
    "remainder": _quotient(True),
    "__floordiv__": _quotient(False),
    "__mod__": _quotient(True),
    "__rfloordiv__": _quotient(False, swapped=True),
    "__rmod__": _quotient(True, swapped=True),
    "__ifloordiv__": _quotient(False),
    "__imod__": _quotient(True),
}
