"""array_api_strict made as strict as CuPy, and the place where any call is held against the table.

`cupy_rules` is the table. Here each function of a namespace and each method of its arrays is
replaced, for a while, by one that first asks the table; what is asked within a recording goes on
the tape of the recording. What else CuPy does otherwise than array_api_strict follows below, one
section each: devices and dtypes, the current device, numpy arrays, other values.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from xbp.backend import LIBRARIES, get_backend
from xbp.testing.cupy_rules import (
    OPERATORS,
    PRODUCTS,
    RULES,
    SAFE,
    SILENTLY_NUMPY,
    UPLOAD,
    UPLOADS_NUMPY,
    WAIT,
    Rule,
    is_numpy,
    names,
    verdict,
)
from xbp.testing.helpers import replaced

Function = Callable[..., Any]


class HostSyncError(AssertionError):
    """Code that must not wait for the device read a value from it."""


class RecordingError(RuntimeError):
    """Something that a GPU could not record."""


class _Thread(threading.local):
    """What belongs to a thread."""

    inside = 0  # depth of calls that a library makes of itself, or a check of a library
    tape: Any = None  # of the recording that is being made here
    current: Any = None  # the device on which arrays are made here; None: the default one


THREAD = _Thread()
_waits_refused = 0  # blocks of `waits_refused`, in all threads


@contextmanager
def waits_refused() -> Iterator[None]:
    """Within the block, in all threads, what waits for a device raises `HostSyncError`."""
    global _waits_refused
    _waits_refused += 1
    try:
        yield
    finally:
        _waits_refused -= 1


@contextmanager
def inside() -> Iterator[None]:
    """Within the block nothing is held against the table."""
    THREAD.inside += 1
    try:
        yield
    finally:
        THREAD.inside -= 1


# --- a call and the table ------------------------------------------------------------------------


def refuse(rule: Rule, name: str, whose: str) -> None:
    """Raise for a call of this kind, if it is refused where we are.

    Raises
    ------
    RecordingError
        In a recording, which goes on without the call.
    HostSyncError
        In a block of `waits_refused`.
    """
    instead = f"; write {rule.instead}" if rule.instead else ""
    what = f"{name} of {whose} {rule.verdict.value}"
    if THREAD.tape is not None and rule.verdict is not SAFE:
        msg = f"{what}, which cannot be recorded{instead}"
        raise RecordingError(msg)
    if _waits_refused and rule.verdict is WAIT:
        msg = f"{what}{instead}"
        raise HostSyncError(msg)


@functools.lru_cache(maxsize=1024)
def held_against_the_table(
    name: str, original: Function, whose: Callable[[Any], str], call: Function
) -> Function:
    """`original`, by `call`, for all calls that the table allows.

    Parameters
    ----------
    name : str
        In the table.
    original : callable
    whose : callable
        From the arguments to the words for the device that is concerned; empty where none is.
    call : callable
        ``call(name, original, args, keywords)``
    """
    refusable, product = bool(RULES.get(name)), name in PRODUCTS

    @functools.wraps(original)
    def function(*args: Any, **keywords: Any) -> Any:
        if THREAD.inside:
            return original(*args, **keywords)
        THREAD.inside += 1
        try:
            if refusable and (THREAD.tape is not None or _waits_refused):
                rule = verdict(name, *args, **keywords)
                if rule.verdict is not SAFE and not (product and _by_a_primitive()):
                    device = whose((args, keywords))
                    if device or rule.verdict is UPLOAD:
                        refuse(rule, name, device or "numbers")
            return call(name, original, args, keywords)
        finally:
            THREAD.inside -= 1

    return function


def _by_a_primitive() -> bool:
    """Whether `xbp.primitives` makes the call, which an accelerator does on a GPU."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).startswith("xbp.primitives.")


