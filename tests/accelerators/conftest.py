"""What tests of compiled kernels vary: threads, levels, dtypes; and memory between guards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from guards import Guards
from levels import use_level
from nightly import NIGHTLY

from xbp.accelerators.cpu import native

THREADS = {"alone": 1, "in_pairs": 2, "in_threes": 3}
if not NIGHTLY:
    THREADS.pop("in_pairs")


@pytest.fixture(params=THREADS.values(), ids=THREADS)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(native, "threads", lambda: request.param)
    return int(request.param)


@pytest.fixture(params=list(native.LEVELS))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of each level of the instruction set that this processor has."""
    use_level(request.param, monkeypatch)


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    guards = Guards()
    monkeypatch.setattr(np, "empty", guards.empty)
    monkeypatch.setattr(np, "empty_like", guards.empty_like)
    yield guards
    guards.check()


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)
