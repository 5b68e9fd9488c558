"""The current backend, on which new arrays are created by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from xbp.backend.libraries import LIBRARIES, Array
from xbp.backend.places import Backend, find_backend
from xbp.errors import BackendError


class _Block:
    """A `use_backend` block; `left` is set if it ended in another context than it began."""

    left = False


_default: Backend | None = None  # set by set_backend, for the whole process
_blocks: ContextVar[tuple[tuple[_Block, Backend], ...]] = ContextVar("xbp_backend", default=())
# open use_backend blocks, from the outermost to the innermost; they may end in any order


def set_backend(name: str, *, device: Any = None) -> Backend:
    """Choose where new arrays are created, for the whole process.

    Inside a `use_backend` block the choice holds until the block ends. Existing arrays stay where
    they are: move a model with ``layer.to(name)``.

    Parameters
    ----------
    name : {"numpy", "cupy", "array_api_strict", "torch"}
    device : optional
        A device of that library, e.g. ``1`` or ``"cuda:1"``; None is its default.

    Raises
    ------
    BackendError
        The backend is unknown, not installed, or has no such device.

    Examples
    --------
    >>> import xbp
    >>> print(xbp.set_backend("numpy"))
    numpy (cpu)
    """
    global _default
    backend = find_backend(name, device=device)
    LIBRARIES[backend.name].activate(backend.device)
    inner = _innermost()
    if inner is None:
        _default = backend
    else:
        _blocks.set(tuple((one[0], backend) if one is inner else one for one in _blocks.get()))
    return backend


@contextmanager
def use_backend(name: str, *, device: Any = None) -> Iterator[Backend]:
    """`set_backend` for a ``with`` block; the earlier backend returns at its end and on errors.

    Blocks of generators and coroutines may end in any order. A generator that yields within a block
    leaves it open until it continues.

    Examples
    --------
    >>> import xbp
    >>> with xbp.use_backend("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    backend = find_backend(name, device=device)
    with backend.on_device():
        LIBRARIES[backend.name].activate(backend.device)
        block = _Block()
        _blocks.set((*_blocks.get(), (block, backend)))
        try:
            yield backend
        finally:
            inside = _blocks.get()
            _blocks.set(outside := tuple(one for one in inside if one[0] is not block))
            block.left = len(outside) == len(inside)


def _innermost() -> tuple[_Block, Backend] | None:
    return next((one for one in reversed(_blocks.get()) if not one[0].left), None)


def get_backend() -> Backend:
    """The backend on which new arrays are created now.

    It is numpy, unless `set_backend`, `use_backend` or the environment variable ``XBP_BACKEND``
    (read at the first call) chooses another one.
    """
    global _default
    inner = _innermost()
    if inner is not None:
        return inner[1]
    if _default is None:
        try:
            _default = find_backend(os.environ.get("XBP_BACKEND") or "numpy")
        except BackendError as error:
            msg = f"the environment variable XBP_BACKEND cannot be followed: {error}"
            raise BackendError(msg) from None
        LIBRARIES[_default.name].activate(_default.device)
    return _default


def asarray(obj: Any, *, dtype: Any = None) -> Array:
    """`obj` as an array on the current backend, copied only if necessary.

    Parameters
    ----------
    obj : array of any library, number, or nested sequence of numbers
        Also an object with ``__array__``, a buffer, DLPack or ``__cuda_array_interface__``, such as
        a data frame or a memory map. Floats of fewer bits become float32; a tensor that requires a
        gradient is detached. On the CPU the result shares memory with arrays of numpy, PyTorch and
        JAX, with buffers and with DLPack, if the dtype stays; PyTorch copies read-only ones. CuPy
        shares the memory of any array on its GPU that has ``__cuda_array_interface__`` (PyTorch's,
        Numba's; not yet run on a GPU). What lies on another device is copied by way of the host.
    dtype : str or dtype of any library, optional
        ``"float32"``, ``numpy.float32``, …; None keeps the dtype of `obj` (Python floats: float64).

    Raises
    ------
    InputError
        `obj` does not hold numbers, or has a mask or a unit; it is sparse or quantized, or a
        sequence without a known length; or it is complex and `dtype` is not.

    Examples
    --------
    >>> import xbp
    >>> xbp.asarray([[1, 2], [3, 4]], dtype="float32").shape
    (2, 2)
    """
    return get_backend().asarray(obj, dtype=dtype)
