"""Kernels of another level of the instruction set than the best that this processor has."""

from __future__ import annotations

import pytest

from xbp.accelerators.cpu import calls, dense, elementwise, native, updates


def use_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have accelerators call the library of `level`; skips the test where it cannot run."""
    monkeypatch.setenv("XBP_ACCELERATE", level)
    library, found = native._load.__wrapped__()
    if found != level:
        pytest.skip(f"{level} is not built, or this processor cannot run it")
    monkeypatch.setattr(native, "library", lambda: library)
    monkeypatch.setattr(native, "lanes", lambda itemsize: library.xbp_lanes(itemsize))  # type: ignore[union-attr]
    monkeypatch.setattr(elementwise, "_pass", elementwise._pass.__wrapped__)
    monkeypatch.setattr(updates, "_update", updates._update.__wrapped__)
    monkeypatch.setattr(dense, "_kernel", dense._kernel.__wrapped__)
    monkeypatch.setattr(calls, "_kernel", calls._kernel.__wrapped__)
