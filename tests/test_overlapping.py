"""Switches of the whole process, opened in two threads whose blocks overlap without nesting."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    """A block here that begins after one in another thread, and ends after it."""
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
