"""Reading ahead: a thread makes the next items while the caller works on the current one."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterable, in order, made ahead of their use by a thread.

    The iterable is started, advanced and closed in that thread alone. Its error is raised once, in
    place of the item. The thread ends with the iterable, with an error, or with `close`, which also
    ends a ``with`` block.

    Parameters
    ----------
    items : iterable
    most : int, default 1
        The number of finished items that wait. Besides these, one may be in the making and one in
        use: item i is begun after the request for item i - most - 1.
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
                    del item  # leaves the item to the caller alone
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
        """Wait for room, and hand the item over; False after `close`."""
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
        """Wait until it is known whether another item comes; raises an error of the iterable."""
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
        """End the thread after its current item, and drop all items."""
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
