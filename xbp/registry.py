"""Which implementation of a primitive serves which arrays.

It lies below the primitives: a reference asks here for a rival, and imports none. Whoever has some
offers a module for an array library, which is imported when the first array of that library meets a
primitive, or registers functions for a type of arrays.

``XBP_ACCELERATE=0`` in the environment, or `disabled`, leaves everything to the references. `using`
replaces some primitives in one context, whatever arrays they are given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

Function = Callable[..., Any]

_allowed = os.environ.get("XBP_ACCELERATE", "1") != "0"
_disabling: list[object] = []  # one entry for each open block of `disabled`, in all threads
_open: list[object] = []  # these and those of `using`; if there is none, `find` asks no further
_offers: dict[str, str] = {}  # array library to the module of its accelerators
_tables: dict[type, dict[str, Function]] = {}  # array type to {primitive: accelerator}


class Arithmetic:
    """How products are computed where it is not in the dtype of the arrays.

    Parameters
    ----------
    name : str
        The format of the factors.
    functions : mapping
        What stands in for primitives, by their names; None for the reference. Empty where the
        factors have been rounded already.
    """

    def __init__(self, name: str, functions: Mapping[str, Function | None]) -> None:
        self.name, self.functions = name, functions


_variable: list[Any] = []  # the ContextVar of `using`, made by its first block


def find(name: str, kind: type) -> Function | None:
    """What computes the primitive `name` for arrays of type `kind`; None for the reference."""
    if _open or not _allowed:
        found = arithmetic()
        if found is not None and name in found.functions:
            return found.functions[name]
        if _disabling or not _allowed:
            return None
    table = _tables.get(kind)
    if table is None:
        table = _tables[kind] = offered(kind)
    return table.get(name)


def offer(library: str, module: str) -> None:
    """Let the functions that ``implementations()`` of a module returns stand in for primitives.

    Parameters
    ----------
    library : str
        The module in which the library's array type is defined, as its ``__module__`` says.
    module : str
        By name; imported when the first array of that library meets a primitive.
    """
    _offers[library] = module


def offered(kind: type) -> dict[str, Function]:
    """What is offered for the library of an array type: names of primitives to accelerators."""
    module = _offers.get(kind.__module__)
    return named(import_module(module).implementations()) if module else {}


def register(kind: type, functions: Iterable[Function]) -> None:
    """Let `functions` stand in for the primitives whose names they have, on arrays of type `kind`.

    For arrays that only record what is done with them, as in `xbp.exchange`.
    """
    _tables[kind] = named(functions)


def named(functions: Iterable[Function]) -> dict[str, Function]:
    """Functions by their names."""
    return {function.__name__: function for function in functions}


def allowed() -> bool:
    """Whether the environment allows accelerators."""
    return _allowed


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
    block = object()
    _disabling.append(block)
    _open.append(block)
    try:
        yield
    finally:
        _open.remove(block)
        _disabling.remove(block)


@contextmanager
def using(arithmetic: Arithmetic | None) -> Iterator[None]:
    """Within the block, in this context alone (`contextvars`), products are computed so."""
    if not _variable:
        from contextvars import ContextVar  # here, as it takes a tenth of the time of `import xbp`

        _variable.append(ContextVar("xbp_arithmetic", default=None))
    block, before = object(), _variable[0].get()
    _open.append(block)
    _variable[0].set(arithmetic)
    try:
        yield
    finally:
        _variable[0].set(before)
        _open.remove(block)


def arithmetic() -> Arithmetic | None:
    """The innermost open block's of `using`; None for that of the arrays."""
    found: Arithmetic | None = _variable[0].get() if _open and _variable else None
    return found


def rounded() -> str:
    """The format to which factors of products have been rounded already; "" if they were not."""
    found = arithmetic()
    return found.name if found is not None and not found.functions else ""