def replaced_functions(
    xp: Any, kind: type, whose: Callable[[Any], str], call: Function, those: Iterable[str]
) -> list[tuple[Any, dict[str, Function]]]:
    """What `replaced` takes: owners, and their functions held against the table."""
    found: dict[str, tuple[Any, dict[str, Function]]] = {}
    for name in those:
        room, _, last = name.rpartition(".")
        method = last.startswith("__") or last in ("to_device", "fill")
        owner = kind if method else getattr(xp, room) if room else xp
        original = getattr(owner, last, None)
        if original is not None:
            function = held_against_the_table(name, original, whose, call)
            found.setdefault("array" if method else room, (owner, {}))[1][last] = function
    return list(found.values())


# --- array_api_strict ----------------------------------------------------------------------------

IN_PLACE = names("""
    __setitem__ __iadd__ __iand__ __ifloordiv__ __ilshift__ __imod__ __imul__ __ior__ __ipow__
    __irshift__ __isub__ __itruediv__ __ixor__
""")

_lock, _blocks, _undo = threading.RLock(), 0, ExitStack()


@contextmanager
def as_strict_as_cupy() -> Iterator[None]:
    """Within the block, array_api_strict's fake devices behave as CuPy's, where xbp knows how.

    - A ``Device`` has no hash, and each ``array.device`` is a new one; so it is compared with
      ``==``, and is no key.
    - dtypes equal numpy's, so that they do not tell an array from a numpy array.
    - A numpy scalar takes part in the promotion of dtypes, other than a Python number.
    - Of a numpy array, some functions make a numpy array, silently; some make an array of the
      device; all others, operators and assignments refuse it.
    - Creation ignores ``device=``, and each result lies on the current device of the thread: a new
      thread begins with ``device1``.
    - Integer indices out of range wrap; of several nan `argmax` finds any; ``x // y`` is
      floor(x / y), and ``x % y`` the rest of that.

    Waits and uploads are allowed. `assert_no_host_sync` and `emulated_graphs` are such blocks, too,
    in which they are not.

    Not emulated: arithmetic (fused a*b + c, subnormals flushed to 0), conversions of infinite
    floats to integers, and duplicate indices in an assignment, which array_api_strict refuses.

    Raises
    ------
    BackendError
        array_api_strict is not installed.

    Examples
    --------
    >>> import xbp
    >>> with xbp.use_backend("array_api_strict"), as_strict_as_cupy():
    ...     {xbp.asarray([1.0]).device: "a device as a key"}
    Traceback (most recent call last):
    TypeError: unhashable type: 'array_api_strict.Device'
    """
    global _blocks
    LIBRARIES["array_api_strict"].namespace()  # or a sentence that says how to install it
    with _lock:
        if not _blocks:
            for owner, attributes in _strict():
                _undo.enter_context(replaced(owner, **attributes))
        _blocks += 1
    before = THREAD.current
    backend = get_backend()
    if backend.name == "array_api_strict":
        THREAD.current = backend.device
    try:
        yield
    finally:
        THREAD.current = before
        with _lock:
            _blocks -= 1
            if not _blocks:
                _undo.close()


@contextmanager
def current(device: Any) -> Iterator[None]:
    """Within the block, arrays are made on this device."""
    before, THREAD.current = THREAD.current, device
    try:
        yield
    finally:
        THREAD.current = before


def _strict() -> list[tuple[Any, dict[str, Any]]]:
    """Owners, and what is replaced in them."""
    library = LIBRARIES["array_api_strict"]
    xp: Any = library.namespace()
    kind = type(xp.zeros(1))
    placed, to_numpy, fetched = library.place, library.to_numpy, library.fetch

    def place(xp: Any, array: Any, device: Any) -> Any:
        with current(device):
            return placed(xp, np.array(array), device)  # a device shares no memory with the host

    def read(array: Any) -> Any:
        if _whose(array) and not THREAD.inside:
            refuse(Rule(WAIT), "to_numpy", _whose(array))
        with inside():
            return to_numpy(array)

    def fetch(array: Any) -> Any:
        with inside():
            return fetched(array)

    def activate(device: Any) -> None:
        THREAD.current = device

    def hashed(device: Any) -> int:
        if THREAD.inside:
            return hash(device._device)
        msg = "unhashable type: 'array_api_strict.Device'"
        raise TypeError(msg)

    kind_of_device, kind_of_dtype = xp.Device, type(xp.float32)
    return [
        *replaced_functions(xp, kind, _whose, _call, RULES),
        (kind, {"device": property(lambda array: kind_of_device(array._device._device))}),
        (kind, {"__array_ufunc__": None}),  # numpy leaves operators to the array, and raises else
        (kind_of_device, {"__hash__": hashed}),
        (kind_of_dtype, {"__eq__": _equal_dtypes}),
        (library, {"place": place, "to_numpy": read, "fetch": fetch}),
        (library, {"activate": activate, "on": current}),
    ]


