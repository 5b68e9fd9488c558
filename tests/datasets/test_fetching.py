"""Downloads from a local server: checked, unpacked member by member, only on request."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from xbp.cli import main
from xbp.datasets import (
    cifar,
    fetch,
    fetching,
    known,
    load_cifar10,
    load_emnist,
    load_fashion_mnist,
    load_kmnist,
)
from xbp.errors import BackendError, DataError, InputError
from xbp.staging import staging

pooch = pytest.importorskip("pooch", reason="pooch is not installed")


class Server:
    """A server of files by their paths, with a record of requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = 0  # bytes announced but not sent
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - outer.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def idx(*shape: int) -> bytes:
    items = (np.arange(np.prod(shape)) % 251).astype(np.uint8)
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + items.tobytes()


def tar(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def offer(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, **files: bytes) -> None:
    """Make these files of the server the downloads of a set."""
    old, new = known.SETS[name], []
    for download in old.downloads:
        content = files[download.name]
        server.files[f"/{download.name}"] = content
        sha256 = hashlib.sha256(content).hexdigest()
        new.append(
            download._replace(url=server.url + download.name, size=len(content), sha256=sha256)
        )
    monkeypatch.setitem(known.SETS, name, old._replace(downloads=tuple(new)))


RECORD = bytes([7]) + bytes(3072)
BATCHES = {f"cifar-10-batches-bin/{name}": RECORD for name in known.CIFAR10.members}


@pytest.fixture
def one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "RECORDS", {"data_batch": 1, "test_batch": 1})


