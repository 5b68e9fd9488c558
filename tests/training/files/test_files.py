"""Written files: links and permissions are kept, and messages about them are true."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from nightly import NIGHTLY
from nobody import as_nobody

import xbp
from xbp.errors import DataError
from xbp.staging import OLD, START, staging, sweep
from xbp.testing.helpers import replaced
from xbp.training import CSVLogger, History, load_weights, save_weights
from xbp.training.files import check_writable, replacing, write_text

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX")
pytestmark = posix

OLD_TEXT, NEW_TEXT = b"old", b"the new content"


def write(path: str | os.PathLike[str], content: bytes = NEW_TEXT) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(OLD_TEXT)
    return path


@pytest.fixture
def open_file(open_folder: Path) -> Path:
    path = open_folder / "file"
    path.write_bytes(OLD_TEXT)
    return path


def test_there_is_one_door() -> None:
    """Every file that is opened for writing has its path from `replacing`."""
    package, writing = (
        Path(xbp.__file__).parent,
        r"\.(write_text|write_bytes|savefig)\(|open\(\"[wax]",
    )
    apart = {
        "trackers.py": "ab",  # a line at a time
        "figures.py": "svg",  # a text in memory
        "ranks.py": "os.devnull",
        "watch.py": "bytes(FORM.size)",  # a rank's place, in a temporary folder of this run
        "fetching.py": "part.open",  # a temporary name and a rename, in a room below `replacing`
    }
    for path in package.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for i, line in enumerate(lines):
            if re.search(writing, line) and "``" not in line:
                beside = "replacing(" in "".join(lines[max(0, i - 3) : i + 1])
                assert beside or apart.get(path.name, "?") in line, f"{path}: {line}"


# --- links ---------------------------------------------------------------------------------------


class TestLinks:
    def test_a_chain_of_links_is_followed_from_folder_to_folder(self, tmp_path: Path) -> None:
        disk, inner = tmp_path / "disk", tmp_path / "disk" / "inner"
        inner.mkdir(parents=True)
        (inner / "target").write_bytes(OLD_TEXT)
        (disk / "relative").symlink_to("inner/../inner/target")
        (tmp_path / "folder").symlink_to("disk")
        (tmp_path / "name").symlink_to("folder/relative")
        write(tmp_path / "name")
        assert (tmp_path / "name").is_symlink() and (disk / "relative").is_symlink()
        assert (inner / "target").read_bytes() == NEW_TEXT
        assert names(tmp_path) == {"disk", "folder", "name"} and names(inner) == {"target"}

    def test_a_link_to_nothing_yet(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "name").symlink_to("disk/target")
        write(tmp_path / "name")
        assert (tmp_path / "name").is_symlink()
        assert (tmp_path / "disk" / "target").read_bytes() == NEW_TEXT

    @pytest.mark.parametrize("target", ["name", "nowhere/target"])
    def test_a_link_that_leads_nowhere(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "name").symlink_to(target)
        with pytest.raises(DataError, match="cannot write") as error:
            write(tmp_path / "name")
        assert "untouched" not in str(error.value)
        assert (tmp_path / "name").is_symlink()

    def test_both_names_of_a_file_have_the_new_content(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "other").hardlink_to(file)
        for content in (b"", NEW_TEXT, b"x"):  # shorter and longer than before
            write(file, content)
            assert (tmp_path / "other").read_bytes() == content
            assert file.samefile(tmp_path / "other")
        assert names(tmp_path) == {"file", "other"}

    def test_weights_through_a_hard_link(self, tmp_path: Path) -> None:
        state = xbp.models.MLP(2, 2, rng=0).state_dict()
        save_weights(state, tmp_path / "a.safetensors")
        (tmp_path / "b.safetensors").hardlink_to(tmp_path / "a.safetensors")
        save_weights({"w": np.ones(3)}, tmp_path / "b.safetensors")
        assert list(load_weights(tmp_path / "a.safetensors")) == ["w"]


# --- what is no plain file -----------------------------------------------------------------------


NAMES = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"]


class TestSpecialFiles:
    def test_a_fifo_that_somebody_reads(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        content = bytes(range(256)) * 4096  # more than a pipe's buffer
        command = ["dd", f"if={tmp_path / 'pipe'}", f"of={tmp_path / 'copy'}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as reader:
            deadline = time.monotonic() + 60
            while True:  # until somebody reads
                try:
                    write(tmp_path / "pipe", content)
                    break
                except DataError:
                    assert time.monotonic() < deadline and reader.poll() is None
                    time.sleep(0.01)
            assert reader.wait() == 0
        assert (tmp_path / "copy").read_bytes() == content
        assert (tmp_path / "pipe").is_fifo()

    def test_a_fifo_that_nobody_reads(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="nobody reads from it"):
            write(tmp_path / "pipe")
        assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == {"pipe"}

    def test_a_device(self) -> None:
        write(os.devnull)
        assert Path(os.devnull).is_char_device()
        if Path("/dev/full").exists():
            with pytest.raises(DataError, match="'/dev/full' \\(No space left"):
                write("/dev/full")

    @pytest.mark.parametrize(
        ("kind", "make"),
        [
            ("a folder", Path.mkdir),
            ("a socket", lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)),
            ("a block device", lambda path: os.mknod(path, stat.S_IFBLK, os.makedev(7, 250))),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("door", [write, check_writable])
    def test_what_is_refused(
        self, tmp_path: Path, kind: str, make: Callable[[Path], None], door: Callable[[Path], None]
    ) -> None:
        try:
            make(tmp_path / "it")
        except PermissionError:
            pytest.skip("only root can make one")
        before = (tmp_path / "it").stat()
        with pytest.raises(DataError, match=f"it' is {kind}, where a file is to be written"):
            door(tmp_path / "it")
        assert (tmp_path / "it").stat().st_ino == before.st_ino

    SAY = (
        "import sys, xbp; from xbp.training.files import replacing\n"
        "print('before')\n"
        "with replacing({!r}) as path: path.write_text('content\\n')\n"
        "print('after')\n"
    )

    @pytest.mark.parametrize("name", NAMES if NIGHTLY else NAMES[1::2])
    def test_the_standard_output(self, tmp_path: Path, name: str) -> None:
        """A pipe or a file keeps the output of others."""
        if name == "link":
            (tmp_path / "link").symlink_to("/dev/stdout")
            name = str(tmp_path / "link")
        command = [sys.executable, "-c", self.SAY.format(name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "before\ncontent\nafter\n"
        with (tmp_path / "out").open("w") as file:
            subprocess.run(command, stdout=file, check=True)
        assert (tmp_path / "out").read_text() == "before\ncontent\nafter\n"

    def test_a_log_that_would_wait(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        trainer = xbp.Trainer(model := xbp.models.MLP(2, 2, rng=0), xbp.nn.MSELoss(),
                              xbp.optim.SGD(model.parameters(), 0.1))  # fmt: skip
        with pytest.raises(DataError, match="is a FIFO, where a CSV file was expected"):
            trainer.fit(
                x := np.ones((2, 2), "float32"), x, callbacks=[CSVLogger(tmp_path / "pipe")]
            )


# --- permissions ---------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


class TestPermissions:
    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_a_new_file_is_as_the_umask_wants_it(
        self, tmp_path: Path, umask: Callable[[int], int], mask: int
    ) -> None:
        umask(mask)
        write(tmp_path / "new")
        save_weights({"w": np.ones(2)}, tmp_path / "weights")
        for name in ("new", "weights"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755])
    def test_the_mode_is_kept(self, file: Path, mode: int) -> None:
        file.chmod(mode)
        write(file)
        assert stat.S_IMODE(file.stat().st_mode) == mode and file.read_bytes() == NEW_TEXT

    def test_owner_and_group_are_kept(self, file: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(file, 65534, 65533)
        write(file)
        assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65533)

    def test_and_where_that_cannot_be_the_file_is_overwritten(self, open_file: Path) -> None:
        """Another user's file, writable for all, stays that user's."""
        open_file.chmod(0o666)
        open_file.parent.chmod(0o777)
        before = open_file.stat()
        assert as_nobody(lambda: write(open_file)) == ""
        assert open_file.read_bytes() == NEW_TEXT
        assert (open_file.stat().st_uid, open_file.stat().st_ino) == (before.st_uid, before.st_ino)

    def test_a_file_in_a_folder_that_may_not_be_changed(self, open_file: Path) -> None:
        open_file.chmod(0o666)
        assert as_nobody(lambda: write(open_file)) == ""
        assert as_nobody(lambda: check_writable(open_file)) == ""
        assert open_file.read_bytes() == NEW_TEXT
        refused = as_nobody(lambda: write(open_file.parent / "new"))
        assert "DataError: cannot write" in refused and "Permission denied" in refused
        assert "untouched" not in refused and names(open_file.parent) == {"file"}

    def test_a_file_that_may_not_be_written_to(self, open_file: Path) -> None:
        """A read-only file is protected, even if its folder allows a rename over it."""
        open_file.chmod(0o444)
        os.chown(open_file, *[65534 if os.geteuid() == 0 else -1] * 2)  # it is their own
        open_file.parent.chmod(0o777)
        refused = as_nobody(lambda: write(open_file))
        assert refused.endswith("(Permission denied); the previous file is untouched")
        assert open_file.read_bytes() == OLD_TEXT

    @pytest.mark.skipif(not hasattr(os, "setxattr"), reason="of Linux")
    def test_extended_attributes_are_kept(self, file: Path) -> None:
        try:
            os.setxattr(file, "user.origin", b"run 7")
        except OSError:
            pytest.skip("this file system has none")
        write(file)
        assert os.getxattr(file, "user.origin") == b"run 7"

    @pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM])
    def test_a_file_that_cannot_be_renamed_is_overwritten(self, file: Path, number: int) -> None:
        """A mounted file, as in containers, or another user's file in a folder like /tmp."""

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with replaced(Path, replace=refuse):
            write(file)
        assert file.read_bytes() == NEW_TEXT and names(file.parent) == {"file"}


