"""Staging folders, in which files are written before a rename, and their removal after a kill.

A writer holds a lock on its folder as long as it lives; the system releases the lock of a process
that was killed. So a folder that can be locked is a leftover, and the next writer in the same place
removes it. A lock is valid on one host only, whose name is part of the folder's name; folders of
other hosts, and on file systems without locks, are removed when they are a day old.
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
    """A new, empty folder in `parent`, removed at the end together with leftovers beside it.

    A failure to remove is ignored: the next writer tries again.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    import shutil  # here, as it would take milliseconds of `import xbp`

    folder, lock = _made(parent)
    try:
        sweep(parent)
        yield folder
    finally:
        with suppress(OSError):  # rmtree lets errors of `close` through
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            with suppress(OSError):
                os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the folders that killed writers left in `parent`, as far as possible."""
    import shutil

    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(START) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError), _locked(entry.path) as locked:
                    if locked or (locked is None and time.time() - entry.stat().st_mtime > OLD):
                        shutil.rmtree(entry.path, ignore_errors=True)


def _made(parent: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor that holds its lock, if the system has such locks."""
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
        except OSError:  # a file system without locks, or without locks of folders
            return folder, lock
        if lock is not None:  # another writer removed the folder before it was locked
            os.close(lock)


@contextmanager
def _locked(folder: str) -> Iterator[bool | None]:
    """Whether the folder is unused, and now locked; None if locks cannot tell."""
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
    """The prefix of the names of this host's folders."""
    return f"{START}{re.sub(r'[^A-Za-z0-9]+', '_', platform.node())[:64]}-"
