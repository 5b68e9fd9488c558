"""Downloads by pooch of files with known SHA-256, unpacked member by member."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from pathlib import Path
from typing import IO, Any

from xbp.arguments import choice
from xbp.datasets.known import SETS, Download
from xbp.errors import BackendError, DataError, InputError, XBPError, brief
from xbp.paths import kind_of, path_of
from xbp.staging import staging, sweep

_CHUNK = 1 << 20
_LARGEST = 1 << 30  # no file of these sets is larger


def folder_of(name: str) -> Path:
    """The default folder of a set: ``$XBP_DATA/name``, or below the user's cache."""
    root = os.environ.get("XBP_DATA")
    if root:
        return Path(root) / name
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "xbp" / name


def located(name: str, folder: Any, files: Sequence[str], *, download: bool) -> Path:
    """The folder that holds `files` of a set, fetched first with `download`.

    Raises
    ------
    DataError
        A file is missing, or could not be fetched.
    """
    known = SETS[name]
    if type(download) is not bool:
        msg = f"download must be True or False, got {download!r}"
        raise InputError(msg)
    place = folder_of(name) if folder is None else path_of(folder, f"the folder of {known.title}")
    unpacked = place / (known.downloads[0].folder or ".")
    if missing(place, files) and not missing(unpacked, files):
        return unpacked  # unpacked by other means, with the archive's own folder
    if download and missing(place, files):
        fetch(name, place)
    lacking = missing(place, files)
    if lacking:
        msg = (
            f"{str(place)!r} lacks {lacking[0]} of {known.title}; give the folder that holds it, "
            f"or fetch it there with {known.loader}(…, download=True) or "
            f"`xbp data fetch {name} --folder DIR`"
        )
        raise DataError(msg)
    return place


def missing(folder: Path, files: Sequence[str]) -> list[str]:
    """The files that are missing, both under their names and without ``.gz``."""
    return [
        name
        for name in files
        if not any(kind_of(folder / each) for each in (name, name.removesuffix(".gz")))
    ]


def fetch(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Download the missing files of a set, and unpack them.

    A file is checked against its SHA-256 before it appears under its name. Of an archive only the
    expected members are read; each is written atomically under a fixed name.

    Parameters
    ----------
    name : str
        ``"cifar10"``, ``"cifar100"``, ``"fashion_mnist"``, ``"kmnist"``, ``"emnist"``.
    folder : path-like, optional
        The target; by default `folder_of`. It is created.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        There is no such set.
    DataError
        The server cannot be reached or sent another file than expected, or the folder cannot be
        written to.
    BackendError
        pooch is not installed.
    """
    known = SETS[choice("a data set", name, tuple(SETS))]
    place = folder_of(name) if folder is None else path_of(folder, f"the folder of {known.title}")
    sweep(place)
    for download in known.downloads:
        if not missing(place, download.files):
            continue
        with _sentences(place, download.url):
            place.mkdir(parents=True, exist_ok=True)
            archive = _retrieve(download, place)
            if download.members:
                _unpack(archive, download, place)
                with suppress(OSError):  # its files are there
                    archive.unlink()
    return place


def _retrieve(download: Download, folder: Path) -> Path:
    try:
        import pooch
    except ImportError as error:
        msg = f"downloads need pooch ({error}); install it with: pip install 'xbackprop[download]'"
        raise BackendError(msg) from None
    target, digest = folder / download.name, f"sha256:{download.sha256}"
    if kind_of(target) and pooch.file_hash(str(target)) == download.sha256:
        return target
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    responses: list[Any] = []  # pooch leaves responses with status 404 open

    def keep(response: Any, **_: Any) -> None:
        responses.append(response)

    try:
        with staging(folder) as place:
            found = pooch.retrieve(
                download.url,
                digest,
                fname=download.name,
                path=place,
                downloader=pooch.HTTPDownloader(timeout=30, hooks={"response": keep}),
            )
            Path(found).replace(target)
    finally:
        logger.setLevel(level)
        for response in responses:
            response.close()
    return target


def _unpack(archive: Path, download: Download, folder: Path) -> None:
    """Write the expected members of `archive` to `folder`, and nothing else."""
    wanted = {f"{download.folder}/{name}": name for name in download.members}
    for path, content in _members(archive):
        name = wanted.pop(path.removeprefix("./"), None)
        if name is not None:
            _write(content, folder / name)
    if wanted:
        msg = f"{str(archive)!r} lacks {min(wanted)}; remove it and fetch it again"
        raise DataError(msg)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The plain files of a tar or zip archive, without links and devices."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    with packed.open(info) as unpacked:
                        yield info.filename, unpacked
        return
    with tarfile.open(archive, "r:gz") as packed:
        for member in packed:
            content = packed.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def _write(content: IO[bytes], target: Path) -> None:
    written = 0
    with staging(target.parent) as place:
        part = place / target.name
        with part.open("wb") as file:
            while chunk := content.read(_CHUNK):
                written += file.write(chunk)
                if written > _LARGEST:
                    msg = f"{target.name} is larger than any file of this set; fetch it again"
                    raise DataError(msg)
        part.replace(target)


@contextmanager
def _sentences(folder: Path, url: str) -> Iterator[None]:
    """One sentence for errors of a server, a disk or an archive."""
    try:
        yield
    except XBPError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, zlib.error, EOFError) as error:
        msg = f"what {url} sent is no archive that can be unpacked ({brief(error)}); fetch it again"
        raise DataError(msg) from None
    except ValueError as error:  # a wrong hash, from pooch
        msg = f"what {url} sent is not the expected file ({brief(error)}); fetch it again"
        raise DataError(msg) from None
    except OSError as error:  # includes errors of requests
        if (type(error).__module__ or "").startswith(("requests", "urllib3")):
            msg = f"{url} could not be fetched ({brief(error)}); check the connection and try again"
        else:
            reason = error.strerror or brief(error)
            msg = f"{str(folder)!r} cannot be written to ({reason}); choose another folder"
        raise DataError(msg) from None
