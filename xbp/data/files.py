"""A pair of files as a source, for data larger than memory."""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from xbp.data.sources import Batch, Indices, Source, sample_digest
from xbp.errors import DataError, InputError, brief
from xbp.paths import open_file

_KINDS = "biuf"
_SAMPLED = 1024


class Samples:
    """The samples of a ``.npy`` file, read on demand.

    The file is read, not mapped: it needs address space for a batch alone, and truncation of the
    file meanwhile is an error instead of a signal that ends the process.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype

    Raises
    ------
    DataError
        The file is missing, no plain file, no array of numbers with samples along its first axis,
        or of another length than its header says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.name = path, repr(str(path))
        with self._open() as file:
            self.shape, self.dtype, self.start = self._header(file)
            size = os.fstat(file.fileno()).st_size
        self.record = math.prod(self.shape[1:]) * self.dtype.itemsize
        promised = self.start + self.shape[0] * self.record
        if size != promised:
            msg = (
                f"{self.name} holds {size} bytes, where its header promises {promised}; it is cut "
                "short or corrupt: write it again"
            )
            raise DataError(msg)

    def _open(self) -> BinaryIO:
        return open_file(self.path, "a .npy file")

    def _header(self, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        try:
            version = npy.read_magic(file)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, by_columns, dtype = read(file)
        except OSError as error:
            raise self._unreadable(error) from None
        except Exception as error:  # any error of numpy's and Python's parsers
            msg = f"{self.name} is no .npy file that can be read ({brief(error)}); write it again"
            raise DataError(msg) from None
        if dtype.kind not in _KINDS:
            msg = f"{self.name} holds {dtype}, where real numbers were expected; write them as such"
            raise DataError(msg)
        if not shape or min(shape) < 1 or (by_columns and len(shape) > 1):
            order = " in Fortran order" if by_columns else ""
            msg = (
                f"{self.name} holds an array of shape {shape}{order}, where samples one after the "
                "other along the first axis were expected; write it as numpy.ascontiguousarray(…)"
            )
            raise DataError(msg)
        return shape, dtype, file.tell()

    def take(self, indices: Indices) -> NDArray[Any]:
        """Samples by index, in the given order; neighbours are read at once.

        Raises
        ------
        DataError
            The file cannot be read, or has become shorter.
        """
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        raw = memoryview(found.reshape(-1).view(np.uint8).data)
        starts = np.flatnonzero(np.diff(indices, prepend=indices[:1]) != 1)
        try:
            with self._open() as file:
                for begin, end in zip(starts, [*starts[1:], len(indices)], strict=False):
                    file.seek(self.start + int(indices[begin]) * self.record)
                    wanted = raw[begin * self.record : end * self.record]
                    if file.readinto(wanted) != len(wanted):  # type: ignore[attr-defined]
                        msg = f"{self.name} has become shorter since it was opened; write it again"
                        raise DataError(msg)
        except OSError as error:
            raise self._unreadable(error) from None
        return found.astype(self.dtype.newbyteorder("="), copy=False)

    def _unreadable(self, error: OSError) -> DataError:
        reason = error.strerror or error
        return DataError(f"{self.name} cannot be read ({reason}); check its path and permissions")

    def digest(self) -> str:
        """A digest of shape, dtype and some evenly spaced samples; reading all would take long."""
        some = np.unique(np.linspace(0, self.shape[0] - 1, _SAMPLED).astype(np.int64))
        return f"{self.dtype} {self.shape} with SHA-256 {sample_digest([self.take(some)])} of some"


class Files(Source):
    """A pair of ``.npy`` files of any size, read batch by batch.

    Each file holds one array with samples along its first axis. To write one larger than memory,
    use ``numpy.lib.format.open_memmap(path, "w+", dtype, shape)``.

    Parameters
    ----------
    x, y : path-like
        Inputs, and targets; without targets the source is for prediction alone.

    Raises
    ------
    InputError
        The files hold different numbers of samples.
    DataError
        A file is missing, no plain file, no array of numbers, or of another length than its header
        says; in `batch`, it has become shorter.

    Notes
    -----
    A resumed run compares shape, dtype and 1,024 samples of each file.
    """

    def __init__(self, x: str | os.PathLike[str], y: str | os.PathLike[str] | None = None) -> None:
        self.parts = [Samples(path) for path in (x, y) if path is not None]
        counts = [part.shape[0] for part in self.parts]
        if len(set(counts)) > 1:
            msg = (
                f"{self.parts[0].name} holds {counts[0]} samples but {self.parts[1].name} "
                f"{counts[1]}; give two files of one set"
            )
            raise InputError(msg)

    def __len__(self) -> int:
        return self.parts[0].shape[0]

    def batch(self, indices: Indices) -> Batch:
        found = tuple(part.take(indices) for part in self.parts)
        return found if len(found) > 1 else found[0]

    def fingerprint(self) -> str:
        return ", ".join(part.digest() for part in self.parts)
