"""Files that appear whole or not at all.

New content is written beside the file, flushed to the disk, and replaces the old file by a rename.

- A symbolic link is followed.
- Anything but a plain file (a terminal, ``/dev/null``, a FIFO, ``/dev/stdout``) is written to.
- If a renamed file would lose properties of the old one (a second hard link, an owner that cannot
  be kept, a folder that may not be changed, a mount point), the whole content is copied over the
  old one, after space has been reserved for it. Such a copy is not atomic.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from xbp.errors import DataError
from xbp.paths import KINDS, StrPath, path_of
from xbp.staging import staging

TABLES = re.compile(r"/dev/fd|/proc/\d+(/task/\d+)?/fd")
"""Folders that list the open files of a process."""
MOST_LINKS = 40
"""The number of links that the kernel follows."""
NOT_TO_BE_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)
NO_NEIGHBOURS = (errno.EACCES, errno.EPERM, errno.EROFS)
REFUSED = ("a folder", "a block device", "a socket")


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A temporary path to write to; its content then replaces that of `path`, whole or not at all.

    The new content is flushed to the disk before the rename, and the folder after it, so that a
    power failure leaves the old or the new file. Mode, owner, group and extended attributes of the
    old file are kept; a new file has the process's defaults (its umask). For links and special
    files see the module.

    Raises
    ------
    DataError
        The file cannot be written: its folder does not exist, the disk is full, it is a folder, a
        socket or a block device, a FIFO without a reader, …
    """
    target = None
    try:
        target = Target(path)
        with target.staging() as folder:
            temporary = folder / target.path.name
            yield temporary
            target.take(temporary)
    except OSError as error:
        reason = error.strerror or error
        after = target.state if target else "check its folder and permissions"
        msg = f"cannot write {str(path)!r} ({reason}); {after}"
        raise DataError(msg) from None


def write_text(path: StrPath, text: str) -> None:
    """Write a text as UTF-8, by `replacing`; surrogates, as in some file names, are escaped.

    Raises
    ------
    DataError
        The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def remove(path: Path) -> None:
    """Remove a file, if there is one.

    Raises
    ------
    DataError
        It is there, and cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        msg = f"{str(path)!r} cannot be removed ({error.strerror or error}); remove it by hand"
        raise DataError(msg) from None


def check_writable(path: StrPath) -> None:
    """Refuse now, as far as possible, what `replacing` would refuse later.

    Raises
    ------
    DataError
        See `replacing`.
    """
    try:
        with Target(path).staging():
            pass
    except OSError as error:
        msg = f"{str(path)!r} cannot be written ({error.strerror or error}); give a file elsewhere"
        raise DataError(msg) from None


def is_plain(path: StrPath) -> bool:
    """Whether `path` is a plain file or does not exist, and is no open file like ``/dev/stdout``.

    Raises
    ------
    DataError
        See `replacing`.
    """
    try:
        return Target(path).plain
    except OSError as error:
        msg = f"{str(path)!r} cannot be written ({error.strerror or error}); give a file elsewhere"
        raise DataError(msg) from None


