"""The folder into which a run writes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from xbp.errors import DataError


def prepare_folder(folder: Path, names: Iterable[str]) -> None:
    """Make `folder`; refuse it now, not after training, if files `names` cannot be written there.

    Raises
    ------
    DataError
        It is a file, cannot be made or written to, or holds a folder of one of the names.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".xbp."):
            pass
    except FileExistsError:
        msg = f"{str(folder)!r} is a file, where --output needs a folder; choose another"
        raise DataError(msg) from None
    except OSError as error:
        msg = (
            f"{str(folder)!r} is no folder that can be written to ({error.strerror}); "
            "choose another with --output"
        )
        raise DataError(msg) from None
    for path in (folder / name for name in names):
        if path.is_dir():
            msg = f"{str(path)!r} is a folder, where a file is to be written; move it away"
            raise DataError(msg)


def prepare_file(path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises
    ------
    DataError
        It is a folder, or there is no folder for it that can be written to.
    """
    if path.is_dir():
        msg = f"{str(path)!r} is a folder, where a file is to be written; give a file"
        raise DataError(msg)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".xbp."):
            pass
    except OSError as error:
        msg = f"{str(path)!r} cannot be written ({error.strerror}); give a file elsewhere"
        raise DataError(msg) from None
