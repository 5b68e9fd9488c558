"""Ctrl-C, which ends training after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = "interrupted by Ctrl-C"


@contextmanager
def stop_on_interrupt(stop: Callable[[str], object]) -> Iterator[None]:
    """Let the first Ctrl-C call `stop` with the reason, and restore the handler for the second.

    Nothing changes outside the main thread (Python forbids it), if SIGINT is ignored, or if its
    handler is not Python's and could not be restored. A handler that is set within the block stays
    in place.
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
