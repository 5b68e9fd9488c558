"""CIFAR-10 and CIFAR-100, from their official binary files.

A file is a sequence of records. A record is one byte of label (CIFAR-100: two, coarse and fine),
then 3,072 bytes of image: the red, the green and the blue plane of 32 x 32, row by row.
(Krizhevsky 2009, "Learning multiple layers of features from tiny images".)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import choice, integer
from xbp.datasets.fetching import located
from xbp.datasets.known import CIFAR10, CIFAR10_TRAIN, CIFAR100
from xbp.errors import DataError
from xbp.paths import open_file

Bytes = NDArray[np.uint8]
Split = tuple[Bytes, Bytes]

IMAGE = (3, 32, 32)

# Over the 50,000 training images, each channel scaled to [0, 1].
CIFAR10_MEAN = (0.49139968, 0.48215841, 0.44653091)
CIFAR10_STD = (0.24703223, 0.24348513, 0.26158784)
CIFAR100_MEAN = (0.50707516, 0.48654887, 0.44091784)
CIFAR100_STD = (0.26733429, 0.25643846, 0.27615047)

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

RECORDS = {"data_batch": 10_000, "test_batch": 10_000, "train": 50_000, "test": 10_000}
"""The number of records in the official files, by the beginnings of their names."""


def load_cifar10(
    folder: str | os.PathLike[str] | None = None, *, download: bool = False
) -> tuple[Split, Split]:
    """Load CIFAR-10 as ``(x_train, y_train), (x_test, y_test)``.

    Parameters
    ----------
    folder : path-like, optional
        Where ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` are, or the folder
        ``cifar-10-batches-bin`` that holds them. By default ``$XBP_DATA/cifar10``, or
        ``xbp/cifar10`` in the user's folder of caches.
    download : bool, default False
        Whether to fetch what is not there (170 MB; see `fetch`).

    Returns
    -------
    x_train, y_train, x_test, y_test : numpy.ndarray
        Images, uint8 of shape (50000, 3, 32, 32) and (10000, 3, 32, 32); labels, uint8 from 0 to 9
        (`CIFAR10_CLASSES`).

    Raises
    ------
    DataError
        A file is missing, cut short or corrupt, or could not be fetched.
    BackendError
        With ``download=True``: pooch is not installed.
    """
    place = located("cifar10", folder, CIFAR10.files, download=download)
    train = [_official(place / name, 1) for name in CIFAR10_TRAIN]
    x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    x_test, y_test = _official(place / "test_batch.bin", 1)
    return (x, y[:, 0]), (x_test, y_test[:, 0])


def load_cifar100(
    folder: str | os.PathLike[str] | None = None, *, labels: str = "fine", download: bool = False
) -> tuple[Split, Split]:
    """Load CIFAR-100 as ``(x_train, y_train), (x_test, y_test)``.

    Parameters
    ----------
    folder : path-like, optional
        Where ``train.bin`` and ``test.bin`` are, or the folder ``cifar-100-binary`` that holds
        them; by default as in `load_cifar10`.
    labels : {"fine", "coarse"}, default "fine"
        The 100 classes, or the 20 superclasses.
    download : bool, default False
        Whether to fetch what is not there (169 MB; see `fetch`).

    Returns
    -------
    x_train, y_train, x_test, y_test : numpy.ndarray
        As those of `load_cifar10`; labels from 0 to 99, or from 0 to 19.

    Raises
    ------
    InputError
        `labels` is something else.
    DataError, BackendError
        As in `load_cifar10`.
    """
    column = ("coarse", "fine").index(choice("labels", labels, ("fine", "coarse")))
    place = located("cifar100", folder, CIFAR100.files, download=download)
    x, y = _official(place / "train.bin", 2)
    x_test, y_test = _official(place / "test.bin", 2)
    return (x, y[:, column].copy()), (x_test, y_test[:, column].copy())


def read_cifar(path: str | os.PathLike[str], *, label_bytes: int = 1) -> tuple[Bytes, Bytes]:
    """Read a file with any number of CIFAR records.

    Parameters
    ----------
    path : path-like
    label_bytes : int, default 1
        1 for CIFAR-10, 2 for CIFAR-100.

    Returns
    -------
    images : numpy.ndarray
        uint8 of shape (N, 3, 32, 32).
    labels : numpy.ndarray
        uint8 of shape (N, label_bytes).

    Raises
    ------
    DataError
        The file is missing, no plain file, empty, or ends within a record; a label is out of range.
    """
    width = integer("label_bytes", label_bytes, least=1)
    record = width + 3 * 32 * 32
    name = repr(str(path))
    try:
        with open_file(path, "a file of CIFAR's binary version") as file:
            size = os.fstat(file.fileno()).st_size
            count, rest = divmod(size, record)
            if rest or not count:
                msg = (
                    f"{name} holds {size} bytes, which are no whole records of {record}; it is cut "
                    "short, or not of CIFAR's binary version: fetch it again"
                )
                raise DataError(msg)
            records = np.fromfile(file, np.uint8, size)
    except MemoryError:
        msg = f"{name} does not fit into memory; free some, or take a smaller set"
        raise DataError(msg) from None
    except OSError as error:
        msg = f"{name} cannot be read ({error.strerror or error}); check its path and permissions"
        raise DataError(msg) from None
    if records.size < size:
        msg = f"{name} has become shorter while it was read; fetch it again"
        raise DataError(msg)
    records = records.reshape(count, record)
    labels = records[:, :width].copy()
    for column, classes in enumerate((10,) if width == 1 else (20, 100)):
        wrong = labels[:, column] >= classes
        if wrong.any():
            index = int(np.argmax(wrong))
            msg = (
                f"{name} has the label {labels[index, column]} in record {index}, where 0 to "
                f"{classes - 1} were expected; it is corrupt, or of another set: fetch it again"
            )
            raise DataError(msg)
    return records[:, width:].reshape(count, *IMAGE), labels


def _official(path: Path, width: int) -> tuple[Bytes, Bytes]:
    """One of the published files, with a known number of records."""
    images, labels = read_cifar(path, label_bytes=width)
    wanted = next(count for start, count in RECORDS.items() if path.name.startswith(start))
    if len(images) != wanted:
        found = f"{str(path)!r} holds {len(images)} images"
        msg = f"{found}, where {wanted} were expected; fetch it again"
        raise DataError(msg)
    return np.ascontiguousarray(images), labels