# --- what is said --------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestSentences:
    @pytest.mark.parametrize("function", ["rmdir", "scandir"])
    def test_a_clean_up_that_fails_is_not_the_work(self, file: Path, function: str) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

        with replaced(os, **{function: fail}):
            write(file)
        assert file.read_bytes() == NEW_TEXT

    def test_untouched_is_said_of_what_was_there_and_is(self, file: Path) -> None:
        with replaced(os, fsync=full):
            with pytest.raises(DataError, match=r"No space left.*the previous file is untouched"):
                write(file)
            assert file.read_bytes() == OLD_TEXT
            with pytest.raises(DataError, match=r"No space left.*; check its folder"):
                write(file.parent / "new")
        assert names(file.parent) == {"file"}

    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="of Linux")
    def test_room_is_found_before_a_file_is_overwritten(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "other").hardlink_to(file)
        untouched = pytest.raises(DataError, match="the previous file is untouched")
        with replaced(os, posix_fallocate=full), untouched:
            write(file)
        assert file.read_bytes() == OLD_TEXT

    def test_a_copy_that_fails_half_way_does_not_claim_so(self, file: Path, tmp_path: Path) -> None:
        import shutil

        (tmp_path / "other").hardlink_to(file)
        incomplete = pytest.raises(DataError, match="it is incomplete now: write it again")
        with replaced(shutil, copyfileobj=full), incomplete:
            write(file)

    @pytest.mark.parametrize("door", [write, check_writable])
    @pytest.mark.parametrize(
        ("path", "why"),
        [("no/file", "its folder does not exist"), ("file/x", "Not a directory"), ("a\0b", "null")],
    )
    def test_a_path_that_leads_nowhere(
        self, file: Path, door: Callable[[str], None], path: str, why: str
    ) -> None:
        with pytest.raises(DataError, match=rf"cannot (be )?writ.*{why}"):
            door(f"{file.parent}/{path}")

    def test_a_name_as_long_as_a_name_may_be(self, tmp_path: Path) -> None:
        write(tmp_path / ("x" * 255))
        with pytest.raises(DataError, match="File name too long"):
            write(tmp_path / ("x" * 256))

    def test_what_utf_8_lacks_is_escaped(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"o_\xff")
        write_text(tmp_path / name, f"of {name} ü\n")
        assert (tmp_path / name).read_bytes() == b"of o_\\udcff \xc3\xbc\n"


