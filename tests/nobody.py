"""Work without root's rights, which no permission restricts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that all may enter.

    Not `tmp_path`: whenever a run of pytest starts, it closes the folder of all runs to others.
    """
    with TemporaryDirectory(prefix="xbp-open-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder
