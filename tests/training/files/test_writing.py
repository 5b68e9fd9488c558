"""How a file is written: what is flushed, closed, reserved and kept, by stand-ins of the system."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xbp.errors import DataError, InputError
from xbp.testing.helpers import replaced
from xbp.training.files import tensors
from xbp.training.files.tensors import TensorFile, part, write_tensors
from xbp.training.files.writing import is_plain, replacing

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
OLD_TEXT, NEW_TEXT = b"old", b"the new content"


def write(path: str | os.PathLike[str], content: bytes = NEW_TEXT) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def descriptors() -> set[str]:
    """The open files of this process."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD_TEXT)
    return path


def test_what_is_plain(file: Path) -> None:
    assert is_plain(file) and is_plain(file.parent / "new")
    assert not is_plain(os.devnull)


@pytest.mark.parametrize("table", ["/dev/fd", "/proc/self/fd"])
def test_an_open_file_keeps_its_earlier_content(table: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        log.write(b"before, ")
        log.flush()
        write(f"{table}/{log.fileno()}")
    assert (tmp_path / "log").read_bytes() == b"before, " + NEW_TEXT


def test_an_open_file_of_another_process_gets_new_content(tmp_path: Path) -> None:
    """The table of a thread stands for it: it leads to the file, and not to the own descriptor."""
    with (tmp_path / "log").open("wb") as log:
        log.write(b"a longer content than the new one")
        log.flush()
        write(f"/proc/self/task/{threading.get_native_id()}/fd/{log.fileno()}")
    assert (tmp_path / "log").read_bytes() == NEW_TEXT


def test_no_terminal_becomes_that_of_the_process() -> None:
    real, seen = os.open, []

    def record(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if str(path) == os.devnull:
            seen.append(flags)
        return real(path, flags, *more, **options)

    with replaced(os, open=record):
        write(os.devnull)
    assert seen and all(flags & os.O_NOCTTY for flags in seen)


def test_earlier_output_comes_first() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    out, err = Stream(), Stream()
    with replaced(sys, stdout=out, stderr=err):
        write(os.devnull)
    assert out.flushed and err.flushed


@pytest.mark.parametrize("linked", [False, True])
def test_all_is_on_the_disk_and_no_file_stays_open(linked: bool, file: Path) -> None:
    if linked:
        (file.parent / "other").hardlink_to(file)
    seen: list[Any] = []

    def record(number: int) -> None:
        status = os.fstat(number)
        folder = stat.S_ISDIR(status.st_mode)
        seen.append("folder" if folder else Path(f"/proc/self/fd/{number}").read_bytes())

    before = descriptors()
    with replaced(os, fsync=record):
        write(file)
    assert descriptors() <= before
    assert seen == [NEW_TEXT, NEW_TEXT if linked else "folder"]
    assert file.read_bytes() == NEW_TEXT


def test_a_protected_file_is_not_replaced(file: Path) -> None:
    real = os.open

    def protected(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if Path(path) == file and flags & os.O_WRONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more, **options)

    with replaced(os, open=protected), pytest.raises(DataError, match="Permission denied"):
        write(file)
    assert file.read_bytes() == OLD_TEXT


class TestAttributes:
    def test_those_that_differ_are_set(self, file: Path) -> None:
        own = {"user.new": b"1", "user.equal": b"2", "user.other": b"3"}
        fresh = {"user.equal": b"2", "user.other": b"0"}
        calls = []

        def of(path: Any) -> dict[str, bytes]:
            return own if path == file else fresh

        with replaced(os, listxattr=lambda path: list(of(path)),
                      getxattr=lambda path, name: of(path)[name],
                      setxattr=lambda path, name, value: calls.append((path.name, name, value)),
                      ):  # fmt: skip
            write(file)
        assert calls == [("file", "user.new", b"1"), ("file", "user.other", b"3")]

    @pytest.mark.parametrize("number", [None, errno.ENOTSUP, errno.EPERM])
    def test_a_file_that_would_lose_some_is_overwritten(
        self, number: int | None, file: Path
    ) -> None:
        """But not where the file system has none."""

        def attributes(path: Any) -> list[str]:
            if number is not None:
                raise OSError(number, os.strerror(number))
            return []

        before = file.stat().st_ino
        with replaced(os, listxattr=attributes):
            write(file)
        assert (file.stat().st_ino == before) == (number == errno.EPERM)
        assert file.read_bytes() == NEW_TEXT


class TestRoom:
    @pytest.mark.parametrize(
        ("content", "room"), [(b"", []), (b"new", []), (NEW_TEXT, [(3, len(NEW_TEXT) - 3)])]
    )
    def test_is_reserved_for_what_is_added(self, content: bytes, room: Any, file: Path) -> None:
        (file.parent / "other").hardlink_to(file)
        calls = []
        with replaced(os, posix_fallocate=lambda _, start, size: calls.append((start, size))):
            write(file, content)
        assert calls == room
        assert file.read_bytes() == content

    def test_that_was_not_enough_is_given_back(self, file: Path) -> None:
        (file.parent / "other").hardlink_to(file)

        def some(descriptor: int, start: int, size: int) -> None:
            os.ftruncate(descriptor, start + 1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with replaced(os, posix_fallocate=some), pytest.raises(DataError, match="untouched"):
            write(file)
        assert file.read_bytes() == OLD_TEXT


class TestTensors:
    def test_numbers_and_dtypes_come_back(self, tmp_path: Path) -> None:
        arrays = {f"a.{t}": np.array([1 / 3, 2, 3]).astype(t) for t in ("float64", "f4", "int32")}
        write_tensors(tmp_path / "a", arrays, {"why": 1})
        found = TensorFile(tmp_path / "a").read()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
        (mine,) = part({"a.x": arrays["a.float64"], "b.x": arrays["a.f4"]}, "a.").items()
        assert mine[0] == "x" and mine[1] is arrays["a.float64"]

    @pytest.mark.parametrize(
        ("old", "new"), [(b'"name"', b'"game"'), (b"[1,3]", b"[3,1]"), (b'"F32"', b'"I32"')]
    )
    def test_a_changed_header_is_found(self, old: bytes, new: bytes, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a", {"name": np.ones((1, 3), np.float32)}, {"why": 1})
        content = (tmp_path / "a").read_bytes()
        assert old in content
        (tmp_path / "a").write_bytes(content.replace(old, new))
        with pytest.raises(DataError, match="does not have its checksum"):
            TensorFile(tmp_path / "a").read()

    @pytest.mark.parametrize(("more", "said"), [(0, "invalid header length"), (1, "too large")])
    def test_the_longest_header_is_that_of_the_format(
        self, more: int, said: str, tmp_path: Path
    ) -> None:
        """Its reader compares the length with its limit before it looks for the header."""
        (tmp_path / "a").write_bytes((tensors.MAX_HEADER + more).to_bytes(8, "little") + b"{}")
        with pytest.raises(DataError, match=rf"no safetensors file \(.*{said}"):
            TensorFile(tmp_path / "a")

    def test_a_document_that_is_too_long(self, tmp_path: Path) -> None:
        with replaced(tensors, MAX_HEADER=1000):
            write_tensors(tmp_path / "a", {}, {"text": "x" * 800})
            with pytest.raises(InputError, match="too long for the format's 1,000 bytes"):
                write_tensors(tmp_path / "b", {}, {"text": "x" * 1000})

    @pytest.mark.parametrize(
        ("error", "said"), [(MemoryError(), "fit into memory"), (ValueError("odd"), r"\(odd\)")]
    )
    def test_what_cannot_be_read(self, error: Exception, said: str, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a", {"w": np.ones(2)}, {})
        file = TensorFile(tmp_path / "a")

        class Broken:
            def get_tensor(self, name: str) -> Any:
                raise error

        file._file = Broken()
        with pytest.raises(DataError, match=said):
            file.read()