def offer_cifar10(server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    offer(server, monkeypatch, "cifar10", **{"cifar-10-binary.tar.gz": content})


def test_nothing_is_fetched_unasked(server, monkeypatch, one_record, tmp_path) -> None:
    offer_cifar10(server, monkeypatch, tar(BATCHES))
    with pytest.raises(DataError, match="lacks data_batch_1"):
        load_cifar10(tmp_path)
    assert server.asked == [] and list(tmp_path.iterdir()) == []


def test_a_tar_is_fetched_once_and_unpacked(server, monkeypatch, one_record, tmp_path) -> None:
    offer_cifar10(server, monkeypatch, tar(BATCHES | {"cifar-10-batches-bin/readme.html": b"x"}))
    folder = tmp_path / "new" / "cifar10"
    (x, y), (x_test, _) = load_cifar10(folder, download=True)
    assert x.shape == (5, 3, 32, 32) and y.tolist() == [7] * 5 and len(x_test) == 1
    assert {path.name for path in folder.iterdir()} == set(known.CIFAR10.members)
    load_cifar10(folder, download=True)
    assert server.asked == ["/cifar-10-binary.tar.gz"]
    (folder / "data_batch_2.bin").unlink()
    load_cifar10(folder, download=True)
    assert len(server.asked) == 2


def test_only_plain_members_with_expected_names_are_written(
    server, monkeypatch, one_record, tmp_path
) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name in ("../outside.bin", "/tmp/outside.bin", "data_batch_1.bin"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in BATCHES.items():
            if name.endswith("_1.bin"):
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    offer_cifar10(server, monkeypatch, target.getvalue())
    folder = tmp_path / "in" / "side"
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/data_batch_1\.bin"):
        fetch("cifar10", folder)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.bin")}
    assert written == {f"in/side/{n}" for n in known.CIFAR10.members if n != "data_batch_1.bin"}


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("404", "could not be fetched"),
        ("closed", "could not be fetched"),
        ("cut", "could not be fetched|is not the expected file"),
        ("other", "is not the expected file"),
        ("no tar", "is no archive that can be unpacked"),
        ("cut tar", "is no archive that can be unpacked"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(
    server, monkeypatch, one_record, tmp_path, harm: str, said: str
) -> None:
    content = tar(BATCHES)
    content = {"no tar": b"<html>" * 99, "cut tar": content[:-60]}.get(harm, content)
    offer_cifar10(server, monkeypatch, content)
    if harm == "404":
        server.files.clear()
    elif harm == "closed":
        server.http.shutdown()
        server.http.server_close()
    elif harm == "cut":
        server.cut = 100
    elif harm == "other":
        server.files["/cifar-10-binary.tar.gz"] += b"!"
    with pytest.raises(DataError, match=said) as caught:
        load_cifar10(tmp_path, download=True)
    assert "\n" not in str(caught.value) and server.url in str(caught.value)
    assert not any(path.name.endswith(".part") for path in tmp_path.iterdir())
    assert not (tmp_path / "test_batch.bin").exists()


def test_a_file_that_grows_without_end_is_stopped(
    server, monkeypatch, one_record, tmp_path
) -> None:
    offer_cifar10(server, monkeypatch, tar(BATCHES))
    monkeypatch.setattr(fetching, "_LARGEST", 100)
    with pytest.raises(DataError, match="is larger than any file of this set"):
        load_cifar10(tmp_path, download=True)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_folder_that_cannot_be_made_is_one_sentence(server, monkeypatch, tmp_path) -> None:
    offer_cifar10(server, monkeypatch, tar(BATCHES))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written to"):
        fetch("cifar10", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("name", "load"), [("fashion_mnist", load_fashion_mnist), ("kmnist", load_kmnist)]
)
def test_idx_files_stay_compressed(server, monkeypatch, tmp_path, name, load) -> None:
    shapes = {"train-images-idx3": (3, 4, 5), "train-labels-idx1": (3,),
              "t10k-images-idx3": (2, 4, 5), "t10k-labels-idx1": (2,)}  # fmt: skip
    files = {f"{n}-ubyte.gz": gzip.compress(idx(*shape)) for n, shape in shapes.items()}
    offer(server, monkeypatch, name, **files)
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte\.gz of"):
        load(tmp_path)
    (x, y), (x_test, y_test) = load(tmp_path, download=True)
    assert x.shape == (3, 4, 5) and x_test.shape == (2, 4, 5)
    assert y.tolist() == [0, 1, 2] and y_test.tolist() == [0, 1]
    assert {path.name for path in tmp_path.iterdir()} == set(files) and len(server.asked) == 4
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(3))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    load(tmp_path, download=True)
    assert len(server.asked) == 4


@pytest.mark.parametrize("split", known.EMNIST_SPLITS)
def test_emnist_is_upright(server, monkeypatch, tmp_path, split: str) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("gzip/", b"")
        for name in known.EMNIST.members:
            count = 3 if "train" in name else 2
            shape = (count, 4, 5) if "images" in name else (count,)
            archive.writestr(f"gzip/{name}", gzip.compress(idx(*shape)))
    offer(server, monkeypatch, "emnist", **{"gzip.zip": target.getvalue()})
    (x, y), (x_test, y_test) = load_emnist(tmp_path, split=split, download=True)
    stored = (np.arange(60) % 251).reshape(3, 4, 5)
    assert x.shape == (3, 5, 4) and x_test.shape == (2, 5, 4) and x.flags.c_contiguous
    assert all(x[n, i, j] == stored[n, j, i] for n, i, j in np.ndindex(3, 5, 4))
    assert y.tolist() == [0, 1, 2] and y_test.tolist() == [0, 1]
    assert {path.name for path in tmp_path.iterdir()} == set(known.EMNIST.members)
    (tmp_path / "emnist-digits-test-labels-idx1-ubyte.gz").unlink()
    asked = len(server.asked)
    if split != "digits":  # the other split is not fetched
        load_emnist(tmp_path, split=split, download=True)
        assert len(server.asked) == asked


def test_a_split_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match="split must be one of 'byclass', 'bymerge', 'balanced'"):
        load_emnist(tmp_path, split="everything")


def test_without_pooch_the_sentence_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(BackendError, match=r"pip install 'xbackprop\[download\]'"):
        load_cifar10(tmp_path, download=True)


def test_the_command_fetches_into_the_folder_that_loaders_look_into(
    server, monkeypatch, one_record, tmp_path, capsys
) -> None:
    offer_cifar10(server, monkeypatch, tar(BATCHES))
    monkeypatch.setenv("XBP_DATA", str(tmp_path))
    assert run(monkeypatch, "data", "list") == 0
    assert "cifar10        CIFAR-10          0 MB  not fetched" in capsys.readouterr().out
    assert run(monkeypatch, "data", "fetch", "cifar10") == 0
    assert capsys.readouterr().out == f"cifar10 is in {tmp_path / 'cifar10'}\n"
    assert load_cifar10()[0][1].tolist() == [7] * 5
    assert run(monkeypatch, "data", "list") == 0
    assert f"in {tmp_path / 'cifar10'}" in capsys.readouterr().out
    assert run(monkeypatch, "data", "fetch", "cifar10", "--folder", str(tmp_path / "b")) == 0
    assert (tmp_path / "b" / "test_batch.bin").exists()
    assert run(monkeypatch, "data", "fetch", "cifar11") == 2
    assert "a data set must be one of" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xbp", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_folders_by_default(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("XBP_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetching.folder_of("kmnist") == tmp_path / "xbp" / "kmnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetching.folder_of("kmnist") == Path.home() / ".cache" / "xbp" / "kmnist"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert fetching.folder_of("kmnist") == tmp_path / "local" / "xbp" / "kmnist"


def test_every_hash_is_one() -> None:
    for entry in known.SETS.values():
        for download in entry.downloads:
            assert len(bytes.fromhex(download.sha256)) == 32 and download.size > 5000


def test_what_a_killed_fetch_left_is_used_or_removed(
    server, monkeypatch, one_record, tmp_path
) -> None:
    content = tar(BATCHES)
    offer_cifar10(server, monkeypatch, content)
    with staging(tmp_path) as folder:
        left = folder.with_name(f"{folder.name}0")  # whose lock nobody holds
    left.mkdir()
    (left / "tmp").write_bytes(content[:99])
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
    fetch("cifar10", tmp_path)
    assert server.asked == [] and not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(known.CIFAR10.members)
    left.mkdir()
    fetch("cifar10", tmp_path)
    assert not left.exists()
