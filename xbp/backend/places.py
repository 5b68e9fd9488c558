"""Backends: a library and one of its devices, on which new arrays are created."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xbp.backend.arrays import as_numbers
from xbp.backend.dtypes import DTYPES, dtype_name
from xbp.backend.libraries import LIBRARIES, Array, Namespace, library_of
from xbp.errors import BackendError, InputError, brief


@dataclass(frozen=True)
class Backend:
    """A library and one of its devices, on which new arrays are created.

    Attributes
    ----------
    name : str
        ``"numpy"``, ``"cupy"``, ``"array_api_strict"`` or ``"torch"``.
    xp : module
        The library's Array API namespace.
    device
        The library's device object, as its creation functions take it.
    """

    name: str
    xp: Namespace
    device: Any

    def asarray(self, obj: Any, *, dtype: Any = None) -> Array:
        """`obj` as an array of this backend; see `xbp.asarray`."""
        library, name = LIBRARIES[self.name], None if dtype is None else dtype_name(dtype)
        own = self.xp is not np and library_of(obj) is library and obj.device == self.device
        adopted = None if own else library.adopted(obj, self.device)
        if own or adopted is not None:
            obj = obj if own else adopted
            with library.on(self.device):
                obj = library.plain(obj)
                name = _target(obj, obj.dtype, name)
                return self.xp.asarray(obj, dtype=None if name is None else getattr(self.xp, name))
        host = as_numbers(obj)
        name = _target(obj, host.dtype, name)
        if name is not None:
            host = host.astype(name, copy=False)
        return library.place(self.xp, host, self.device)

    def on_device(self) -> AbstractContextManager[Any]:
        """A block in which new arrays and results lie on this backend; see `Library.on`."""
        return LIBRARIES[self.name].on(self.device)

    def __hash__(self) -> int:
        return hash(self.name)  # CuPy's devices have no hash

    def __str__(self) -> str:
        return f"{self.name} ({self.device})"


def _target(obj: Any, dtype: Any, wanted: str | None) -> str | None:
    """The name of the dtype to convert `obj` to; None if it keeps its own.

    Raises
    ------
    InputError
        An imaginary part would be dropped, or xbp has no such dtype.
    """
    own = str(dtype).rpartition(".")[2]
    if wanted is not None and own.startswith("c") and not wanted.startswith("c"):
        msg = f"this {type(obj).__name__} is {own}, and cannot become {wanted}; give its real part"
        raise InputError(msg)
    if wanted is not None or own in DTYPES:
        return wanted
    if own == "float16":
        return "float32"  # holds all float16 values
    msg = f'this {type(obj).__name__} is {own}, which xbp lacks; name another dtype, as "float64"'
    raise InputError(msg)


def backend_of(array: Array) -> Backend:
    """The backend of `array`, for placing others beside it.

    Raises
    ------
    InputError
        `array` belongs to no library of the table.
    """
    library = library_of(array)
    if library is None:
        msg = f"{type(array).__name__} belongs to no backend of xbp; make an array with xbp.asarray"
        raise InputError(msg)
    return Backend(library.name, library.namespace(), array.device)


def find_backend(name: str | Backend, *, device: Any = None) -> Backend:
    """The backend called `name`, without making it the current one.

    Raises
    ------
    BackendError
        As `set_backend`.
    """
    if isinstance(name, Backend):
        if device is None:
            return name
        name = name.name
    if not isinstance(name, str) or name not in LIBRARIES:
        msg = f"there is no backend {name!r}; choose one of {', '.join(map(repr, LIBRARIES))}"
        raise BackendError(msg)
    library = LIBRARIES[name]
    try:
        return Backend(name, library.namespace(), library.device(device))
    except BackendError:
        raise
    except (Exception, SystemExit) as error:  # an installation may be broken in any way
        msg = f"the {name!r} backend is installed but broken ({brief(error)}); install it again"
        raise BackendError(msg) from error


def available_backends() -> list[str]:
    """The names of the backends that work here: installed, and with a device."""
    return [name for name in LIBRARIES if why_unavailable(name) is None]


def why_unavailable(name: str) -> str | None:
    """None for a backend that works here; otherwise one sentence with the reason and advice."""
    try:
        find_backend(name)
    except BackendError as error:
        return str(error)
    return None