def _whose(tree: Any) -> str:
    devices = {array._device._device for array in arrays(tree)} - {"CPU_DEVICE"}
    return f"an array on {min(devices)}" if devices else ""


def arrays(tree: Any) -> list[Any]:
    """The arrays of array_api_strict in nested lists, tuples, slices and dictionaries."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, slice):
        tree = (tree.start, tree.stop, tree.step)
    if isinstance(tree, list | tuple):
        return [array for part in tree for array in arrays(part)]
    return [tree] if hasattr(tree, "_array") else []


def _call(name: str, original: Function, args: Any, keywords: Any) -> Any:
    xp = sys.modules["array_api_strict"]
    if any(map(is_numpy, args)) and name != "asarray":
        if name in SILENTLY_NUMPY and is_numpy(args[0]):
            return getattr(np, name)(*args, **keywords)
        args = _without_numpy(xp, name, args)
    if name in OPERATORS and any(isinstance(a, np.generic) for a in args):
        args = tuple(_array_of_scalar(xp, a) if isinstance(a, np.generic) else a for a in args)
    function = OTHER_VALUES[name](original) if name in OTHER_VALUES else original
    if THREAD.tape is None:
        result = function(*args, **keywords)
    else:
        changed = args[:1] if name in IN_PLACE else ()
        result = THREAD.tape.take(function, args, keywords, changed)
    if name != "to_device":
        _land(xp, result, (args, keywords))
    return result


# --- the current device --------------------------------------------------------------------------


def _land(xp: Any, result: Any, given: Any) -> None:
    """Let new arrays lie on the current device; views stay, and so does what is on the host."""
    here = THREAD.current or xp.Device("device1")
    made = [array for array in arrays(result) if array._device._device != here._device]
    if made:
        old = {memory(array) for array in arrays(given)}
        if not any(array._device._device == "CPU_DEVICE" for array in arrays(given)):
            for array in made:
                if memory(array) not in old:
                    array._device = here


def memory(array: Any) -> int:
    """Which block of memory an array, or a view of it, lies in."""
    root = array._array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return id(root)


# --- dtypes and numpy arrays ---------------------------------------------------------------------


def _equal_dtypes(dtype: Any, other: Any) -> bool:
    if type(other) is type(dtype):
        return dtype._np_dtype is other._np_dtype  # numpy has one object of each
    try:
        return bool(dtype._np_dtype == np.dtype(getattr(other, "_np_dtype", other)))
    except TypeError:
        return False


def _array_of_scalar(xp: Any, scalar: Any) -> Any:
    """A numpy scalar takes part in promotion, other than a Python number."""
    return xp.asarray(np.asarray(scalar), device=THREAD.current or xp.Device("device1"))


def _without_numpy(xp: Any, name: str, args: Any) -> Any:
    if name in ("__getitem__", "take"):
        return tuple(xp.asarray(a, device=args[0].device) if is_numpy(a) else a for a in args)
    if name in UPLOADS_NUMPY and is_numpy(args[0]):
        if args[0].ndim:
            refuse(Rule(UPLOAD), name, "a numpy array")
        return (xp.asarray(args[0], device=THREAD.current or xp.Device("device1")), *args[1:])
    if name == "__setitem__":
        msg = "a numpy array cannot be assigned to an array of the device"
        raise ValueError(msg)
    msg = f"{name} got a numpy array, which is no array of the device"
    raise TypeError(msg)


# --- other values than numpy's -------------------------------------------------------------------


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
    """The last of several nan, where numpy finds the first."""

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

__all__ = ["HostSyncError", "RecordingError", "as_strict_as_cupy"]
