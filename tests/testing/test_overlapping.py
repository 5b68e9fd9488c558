"""Process-wide switches in two threads whose blocks overlap without nesting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace

import pytest

import xbp
from xbp import accelerators
from xbp.backend import LIBRARIES
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.testing.helpers import replaced

OWNER = SimpleNamespace(value=0)
STRICT, TORCH = LIBRARIES["array_api_strict"], LIBRARIES["torch"]


def strict_arrays_are_free_to_read() -> bool:
    with xbp.use_backend("array_api_strict"):
        return bool(xbp.asarray(1.0) > 0)


SWITCHES: dict[str, tuple[Callable[[], AbstractContextManager[object]], Callable[[], object]]] = {
    "disabled": (accelerators.disabled, accelerators.enabled),
    "replaced": (lambda: replaced(OWNER, value=1), lambda: OWNER.value),
    "assert_no_host_sync": (assert_no_host_sync, strict_arrays_are_free_to_read),
    "emulated_graphs": (emulated_graphs, lambda: (vars(STRICT).copy(), vars(TORCH).copy())),
    "use_backend": (lambda: xbp.use_backend("array_api_strict"), lambda: xbp.get_backend().name),
}


def overlap(switch: Callable[[], AbstractContextManager[object]]) -> None:
    """A block that begins after another thread's block began, and ends after it."""
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with switch():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with switch():
        leave.set()
        thread.join()


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_as_before_when_all_blocks_are_left(name: str) -> None:
    pytest.importorskip("array_api_strict")
    pytest.importorskip("torch")
    switch, look = SWITCHES[name]
    before = look()
    overlap(switch)
    assert look() == before


def test_a_replacement_holds_until_its_own_block_is_left() -> None:
    outer, inner = replaced(OWNER, value=1), replaced(OWNER, value=2)
    with outer:
        inner.__enter__()
    assert OWNER.value == 2
    inner.__exit__(None, None, None)
    assert OWNER.value == 0


def test_what_was_inherited_is_inherited_again() -> None:
    class Base:
        value = 0

    class Derived(Base):
        pass

    with replaced(Derived, value=1):
        assert Derived.value == 1
    assert "value" not in vars(Derived)
    assert Derived.value == 0


def test_accelerators_stay_off_until_the_last_block_is_left() -> None:
    before = accelerators.enabled()
    first = accelerators.disabled()
    with accelerators.disabled():
        first.__enter__()
    assert not accelerators.enabled()
    assert accelerators.find("convolve", float) is None
    first.__exit__(None, None, None)
    assert accelerators.enabled() == before


def within(name: str) -> Iterator[str]:
    with xbp.use_backend(name):
        yield xbp.get_backend().name
        yield xbp.get_backend().name


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["as opened", "from within"])
def test_backends_of_generators_may_end_in_any_order(order: tuple[int, int]) -> None:
    pytest.importorskip("array_api_strict")
    pytest.importorskip("torch")
    before = xbp.get_backend()
    readers = [within("array_api_strict"), within("torch")]
    assert [next(reader) for reader in readers] == ["array_api_strict", "torch"]
    first, last = (readers[i] for i in order)
    first.close()  # type: ignore[attr-defined]
    assert xbp.get_backend().name == ("torch", "array_api_strict")[order[0]]
    last.close()  # type: ignore[attr-defined]
    assert xbp.get_backend() == before


def test_a_generator_may_end_in_another_thread() -> None:
    """A block that ends in another thread, as by a garbage collector."""
    pytest.importorskip("array_api_strict")
    before, reader, errors = xbp.get_backend(), within("array_api_strict"), []
    next(reader)

    def end() -> None:
        try:
            reader.close()  # type: ignore[attr-defined]
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert not errors
    assert xbp.get_backend() == before


def test_a_task_keeps_the_backend_with_which_it_began() -> None:
    pytest.importorskip("array_api_strict")

    async def later() -> str:
        await asyncio.sleep(0)
        return xbp.get_backend().name

    async def main() -> str:
        with xbp.use_backend("array_api_strict"):
            task = asyncio.create_task(later())
        return await task

    assert asyncio.run(main()) == "array_api_strict"


def test_a_choice_within_a_block_ends_with_it() -> None:
    pytest.importorskip("array_api_strict")
    pytest.importorskip("torch")
    before = xbp.get_backend()
    with xbp.use_backend("array_api_strict"):
        xbp.set_backend("torch")
        assert xbp.get_backend().name == "torch"
    assert xbp.get_backend() == before
