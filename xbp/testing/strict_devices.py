"""array_api_strict made as strict as CuPy.

Each section emulates one difference between CuPy and array_api_strict: devices and dtypes, the
current device, numpy arrays. Functions with different values are in `xbp.testing.values`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from xbp.backend import LIBRARIES, get_backend
from xbp.testing.cupy_rules import (
    OPERATORS,
    RULES,
    SILENTLY_NUMPY,
    UPLOAD,
    UPLOADS_NUMPY,
    WAIT,
    Rule,
    is_numpy,
    names,
)
from xbp.testing.helpers import replaced
from xbp.testing.strictness import THREAD, Function, inside, refuse, replaced_functions
from xbp.testing.values import OTHER_VALUES, arrays

IN_PLACE = names("""
    __setitem__ __iadd__ __iand__ __ifloordiv__ __ilshift__ __imod__ __imul__ __ior__ __ipow__
    __irshift__ __isub__ __itruediv__ __ixor__
""")

_lock, _blocks, _undo = threading.RLock(), 0, ExitStack()


@contextmanager
def as_strict_as_cupy() -> Iterator[None]:
    """Within the block, array_api_strict's fake devices behave like CuPy's.

    - A ``Device`` has no hash, and each ``array.device`` is a new object, so that devices must be
      compared with ``==`` and cannot be keys.
    - dtypes equal numpy's, so that they do not distinguish arrays from numpy arrays.
    - A numpy scalar takes part in the promotion of dtypes, unlike a Python number.
    - Given a numpy array, some functions silently return a numpy array, some an array on the
      device; all others, operators and assignments refuse it.
    - Creation ignores ``device=``, and each result lies on the current device of the thread, which
      is ``device1`` in a new thread.
    - Integer indices out of range wrap; `argmax` finds any of several nan; ``x // y`` is
      floor(x / y), and ``x % y`` the remainder of that.

    Waits and uploads are allowed, except in `assert_no_host_sync` and `emulated_graphs`, which
    include such a block.

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
    LIBRARIES["array_api_strict"].namespace()  # raises with advice if it is not installed
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
    """Within the block, arrays are created on this device."""
    before, THREAD.current = THREAD.current, device
    try:
        yield
    finally:
        THREAD.current = before


def _strict() -> list[tuple[Any, dict[str, Any]]]:
    """Owners, and their attributes to replace."""
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
        (kind, {"__array_ufunc__": None}),  # numpy defers operators to the array
        (kind_of_device, {"__hash__": hashed}),
        (kind_of_dtype, {"__eq__": _equal_dtypes}),
        (library, {"place": place, "to_numpy": read, "fetch": fetch}),
        (library, {"activate": activate, "on": current}),
    ]


def _whose(tree: Any) -> str:
    devices = {array._device._device for array in arrays(tree)} - {"CPU_DEVICE"}
    return f"an array on {min(devices)}" if devices else ""


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
    """Move new arrays to the current device, but not views and arrays on the host."""
    here = THREAD.current or xp.Device("device1")
    made = [array for array in arrays(result) if array._device._device != here._device]
    if made:
        old = {memory(array) for array in arrays(given)}
        if not any(array._device._device == "CPU_DEVICE" for array in arrays(given)):
            for array in made:
                if memory(array) not in old:
                    array._device = here


def memory(array: Any) -> int:
    """The identity of the memory block of an array or a view."""
    root = array._array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return id(root)


# --- dtypes and numpy arrays ---------------------------------------------------------------------


def _equal_dtypes(dtype: Any, other: Any) -> bool:
    if type(other) is type(dtype):
        return dtype._np_dtype is other._np_dtype  # numpy has one object for each dtype
    try:
        return bool(dtype._np_dtype == np.dtype(getattr(other, "_np_dtype", other)))
    except TypeError:
        return False


def _array_of_scalar(xp: Any, scalar: Any) -> Any:
    """A numpy scalar as an array, as it takes part in promotion."""
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
