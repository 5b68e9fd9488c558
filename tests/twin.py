"""An array library with numpy's dtypes and CuPy-like devices, on a CPU.

It is as unforgiving as CuPy: its arrays cannot be told from numpy's by shape and dtype; a device
has no hash, and is a new object for each request; creation functions ignore ``device=``; results
are on the current device of the thread. An operation on arrays of another device than the current
one raises `AnotherDeviceError`, where CuPy would read them across. Operations between its arrays
and numpy's, for which CuPy raises a TypeError, are allowed, so that only a check of xbp's can
refuse them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Library, arrays, libraries


class AnotherDeviceError(RuntimeError):
    """An operation while the current device was not that of an array."""


class Current(threading.local):
    """The current device of a thread; 0 in a new one."""

    def __init__(self) -> None:
        self.device = 0
        self.before: list[int] = []


current = Current()


class Device:
    """A device, compared by == with devices only; the current one within a ``with`` block."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("id",)

    def __init__(self, number: int) -> None:
        self.id = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __repr__(self) -> str:
        return f"<Device {self.id}>"

    def use(self) -> None:
        current.device = self.id

    def __enter__(self) -> Device:
        current.before.append(current.device)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        current.device = current.before.pop()


class Array(np.ndarray):
    """An array of the library."""

    where: int

    def __array_finalize__(self, other: Any) -> None:
        view = isinstance(self.base, Array) and isinstance(other, Array)
        self.where = other.where if view else current.device

    @property
    def device(self) -> Device:
        return Device(self.where)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.get("out", ())
        if out:
            options["out"] = tuple(_plain(array) for array in out)
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if out else _own(result)

    def __getitem__(self, key: Any) -> Any:
        key = tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)
        found = super().__getitem__(key)
        return found if isinstance(found, Array) else self[(*_tuple(key), ...)]

    def __setitem__(self, key: Any, value: Any) -> None:
        key = tuple(map(_plain, key)) if isinstance(key, tuple) else _plain(key)
        _plain(self)[key] = _plain(value)


def _tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _plain(value: Any) -> Any:
    """The numpy arrays of arguments."""
    if isinstance(value, Array):
        if value.where != current.device:
            msg = f"an array of device {value.where}, while device {current.device} is current"
            raise AnotherDeviceError(msg)
        return value.view(np.ndarray)
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _own(value: Any) -> Any:
    """A result as an array of the library, or several."""
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    return np.asarray(value).view(Array) if isinstance(value, np.ndarray | np.generic) else value


VIEWS = ("reshape", "permute_dims", "expand_dims", "squeeze", "matrix_transpose", "broadcast_to")


class Namespace:
    """The namespace: numpy's functions for arrays of the library."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        if name in VIEWS:
            return lambda *args, **options: _same_place(args[0], found(*args, **options))
        return _wrapped(found)

    __name__ = "twin"


def _same_place(array: Array, view: Any) -> Any:
    view = view.view(Array)
    view.where = array.where
    return view


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        options.pop("device", None)  # ignored, as by CuPy's functions
        return _own(function(*map(_plain, args), **{k: _plain(v) for k, v in options.items()}))

    return called


class Twin(Library):
    """The entry in the table of libraries."""

    name, module, root, install = "twin", "twin", "twin", ""

    def namespace(self) -> Any:
        return namespace

    def device(self, device: Any) -> Device:
        return Device(getattr(device, "id", device or 0))

    def activate(self, device: Any) -> None:
        device.use()

    def on(self, device: Any) -> Any:
        return device

    def place(self, xp: Any, array: NDArray[Any], device: Any) -> Array:
        with device:
            return _own(np.array(array))  # type: ignore[no-any-return]

    def to_numpy(self, array: Array) -> NDArray[Any]:
        return np.array(array.view(np.ndarray))

    def on_host(self, array: Array) -> bool:
        return False

    def free_memory(self, device: Any) -> int | None:
        return None


namespace = Namespace()


@contextmanager
def twin() -> Iterator[Twin]:
    """A block in which the backend ``"twin"`` exists."""
    library = Twin()
    with ExitStack() as stack:
        for table, key, value in (
            (libraries.LIBRARIES, "twin", library),
            (libraries._LIBRARY_OF_ROOT, "twin", library),
            (libraries._LIBRARY_OF_TYPE, Array, library),
            (arrays._NAMESPACE_OF_TYPE, Array, namespace),
        ):
            table[key] = value  # type: ignore[index]
            stack.callback(table.pop, key)  # type: ignore[attr-defined]
        stack.callback(Device(current.device).use)
        yield library
