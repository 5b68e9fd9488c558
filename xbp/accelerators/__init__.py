"""Faster versions of primitives, each for one array library, each checked against its reference.

An accelerator has the name and the arguments of the primitive it stands in for, and may decline a
call by returning ``NotImplemented``: the reference then computes it. ``XBP_ACCELERATE=0`` in the
environment, or `disabled`, switches all of them off; the name of a level, as in `native.LEVELS`,
chooses the kernels compiled for it.

For numpy they are compiled C (`kernels.c`), built when xbp is installed where there is a compiler;
for CuPy they are CUDA kernels (`cuda`), compiled when they are first used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from xbp.accelerators import native

Function = Callable[..., Any]

_allowed = os.environ.get("XBP_ACCELERATE", "1") != "0"
_disabling = 0  # blocks of `disabled` that are open, in all threads
_lock = threading.Lock()  # of that count
_tables: dict[type, dict[str, Function]] = {}  # array type to {primitive: accelerator}


class Accelerator(NamedTuple):
    """What `registered` lists: `function` stands in for primitive `name` on arrays of `backend`."""

    name: str
    backend: str
    function: Function


def find(name: str, kind: type) -> Function | None:
    """The accelerator of a primitive for arrays of type `kind`, or None."""
    if _disabling or not _allowed:
        return None
    table = _tables.get(kind)
    if table is None:
        table = _tables[kind] = _load(kind)
    return table.get(name)


def _load(kind: type) -> dict[str, Function]:
    """The accelerators for an array type: found when its first array comes along."""
    if kind.__module__ == "numpy" and native.library() is not None:
        from xbp.accelerators import affine, convolution, elementwise, product

        functions = (
            *affine.ACCELERATORS,
            *convolution.ACCELERATORS,
            *elementwise.ACCELERATORS,
            *product.ACCELERATORS,
        )
        return {function.__name__: function for function in functions}
    if kind.__module__.partition(".")[0] == "cupy":
        from xbp.accelerators import cuda

        return {function.__name__: function for function in cuda.ACCELERATORS}
    return {}


def register(kind: type, functions: Iterable[Function]) -> None:
    """Let `functions` stand in for the primitives whose names they have, on arrays of type `kind`.

    For arrays that only record what is done with them, as in `xbp.exchange`.
    """
    _tables[kind] = {function.__name__: function for function in functions}


def registered() -> list[Accelerator]:
    """All accelerators that work here."""
    from xbp.backend import find_backend, why_unavailable

    backends = [find_backend(name) for name in ("numpy", "cupy") if why_unavailable(name) is None]
    return [
        Accelerator(name, backend.name, function)
        for backend in backends
        for name, function in _load(type(backend.asarray(0.0))).items()
    ]


def status() -> str:
    """What is in use, in words, for `xbp info`."""
    if not _allowed:
        return "switched off (XBP_ACCELERATE=0)"
    if _disabling:
        return "switched off (accelerators.disabled())"
    if native.library() is None:
        return f"none: {native.status()}"
    return f"numpy: compiled kernels, {native.status()}, {native.threads()} threads"


def enabled() -> bool:
    """Whether accelerators are asked at all."""
    return _allowed and not _disabling


@contextmanager
def disabled() -> Iterator[None]:
    """Within the block, in all threads, the references compute.

    Blocks are counted: while one is open, whichever thread opened it, accelerators stay off.

    Examples
    --------
    >>> import xbp.accelerators
    >>> with xbp.accelerators.disabled():
    ...     xbp.accelerators.enabled()
    False
    """
    global _disabling
    with _lock:
        _disabling += 1
    try:
        yield
    finally:
        with _lock:
            _disabling -= 1
