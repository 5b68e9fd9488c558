"""Ctrl-C ends training after the current step, and loses nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = "interrupted by Ctrl-C"


@contextmanager
def stop_on_interrupt(stop: Callable[[str], object]) -> Iterator[None]:
    """Let the first Ctrl-C call `stop` with the reason, and the second one do what it did before.

    Nothing is changed outside of the main thread (Python forbids it), where SIGINT is ignored, or
    where its handler is not Python's and could not be put back. A handler that is set in the
    meantime stays in place.
    """
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous in (None, signal.SIG_IGN):
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        stop(INTERRUPTED)
        signal.signal(signal.SIGINT, previous)

    try:
        signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # the main thread of a subinterpreter
        yield
        return
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, previous)
