"""Reading ahead: the same items, by one thread, which ends in every case."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

import xbp
from xbp.data import Ahead
from xbp.testing.helpers import replaced


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("most", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_all_items_in_order(most: int, count: int) -> None:
    with Ahead(range(count), most) as ahead:
        assert list(ahead) == list(range(count))
        assert next(ahead, "end") == "end" and not ahead.more()


def test_an_error_is_raised_once_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        msg = "the disk is gone"
        raise OSError(msg)

    ahead = Ahead(items(), most=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert next(ahead, "end") == "end"
    ahead.close()


def test_more_waits_and_raises() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("name")

    with Ahead(items()) as ahead:
        assert ahead.more() and ahead.more() and next(ahead) == 1
        with pytest.raises(KeyError, match="name"):
            ahead.more()
        assert not ahead.more()


def test_no_more_is_made_than_was_asked_for() -> None:
    """`most` items wait and one is being made, besides the caller's."""
    begun: list[int] = []
    reached = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(9):
            begun.append(i)
            reached.release()
            yield i

    with Ahead(items(), most=1) as ahead:
        for taken in range(5):
            wanted = min(taken + 2, 9)  # the first waits, the second is being made
            while len(begun) < wanted:
                assert reached.acquire(timeout=10)
            assert begun == list(range(wanted))
            assert next(ahead) == taken


def test_closing_ends_a_generator_in_its_own_thread() -> None:
    seen: list[threading.Thread] = []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            seen.append(threading.current_thread())

    ahead = Ahead(items())
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert len(seen) == 1 and seen[0] is not threading.main_thread()
    assert next(ahead, "end") == "end"


def test_an_iterator_that_can_be_closed_is_closed_in_that_thread() -> None:
    closed: list[threading.Thread] = []

    class Open:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            closed.append(threading.current_thread())

    with Ahead(Open()) as ahead:
        assert next(ahead) == 1
    assert len(closed) == 1 and closed[0] is not threading.main_thread()


def test_who_waits_is_told_of_the_end() -> None:
    waits = threading.Event()

    class Seen(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waits.set()  # the thread gets the lock when the wait has begun
            assert super().wait(timeout=10), "nobody has told"
            return True

    def nothing() -> Iterator[int]:
        assert waits.wait(timeout=10)
        yield from ()

    with replaced(threading, Condition=Seen), Ahead(nothing()) as ahead:
        assert not ahead.more()


def test_an_error_that_nobody_came_to_goes_with_the_rest() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError

    ahead = Ahead(items(), most=3)
    ahead.close()
    assert next(ahead, "end") == "end"


def test_an_iterable_that_cannot_begin() -> None:
    with pytest.raises(TypeError, match="not iterable"), Ahead(3) as ahead:  # type: ignore[arg-type]
        next(ahead)


def test_the_thread_has_the_callers_backend() -> None:
    def items() -> Iterator[str]:
        yield xbp.get_backend().name

    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), Ahead(items()) as ahead:
        assert next(ahead) == "array_api_strict"


def test_nothing_is_kept_when_it_is_over() -> None:
    class Item:
        pass

    held = Item()
    there = weakref.ref(held)
    with Ahead(iter([held])) as ahead:
        del held
        next(ahead)
        next(ahead, None)
        gc.collect()
        assert there() is None