class Target:
    """The target of a file name.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    path : Path
        Without symbolic links.
    state : str
        The state of the file, or advice, for messages after a failure to write it.

    Raises
    ------
    DataError
        It is of a kind that cannot be written to.
    OSError
        It cannot be accessed.
    """

    def __init__(self, path: StrPath) -> None:
        slash = isinstance(path, str) and path.endswith("/")
        path = path_of(path, "a file")
        self.state = "check its folder, permissions and the free space"
        self.status = _status(path)
        kind = KINDS.get(stat.S_IFMT(self.status.st_mode)) if self.status else None
        if kind is None and slash:
            msg = f"{str(path)!r} ends in a slash, as a folder does; give the name of a file"
            raise DataError(msg)
        if kind in REFUSED:
            msg = f"{str(path)!r} is {kind}, where a file is to be written; give another path"
            raise DataError(msg)
        self.path, in_table = _resolved(path)
        self.plain = not in_table and (self.status is None or stat.S_ISREG(self.status.st_mode))
        self.copied = bool(self.plain and self.status and self.status.st_nlink > 1)
        if self.plain and self.status:
            self.state = "the previous file is untouched"

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """The folder for the new content: beside the file if a rename is possible."""
        with ExitStack() as stack:
            yield self._staging(stack)

    def _staging(self, stack: ExitStack) -> Path:
        import tempfile  # here, as it takes milliseconds of `import xbp`

        if self.plain:
            if self.status:  # a protected file is not replaced
                os.close(os.open(self.path, os.O_WRONLY))
            try:
                return stack.enter_context(staging(self.path.parent))
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(error.errno, "its folder does not exist") from None
                if self.status is None or error.errno not in NO_NEIGHBOURS:
                    raise
                self.copied = True
        return stack.enter_context(staging(Path(tempfile.gettempdir())))

    def take(self, temporary: Path) -> None:
        """Replace the content of the file by that of `temporary`."""
        if self.plain:
            with temporary.open("rb") as content:
                os.fsync(content.fileno())
            if not self.copied and self._rename(temporary):
                return
        with temporary.open("rb") as content:
            self._overwrite(content) if self.plain else self._send(content)

    def _rename(self, temporary: Path) -> bool:
        """Replace the file by a rename; False if the renamed file would lose properties."""
        if self.status and not _made_alike(temporary, self.path, self.status):
            return False
        try:
            temporary.replace(self.path)
        except OSError as error:
            if self.status is None or error.errno not in NOT_TO_BE_RENAMED:
                raise
            return False
        with suppress(OSError):  # not every system can flush a folder
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return True

    def _overwrite(self, content: BinaryIO) -> None:
        """Copy `content` over the file, after reserving space for it."""
        import shutil

        with os.fdopen(os.open(self.path, os.O_WRONLY), "wb") as file:
            _make_room(file.fileno(), os.fstat(content.fileno()).st_size)
            self.state = "it is incomplete now: write it again"
            shutil.copyfileobj(content, file)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def _send(self, content: BinaryIO) -> None:
        """Write `content` to a device or a FIFO."""
        import shutil

        for stream in (sys.stdout, sys.stderr):  # earlier output comes first
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        with os.fdopen(self._descriptor(), "wb") as file:
            shutil.copyfileobj(content, file)

    def _descriptor(self) -> int:
        if self.path.parent == Path("/dev/fd") or self.path.parent == _own_table():
            return os.dup(int(self.path.name))  # appends to earlier output
        try:
            # O_NONBLOCK: a FIFO without a reader is an error, not a wait.
            flags = os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY | os.O_NONBLOCK
            descriptor = os.open(self.path, flags)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "nobody reads from it") from None
            raise
        os.set_blocking(descriptor, True)
        return descriptor


def _status(path: StrPath) -> os.stat_result | None:
    """The status of the target of links; None if there is none."""
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, str(error)) from None


def _own_table() -> Path:
    return Path(f"/proc/{os.getpid()}/fd")


def _resolved(path: StrPath) -> tuple[Path, bool]:
    """`path` without symbolic links, and whether it is an entry in a table of open files.

    Such an entry looks like a link, but leads to the open file itself, whatever its name.
    """
    path = Path(path)
    for _ in range(MOST_LINKS + 1):
        path = Path(os.path.realpath(path.parent), path.name)
        if TABLES.fullmatch(str(path.parent)):
            return path, True
        if not path.is_symlink():
            return path, False
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _made_alike(temporary: Path, path: Path, status: os.stat_result) -> bool:
    """Copy owner, group, mode and extended attributes to `temporary`; False if that fails."""
    try:
        new = temporary.stat()
        if (new.st_uid, new.st_gid) != (status.st_uid, status.st_gid):
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(stat.S_IMODE(status.st_mode))
        for name in os.listxattr(path) if hasattr(os, "listxattr") else ():
            value = os.getxattr(path, name)
            if name not in os.listxattr(temporary) or os.getxattr(temporary, name) != value:
                os.setxattr(temporary, name, value)
    except OSError as error:
        return error.errno == errno.ENOTSUP  # a file system without extended attributes
    return True


def _make_room(descriptor: int, size: int) -> None:
    """Reserve the space that a file needs to grow to `size` bytes, if the system can do so."""
    old = os.fstat(descriptor).st_size
    if size <= old or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, old, size - old)
    except OSError as error:
        os.ftruncate(descriptor, old)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
