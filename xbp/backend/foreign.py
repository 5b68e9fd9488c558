"""Arrays of other libraries, and what looks like arrays, as plain numpy arrays; or one sentence.

What a conversion would drop in silence is refused: masks, units, the zeros of sparse matrices. What
could be read for ever is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.errors import InputError, on_one_line

NESTED = 64
"""Axes that numpy's arrays can have."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


def as_host(obj: Any) -> NDArray[Any]:
    """`obj`, which is no array of another library of the table, as an array of numpy's own class.

    Parameters
    ----------
    obj : array, number, or nested sequence of numbers
        Also an object with ``__array__``, the buffer protocol, or DLPack on the CPU.

    Raises
    ------
    InputError
        It would lose something (a mask, a unit), is sparse, is no sequence of known length, or
        cannot be converted.
    """
    if type(obj) is np.ndarray:
        return obj
    readable = _readable(obj, NESTED)
    try:
        if _is_exported(obj):
            return np.from_dlpack(obj)
        return np.asarray(readable)
    except MemoryError:
        raise
    except ValueError as error:
        if not isinstance(obj, Sequence):
            raise _refusal(obj, f" ({on_one_line(error, 100)})") from None
        msg = f"cannot make an array of this {type(obj).__name__}; its rows must be equally long"
        raise InputError(msg) from None
    except Exception as error:
        raise _refusal(obj, f" ({type(error).__name__}: {on_one_line(error, 100)})") from None


def check_numbers(obj: Any, host: NDArray[Any]) -> None:
    """Refuse what `obj` has become, `host`, unless it holds booleans or numbers.

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
    """Refuse an array with whose class numpy's functions do not compute as with numpy's own.

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
    """Refuse what is more than its numbers, or has fewer than its shape says."""
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
    """What an object says of its unit; None for one that has none.

    A data frame with a column of that name has no unit, as neither its class nor its dict has.
    """
    for name in ("unit", "units"):
        if name in getattr(obj, "__dict__", ()) or hasattr(type(obj), name):
            unit = getattr(obj, name, None)
            return None if isinstance(unit, int | float) else unit
    return None


def _readable(obj: Any, depth: int) -> Any:
    """`obj`, or a list of what it holds, such that numpy comes to an end with it.

    numpy reads any object with ``__len__`` and ``__getitem__`` as a sequence: item after item,
    until an IndexError, whatever the length.
    """
    kind = type(obj)
    if isinstance(obj, PLAIN) or kind is np.ndarray:
        return obj
    if kind in (list, tuple):
        if depth and not all(issubclass(item, PLAIN) for item in set(map(type, obj))):
            return [_readable(item, depth - 1) for item in obj]
        return obj
    _check_complete(obj)
    if isinstance(obj, np.ndarray | range | memoryview) or _has_protocol(obj):
        return obj
    if isinstance(obj, Sequence):
        return [_readable(obj[index], depth - 1) for index in range(len(obj))] if depth else obj
    if hasattr(kind, "__getitem__") and hasattr(kind, "__len__") and not isinstance(obj, Mapping):
        raise _refusal(obj, "", "; collect in an array what it holds")
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
    """Whether DLPack is its way to numpy."""
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
