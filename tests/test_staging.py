"""Staging folders: locked while they are in use, and no lock stays open."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from xbp.staging import OLD, staging, sweep
from xbp.testing.helpers import replaced

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")


def descriptors() -> set[str]:
    """The open files of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_folder_in_use_stays_however_old_it_is(tmp_path: Path) -> None:
    with staging(tmp_path) as folder:
        os.utime(folder, (0, time.time() - OLD - 1))
        sweep(tmp_path)
        assert folder.exists()
    assert not list(tmp_path.iterdir())


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xbp.staging.fcntl", None)
    before = descriptors()
    with staging(tmp_path) as folder:
        (folder / "file").touch()
        sweep(tmp_path)
        assert (folder / "file").exists()
    assert not list(tmp_path.iterdir())
    assert descriptors() <= before


def test_the_lock_of_a_folder_that_is_gone_is_closed(tmp_path: Path) -> None:
    import fcntl

    real, gone = fcntl.flock, []

    def after_a_sweep(descriptor: int, flags: int) -> None:
        if not gone:
            (folder,) = tmp_path.iterdir()
            folder.rmdir()
            gone.append(folder)
        real(descriptor, flags)

    before = descriptors()
    with replaced(fcntl, flock=after_a_sweep), staging(tmp_path) as folder:
        assert folder.exists() and folder not in gone
    assert descriptors() <= before
