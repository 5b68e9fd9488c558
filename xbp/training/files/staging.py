"""Folders in which files are written before they take their place, and what a kill leaves of them.

A writer holds a lock on its folder for as long as it lives; the system releases the lock of a
process that was killed. So a folder that can be locked is a leftover, and the next writer beside it
sweeps it. A lock counts on one host alone, whose name is part of the folder's; the folders of other
hosts, and those of file systems without locks, are swept when they are a day old.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

START = ".xbp-"
OLD = 24 * 3600.0
"""Seconds after which a folder that cannot be locked is a leftover."""


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new, empty folder in `parent`, removed in the end; leftovers beside it go too.

    A removal that fails is no failure of the work: the next writer tries again.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    import shutil  # here, as it takes milliseconds of `import xbp`

    folder, lock = _made(parent)
    try:
        sweep(parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path) -> None:
    """Remove what writers that were killed have left in `parent`, as far as that can be done."""
    import shutil

    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(START) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError), _locked(entry.path) as locked:
                    if locked or (locked is None and time.time() - entry.stat().st_mtime > OLD):
                        shutil.rmtree(entry.path, ignore_errors=True)


def _made(parent: Path) -> tuple[Path, int | None]:
    """A folder, and the descriptor whose lock says that it is in use, if there are such locks."""
    import tempfile

    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_prefix()))
        lock = None
        try:
            lock = os.open(folder, os.O_RDONLY)
            if fcntl is None:
                return folder, lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock), folder.stat()):
                return folder, lock
        except FileNotFoundError:
            pass
        except OSError:  # no locks here, or none of folders
            return folder, lock
        if lock is not None:  # another writer has swept the folder before it was locked
            os.close(lock)


@contextmanager
def _locked(folder: str) -> Iterator[bool | None]:
    """Whether the folder is in nobody's use, and locked; None where locks cannot tell."""
    if fcntl is None or not os.path.basename(folder).startswith(_prefix()):  # noqa: PTH119
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked: bool | None = True
        except BlockingIOError:
            locked = False
        except OSError:
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def _prefix() -> str:
    """The beginning of the names of this host's folders."""
    return f"{START}{re.sub(r'[^A-Za-z0-9]+', '_', platform.node())[:64]}-"
