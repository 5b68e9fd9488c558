"""Arrays of other libraries, and array-like objects, converted to plain numpy arrays.

Conversions that would silently drop something are refused: masks, units, sparse matrices. So are
sequences that might never end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.errors import InputError, on_one_line

NESTED = 64
"""The largest number of axes of a numpy array."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


def as_host(obj: Any, convert: Callable[[Any], NDArray[Any] | None]) -> NDArray[Any]:
    """`obj`, which belongs to no other library of the table, as a plain numpy array.

    Parameters
    ----------
    obj : array, number, or nested sequence of numbers or arrays
        Also an object with ``__array__``, the buffer protocol, or DLPack on the CPU.
    convert : callable
        Converts an array of another library to numpy; returns None for anything else.

    Raises
    ------
    InputError
        It has a mask or a unit, is sparse, is a sequence without a known length, or cannot be
        converted.
    """
    if type(obj) is np.ndarray:
        return obj
    try:
        return _complete(_readable(obj, NESTED, convert))
    except (MemoryError, InputError):
        raise
    except ValueError as error:
        if not isinstance(obj, Sequence):
            raise _refusal(obj, f" ({on_one_line(error, 100)})") from None
        msg = f"cannot make an array of this {type(obj).__name__}; its rows must be equally long"
        raise InputError(msg) from None
    except Exception as error:
        raise _refusal(obj, f" ({type(error).__name__}: {on_one_line(error, 100)})") from None


def _complete(obj: Any) -> NDArray[Any]:
    """An object as a numpy array, refused if the result has a mask, as `__array__` may give one."""
    found = np.from_dlpack(obj) if _is_exported(obj) else np.asanyarray(obj)
    _check_complete(found)
    return np.asarray(found)


def widened(host: NDArray[Any]) -> NDArray[Any]:
    """`host`, in float32 if its dtype is one of ml_dtypes' small floats (bfloat16, float8_…)."""
    named = host.dtype.type.__module__.partition(".")[0] == "ml_dtypes"
    return host.astype(np.float32) if named and "float" in host.dtype.name else host


def check_numbers(obj: Any, host: NDArray[Any]) -> None:
    """Refuse `host`, converted from `obj`, unless it holds booleans or numbers.

    Raises
    ------
    InputError
    """
    if host.dtype.kind in "biufc":
        return
    if host.ndim == 0 and host.dtype.kind == "O":
        collect = isinstance(obj, Iterable) and not isinstance(obj, Mapping)
        raise _refusal(obj, "", "; collect in an array what it yields" if collect else "")
    msg = (
        f"cannot make an array of {type(obj).__name__} with dtype {host.dtype}; "
        "xbp takes booleans and numbers"
    )
    if host.dtype.kind == "O" and hasattr(obj, "astype"):
        msg += ': if it holds such, x.astype("float64") says so'
    raise InputError(msg)


def check_kind(obj: Any) -> None:
    """Refuse arrays of classes that change the meaning of numpy's functions.

    Raises
    ------
    InputError
        It has a mask or a unit, or is a `numpy.matrix`, whose ``*`` is a product of matrices.
    """
    if type(obj) is np.ndarray:
        return
    if isinstance(obj, np.ma.MaskedArray | np.matrix):
        msg = f"expected an array, got a {type(obj).__name__}; make one with xbp.asarray"
        raise InputError(msg)
    _check_complete(obj)


def _check_complete(obj: Any) -> None:
    """Refuse an object with a mask or a unit, or one that is sparse."""
    name = type(obj).__name__
    if isinstance(obj, np.ma.MaskedArray):
        if np.ma.is_masked(obj):
            msg = (
                f"this {name} has masked entries, which an array cannot have; leave those samples "
                "out, or fill them with x.filled(…)"
            )
            raise InputError(msg)
    elif (unit := _unit(obj)) is not None:
        msg = (
            f"this {name} has the unit {on_one_line(unit, 40)!r}, which an array cannot have; give "
            "its numbers alone, in the unit that you mean"
        )
        raise InputError(msg)
    elif hasattr(obj, "nnz") and (hasattr(obj, "toarray") or hasattr(obj, "todense")):
        way = "toarray" if hasattr(obj, "toarray") else "todense"
        msg = f"this {name} is sparse, and xbp takes dense arrays; give x.{way}(), if it fits"
        raise InputError(msg)


def _unit(obj: Any) -> Any:
    """The unit of an object; None if it has none.

    A data frame with a column called "unit" has none: neither its class nor its dict has the name.
    """
    for name in ("unit", "units"):
        if name in getattr(obj, "__dict__", ()) or hasattr(type(obj), name):
            unit = getattr(obj, name, None)
            return None if isinstance(unit, int | float) else unit
    return None


def _readable(obj: Any, depth: int, convert: Callable[[Any], NDArray[Any] | None]) -> Any:
    """`obj`, or a list of its items that numpy can read in finite time.

    numpy reads any object with ``__len__`` and ``__getitem__`` as a sequence, item by item until an
    IndexError, whatever its length; of a mapping it reads the keys.
    """
    kind = type(obj)
    if isinstance(obj, PLAIN) or kind is np.ndarray:
        return obj
    if kind in (list, tuple):
        if depth and not all(issubclass(item, PLAIN) for item in set(map(type, obj))):
            return [_readable(item, depth - 1, convert) for item in obj]
        return obj
    _check_complete(obj)
    if (host := convert(obj)) is not None:
        return host
    if isinstance(obj, np.ndarray | range | memoryview):
        return obj
    if _has_protocol(obj) or _is_exported(obj):
        return _complete(obj)
    if isinstance(obj, Sequence):
        if not depth:
            return obj
        return [_readable(obj[index], depth - 1, convert) for index in range(len(obj))]
    if hasattr(kind, "__getitem__") and hasattr(kind, "__len__"):
        is_named = isinstance(obj, Mapping)
        raise _refusal(obj, "", "" if is_named else "; collect in an array what it holds")
    return obj


def _has_protocol(obj: Any) -> bool:
    kind = type(obj)
    named = ("__array__", "__array_interface__", "__array_struct__")
    if any(hasattr(kind, name) or name in getattr(obj, "__dict__", ()) for name in named):
        return True
    try:
        memoryview(obj).release()
    except (TypeError, BufferError):
        return False
    return True


def _is_exported(obj: Any) -> bool:
    """Whether it is converted to numpy by DLPack."""
    return (
        hasattr(type(obj), "__dlpack__")
        and not isinstance(obj, np.ndarray)
        and not (_has_protocol(obj))
    )


def _refusal(obj: Any, why: str, advice: str = "") -> InputError:
    return InputError(
        f"cannot make an array of this {type(obj).__name__}{why}; xbp takes arrays, numbers and "
        f"nested lists of numbers{advice}"
    )