# --- what a kill leaves --------------------------------------------------------------------------


def killed_in(path: Path) -> None:
    """A process that is killed during a write of `path`."""
    if (child := os.fork()) == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write(path)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


class TestLeftovers:
    def test_the_next_write_sweeps_them(self, tmp_path: Path) -> None:
        for _ in range(3):
            killed_in(tmp_path / "model")
            assert len(names(tmp_path)) == 1  # the one of the previous kill is gone
        History().to_csv(tmp_path / "history.csv")
        assert names(tmp_path) == {"history.csv"}

    def test_not_those_of_a_writer_that_lives(self, tmp_path: Path) -> None:
        with replacing(tmp_path / "model") as temporary:  # in this process
            temporary.write_bytes(NEW_TEXT)
            write(tmp_path / "other")
            script = (  # and for another one
                "import sys; from pathlib import Path\n"
                "from xbp.staging import sweep\n"
                "sweep(Path(sys.argv[1]))"
            )
            subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
            assert temporary.exists()
        assert names(tmp_path) == {"model", "other"}

    def test_those_of_another_host_when_they_are_old(self, tmp_path: Path) -> None:
        leftover, others = tmp_path / f"{START}elsewhere-abc", tmp_path / ".xbpfolder"
        leftover.mkdir(), others.mkdir()
        sweep(tmp_path)
        assert leftover.exists()
        for path in (leftover, others):
            os.utime(path, (0, time.time() - OLD - 1))
        sweep(tmp_path)
        assert names(tmp_path) == {".xbpfolder"}

    def test_where_there_are_no_locks(self, tmp_path: Path) -> None:
        import fcntl

        killed_in(tmp_path / "model")

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        with replaced(fcntl, flock=no_locks):
            with staging(tmp_path) as folder:
                assert folder.exists()
            assert len(names(tmp_path)) == 1  # possibly in use
        sweep(tmp_path)
        assert names(tmp_path) == set()

    def test_a_folder_swept_before_it_was_locked_is_made_again(self, tmp_path: Path) -> None:
        import fcntl

        real, swept = fcntl.flock, []

        def after_the_sweep(descriptor: int, flags: int) -> None:
            if not swept:
                (folder,) = tmp_path.iterdir()
                folder.rmdir()
                swept.append(folder)
            real(descriptor, flags)

        with replaced(fcntl, flock=after_the_sweep), staging(tmp_path) as folder:
            assert folder.exists() and folder not in swept

    def test_a_link_of_such_a_name_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_bytes(OLD_TEXT)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / f"{START}elsewhere-abc").symlink_to(tmp_path / "kept")
        sweep(tmp_path / "folder")
        assert (tmp_path / "kept" / "file").exists()
