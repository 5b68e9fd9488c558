import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from nobody import open_folder  # noqa: F401
from processes import search_path

import xbp.backend
import xbp.datasets.mnist
from xbp.backend import LIBRARIES, why_unavailable

if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "xbp",
        deadline=None,
        max_examples=10,
        derandomize=True,
        # `backend` is intentionally the same for all examples of a test.
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    # `pytest --hypothesis-profile nightly`: twenty times as many examples, at random.
    settings.register_profile(
        "nightly", settings.get_profile("xbp"), max_examples=200, derandomize=False, print_blob=True
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "xbp"))


@pytest.fixture(autouse=True, scope="session")
def _processes_find_xbp() -> Iterator[None]:
    """Let child processes find xbp, however it was put on the path of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", search_path())
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_power_fails() -> Iterator[None]:
    """No flushes of files to the disk, which take half of the time of tests of files.

    Tests of what happens when a flush fails, or when the process ends there, replace it again.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _mnist_is_read_once() -> Iterator[None]:
    """Copies of the MNIST that ships with xbp: to decompress it anew takes 0.2 s, a copy 0.01 s."""
    read = xbp.datasets.mnist.read_pair

    @cache
    def bundled(*paths: Path) -> tuple[Any, Any]:
        return read(*paths)

    def read_pair(*paths: Path) -> tuple[Any, Any]:
        if {path.parent for path in paths} != {xbp.datasets.mnist._BUNDLED}:
            return read(*paths)
        images, labels = bundled(*paths)
        return images.copy(), labels.copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xbp.datasets.mnist, "read_pair", read_pair)
        yield


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> Iterator[None]:
    """KeyboardInterrupt on SIGINT, which a shell lets its background jobs ignore."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection() -> None:
    """No garbage collection while pytest collects tests: a third of the time, for no garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude the tests themselves from later garbage collections."""
    gc.freeze()
    gc.enable()


ON = ("backend", "standin", "where", "place")
"""Parameters that name the backend of a test, which is skipped where that is not installed."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests of a function that have the same reason to be skipped, only the first."""
    absent = {name for name in LIBRARIES if why_unavailable(name)}
    seen: set[Any] = set()
    again = []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for what in ON:
            if isinstance(parameters.get(what), str) and parameters[what] in absent:
                skip = item.nodeid.partition("[")[0], parameters[what]
                again += [item] if skip in seen else []
                seen.add(skip)
                break
    if again:
        left = set(again)
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=again)


@pytest.fixture(autouse=True)
def _same_backend_after_each_test() -> Iterator[None]:
    before = xbp.backend.current._default
    yield
    xbp.backend.current._default = before
