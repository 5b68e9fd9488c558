"""Work without root's rights, which no permission restricts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest


def as_nobody(work: Callable[[], None]) -> str:
    """Run `work` in a process without root's rights; returns its exception."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    read, write_end = os.pipe()
    if (child := os.fork()) == 0:
        said = ""
        try:
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write_end, said.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def open_to_all(folder: Path) -> None:
    """Make `folder`, which only pytest's user can enter, accessible to all."""
    for parent in folder.parents:
        if parent.name.startswith(("pytest-", "popen-")):  # the latter by pytest-xdist
            parent.chmod(0o755)
    if not stat.S_IMODE(folder.stat().st_mode) & 0o002:
        folder.chmod(0o755)
