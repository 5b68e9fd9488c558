"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xbp.errors import DataError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path to which a file cannot be written, before the work whose result it is to hold.

    Raises
    ------
    DataError
        It is a folder, or there is no folder for it that can be written to.
    """
    import tempfile  # as below

    path = Path(path)
    if path.is_dir():
        msg = f"{str(path)!r} is a folder, where a file is to be written; give another path"
        raise DataError(msg)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        msg = f"{str(path)!r} cannot be written ({error.strerror}); give a file elsewhere"
        raise DataError(msg) from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path`: it appears whole or not at all.

    What was written is on the disk before the old file goes, whose permissions the new one keeps;
    then the folder is, so that a power failure finds the one or the other.

    Raises
    ------
    DataError
        It cannot be written: its folder does not exist, the disk is full, …
    """
    import tempfile  # here, as it takes milliseconds of `import xbp`

    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
    except OSError as error:
        msg = f"cannot write {str(path)!r} ({error.strerror}); the previous file is untouched"
        raise DataError(msg) from None
    with suppress(OSError):  # not every system can do this to a folder
        folder_itself = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder_itself)
        finally:
            os.close(folder_itself)
