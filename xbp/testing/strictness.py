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

from xbp.testing.cupy_rules import PRODUCTS, RULES, SAFE, UPLOAD, WAIT, Rule, verdict

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
