"""Reading ahead: a thread makes what comes next, while the caller works on what came before."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterable, in their order, made by a thread before they are asked for.

    The iterable is begun, advanced and closed in that thread alone. An error in it is raised where
    the item would have come, once. The thread ends with the iterable, with an error, or with
    `close`; leaving a ``with`` block closes.

    Parameters
    ----------
    items : iterable
    most : int, default 1
        How many finished items wait. One more may be in the making, and one is the caller's: an
        item is begun only when the caller has asked for the last but ``most + 1``.
    """

    def __init__(self, items: Iterable[T], most: int = 1) -> None:
        self._most = most
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # The caller's context has the current backend.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._read, items), name="xbp reads ahead", daemon=True
        )
        self._thread.start()

    def _read(self, items: Iterable[T]) -> None:
        error: BaseException | None = None
        try:
            iterator = iter(items)
            try:
                for item in iterator:
                    if not self._put(item):
                        break
                    del item  # the caller's alone, while the next one is in the making
            finally:
                close = getattr(iterator, "close", None)
                if callable(close):
                    close()
        except BaseException as raised:
            error = raised
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()
        del error, items

    def _put(self, item: T) -> bool:
        """Wait for room, and hand the item over; False where nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._most)
            if self._closed:
                return False
            self._ready.append(item)
            self._changed.notify_all()
            return True

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self.more():
            self.close()
            raise StopIteration
        with self._changed:
            item = self._ready.popleft()
            self._changed.notify_all()
        return item

    def more(self) -> bool:
        """Whether another item comes; waits until that is known. Raises what the thread met."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._ended)
            if self._ready:
                return True
            error, self._error = self._error, None
        if error is None:
            return False
        try:
            raise error
        finally:
            del error  # no circle of references

    def close(self) -> None:
        """End the thread, after the item that it is at, and drop what was made."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()
        self._error = None

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
