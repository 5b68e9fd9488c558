"""Calls checked against the table `cupy_rules`: each one is allowed, refused, or put on a tape.

Functions of a namespace and methods of its arrays are replaced, for a while, by ones that first ask
the table. A call made while a graph is recorded goes on the tape of the recording.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from xbp.testing.cupy_rules import (
    PRODUCTS,
    RULES,
    SAFE,
    UPLOAD,
    WAIT,
    Rule,
    captured,
    verdict,
)

Function = Callable[..., Any]


class HostSyncError(AssertionError):
    """Code that must not wait for the device read a value from it."""


class RecordingError(RuntimeError):
    """An operation that a GPU cannot record."""


class _Thread(threading.local):
    """The state of a thread."""

    inside = 0  # nesting depth of unchecked calls
    tape: Any = None  # of the recording in progress
    current: Any = None  # the current device; None is the default


THREAD = _Thread()
_waits_refused = 0  # open blocks of `waits_refused`, in all threads


@contextmanager
def waits_refused() -> Iterator[None]:
    """Within the block, waiting for a device raises `HostSyncError`, in all threads."""
    global _waits_refused
    _waits_refused += 1
    try:
        yield
    finally:
        _waits_refused -= 1


@contextmanager
def inside() -> Iterator[None]:
    """Within the block, calls are not checked."""
    THREAD.inside += 1
    try:
        yield
    finally:
        THREAD.inside -= 1


def refuse(rule: Rule, name: str, whose: str) -> None:
    """Raise for a call with this rule, if it is refused here.

    Raises
    ------
    RecordingError
        In a recording, which continues without the call.
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
def checked_function(
    name: str, original: Function, whose: Callable[[Any], str], call: Function
) -> Function:
    """A wrapper that checks calls against the table, and passes them to `call`.

    Parameters
    ----------
    name : str
        In the table.
    original : callable
    whose : callable
        Describes the device of the arguments; returns an empty text if there is none.
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
                ours = product and _by_a_primitive() and captured(*args, **keywords)
                if rule.verdict is not SAFE and not ours:
                    device = whose((args, keywords))
                    if device or rule.verdict is UPLOAD:
                        refuse(rule, name, device or "numbers")
            return call(name, original, args, keywords)
        finally:
            THREAD.inside -= 1

    return function


def _by_a_primitive() -> bool:
    """Whether the caller is in `xbp.primitives`, which has accelerators on a GPU."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).startswith("xbp.primitives.")


def replaced_functions(
    xp: Any, kind: type, whose: Callable[[Any], str], call: Function, those: Iterable[str]
) -> list[tuple[Any, dict[str, Function]]]:
    """Owners and checked functions, for `replaced`."""
    found: dict[str, tuple[Any, dict[str, Function]]] = {}
    for name in those:
        room, _, last = name.rpartition(".")
        method = last.startswith("__") or last in ("to_device", "fill")
        owner = kind if method else getattr(xp, room) if room else xp
        original = getattr(owner, last, None)
        if original is not None:
            function = checked_function(name, original, whose, call)
            found.setdefault("array" if method else room, (owner, {}))[1][last] = function
    return list(found.values())
