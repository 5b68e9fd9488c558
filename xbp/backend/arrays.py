"""Properties of arrays of any library: namespace, device, values on the host.

Computation follows its inputs (`array_namespace`) and never asks for the current backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from xbp.backend.foreign import as_host, check_kind, check_numbers, widened
from xbp.backend.graphs import Graph
from xbp.backend.libraries import (
    ANYWHERE,
    Array,
    Fetch,
    Namespace,
    RecordedNumPy,
    library_of,
    of_another_library,
    read_from_gpu,
)
from xbp.backend.slots import Slots
from xbp.errors import BackendError, InputError

P = ParamSpec("P")
R = TypeVar("R")


# --- namespaces ----------------------------------------------------------------------------------


HOST: Namespace = np
HostArray = np.ndarray
"""The type of arrays that have one device only. In fast paths, ``type(a) is type(b) is HostArray``
saves the call of `check_beside`."""


def array_namespace(array: Array) -> Namespace:
    """The Array API namespace of `array`.

    For numpy arrays it is numpy itself, which has conformed since 2.0; array_api_compat wraps other
    libraries. The result is cached by type, as every layer needs it in every call.

    Raises
    ------
    InputError
        `array` is no array.
    """
    kind = type(array)
    xp = _NAMESPACE_OF_TYPE.get(kind)
    if xp is None:
        xp = _NAMESPACE_OF_TYPE[kind] = _find_namespace(array)
    return xp


def _find_namespace(array: Any) -> Namespace:
    if isinstance(array, np.ndarray | np.generic):
        check_kind(array)
        return np
    if isinstance(library := library_of(array), RecordedNumPy):
        return library.namespace()
    import array_api_compat

    try:
        return array_api_compat.array_namespace(array)
    except TypeError:
        msg = f"expected an array, got {type(array).__name__}; make one with xbp.asarray"
        raise InputError(msg) from None


_NAMESPACE_OF_TYPE: dict[type, Namespace] = {}


def is_floating(array: Array) -> bool:
    """Whether an array holds floating-point numbers, real or complex; cached by dtype."""
    return is_kind(array, ("real floating", "complex floating"))


def is_kind(array: Array, kind: str | tuple[str, ...]) -> bool:
    """`isdtype` of an array's dtype; cached."""
    key = type(array), array.dtype, kind
    found = _IS_KIND.get(key)
    if found is None:
        found = _IS_KIND[key] = bool(array_namespace(array).isdtype(array.dtype, kind))
    return found


_IS_KIND: dict[tuple[type, Any, Any], bool] = {}


# --- values on the host --------------------------------------------------------------------------


def to_numpy(array: Any) -> NDArray[Any]:
    """`array` of any library as a numpy array, after a wait for its device."""
    library = library_of(array)
    if library is not None:
        return library.to_numpy(array)
    if hasattr(type(array), "__cuda_array_interface__") and not hasattr(array, "__array__"):
        return read_from_gpu(array)
    return as_host(array, of_another_library)


def as_numbers(obj: Any) -> NDArray[Any]:
    """`obj` as a numpy array of booleans or numbers, in the machine's byte order."""
    host = widened(to_numpy(obj))
    check_numbers(obj, host)
    return host.astype(host.dtype.newbyteorder("="), copy=False)


def plain(array: Array) -> Array:
    """`array`, on its device, as a plain array of numbers.

    Raises
    ------
    InputError
        It is no array, or has a mask, a unit, …; see `asarray`.
    """
    array_namespace(array)
    library = library_of(array)
    return array if library is None else library.plain(array)


def writable(array: Array) -> Array:
    """`array`, or a copy if it cannot be changed in place (a scalar, a read-only memory map, …)."""
    if hasattr(array, "__setitem__"):
        library = library_of(array)
        if library is None or library.name != "numpy" or array.flags.writeable:
            return array
    return array_namespace(array).asarray(array, copy=True)


def fetch(array: Array) -> Fetch:
    """Start the transfer of `array` to the host, without a wait for its device."""
    library = library_of(array)
    return Fetch(np.asarray(array)) if library is None else library.fetch(array)


def on_host(array: Array) -> bool:
    """Whether the values of `array` can be read without waiting for a device."""
    library = library_of(array)
    return library is not None and library.on_host(array)


def is_lost(value: Array) -> bool:
    """Whether a loss is known to be infinite or nan; see `Library.is_lost`.

    In a recorded step on the host it is not; but a replay ends here if the loss is.
    """
    library = library_of(value)
    return library is not None and library.is_lost(value)


# --- devices -------------------------------------------------------------------------------------


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """A block in which new arrays and results lie on the device of `array`; see `Library.on`."""
    library = None if type(array) is HostArray else library_of(array)
    return ANYWHERE if library is None else library.on(array.device)


def there(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run on the device of the first array among its arguments, or their tuples."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        for array in (*args, *options.values()):
            if type(array) is HostArray:  # no device to choose
                break
            if type(array) is tuple and array:
                array = array[0]
            if library_of(array) is not None:
                with on_device_of(array):
                    return function(*args, **options)
        return function(*args, **options)

    return run


def whereabouts(array: Any) -> str:
    """Library and device of an array, for messages: ``"numpy (cpu)"``."""
    library = library_of(array)
    name = type(array).__name__ if library is None else library.name
    return f"{name} ({getattr(array, 'device', 'no device')})"


def check_beside(
    owner: Any,
    what: str,
    array: Array,
    other: str,
    neighbour: Array,
    advice: str = "move one of them with xbp.asarray(…)",
) -> None:
    """Refuse two arrays of different libraries, or on different devices.

    Neither shape nor dtype distinguishes them, as CuPy shares numpy's dtypes.

    Parameters
    ----------
    owner : object
        The layer or function that got both arrays, for messages.
    what, array
        An array and its name: ``"a target"``.
    other, neighbour
        The array beside it, and its name with a verb: ``"the prediction is"``.
    advice : str

    Raises
    ------
    BackendError
    InputError
        One of them is no array.
    """
    kind = type(array)
    if kind is type(neighbour) and (kind is HostArray or array.device == neighbour.device):
        return
    together = array_namespace(array) is array_namespace(neighbour)  # a numpy scalar and an array
    if not together or array.device != neighbour.device:
        msg = (
            f"{owner} got {what} on {whereabouts(array)}, where {other} on "
            f"{whereabouts(neighbour)}; {advice}"
        )
        raise BackendError(msg)


def fill_slots(arrays: list[Array], count: int) -> Slots:
    """`arrays`, which lie on one device, as slots to be filled from the host; see `Slots`."""
    library = library_of(arrays[0])
    assert library is not None
    return library.slots(arrays, count)


def graph_for(array: Array) -> Graph | None:
    """A new graph for the device of `array`; None if its work cannot be captured."""
    library = library_of(array)
    return None if library is None else library.graph(array.device)


def free_memory(array: Array) -> int | None:
    """Free bytes on the device of `array`; None if unknown."""
    library = library_of(array)
    return None if library is None else library.free_memory(array.device)


MOST_AT_ONCE = 8
"""CuPy joins more arrays than these by a table of pointers, which it uploads."""


def joined(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """`xp.concat` of any number of arrays along the first axis, a few at a time."""
    while len(arrays) > 1:
        starts = range(0, len(arrays), MOST_AT_ONCE)
        arrays = [xp.concat(arrays[i : i + MOST_AT_ONCE], axis=0) for i in starts]
    return arrays[0]
