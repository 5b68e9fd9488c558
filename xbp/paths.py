"""Paths of the user, checked before anything is read from them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from xbp.arguments import described
from xbp.errors import DataError, InputError

StrPath = str | os.PathLike[str]

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def path_of(path: Any, what: str) -> Path:
    """`path`, given for `what` (with its article: "a CSV file"), as a Path.

    Raises
    ------
    InputError
        It is neither a string nor a path-like of a string.
    """
    if isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str):
        return Path(path)
    msg = f"{what} has a path, got {described(path)}"
    raise InputError(msg)


def kind_of(path: StrPath) -> str:
    """The kind of file, one of `KINDS`, with links followed; empty if nothing is there.

    Raises
    ------
    DataError
        It cannot be determined: a folder may not be entered, links form a cycle, …
    """
    try:
        return KINDS.get(stat.S_IFMT(path_of(path, "a file").stat().st_mode), "no plain file")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(path, error) from None


def open_file(path: StrPath, what: str) -> BinaryIO:
    """Open a plain file for reading; FIFOs and devices, which might block for ever, are refused.

    Parameters
    ----------
    path : path-like
    what : str
        The expected kind, with an article: ``"an IDX file"``.

    Raises
    ------
    DataError
        The file is missing, no plain file, or unreadable.
    """
    require_plain(path, what)
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        msg = f"{str(path)!r} does not exist; give the path of {what}"
        raise DataError(msg) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def require_plain(path: StrPath, what: str) -> None:
    """Refuse a path that leads to anything but a plain file.

    Raises
    ------
    DataError
        See `open_file`.
    """
    kind = kind_of(path)
    if kind not in ("", "a file"):
        msg = f"{str(path)!r} is {kind}, where {what} was expected; give the path of a plain file"
        raise DataError(msg)


def require_folder(path: StrPath, what: str) -> None:
    """Refuse a path that does not lead to a folder.

    Parameters
    ----------
    path : path-like
    what : str
        Advice on what to give: ``"one that xbp train has written"``.

    Raises
    ------
    DataError
    """
    kind = kind_of(path)
    if kind != "a folder":
        found = f" but {kind}" if kind else ""
        msg = f"{str(path)!r} is no folder{found}; give {what}"
        raise DataError(msg)


def same_place(one: StrPath, other: StrPath) -> bool:
    """Whether two paths, possibly spelled differently, lead to the same file or folder."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _unreadable(path: StrPath, error: OSError | ValueError) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{str(path)!r} cannot be read ({reason}); check its path and permissions")
