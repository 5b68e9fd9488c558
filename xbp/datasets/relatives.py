"""Sets in MNIST's format: Fashion-MNIST, KMNIST and EMNIST."""

from __future__ import annotations

import os

import numpy as np

from xbp.arguments import choice
from xbp.datasets.fetching import located
from xbp.datasets.known import EMNIST_SPLITS, SETS, emnist_files
from xbp.datasets.mnist import Images, Labels, find_file, load_mnist, read_pair

Sets = tuple[tuple[Images, Labels], tuple[Images, Labels]]

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load_fashion_mnist(
    folder: str | os.PathLike[str] | None = None, *, download: bool = False
) -> Sets:
    """Load Fashion-MNIST (Xiao et al. 2017) as ``(x_train, y_train), (x_test, y_test)``.

    Parameters
    ----------
    folder : path-like, optional
        Where the four files of `load_mnist` are; by default ``$XBP_DATA/fashion_mnist``, or
        ``xbp/fashion_mnist`` in the user's folder of caches.
    download : bool, default False
        Whether to fetch what is not there (31 MB; see `fetch`).

    Returns
    -------
    x_train, y_train, x_test, y_test : numpy.ndarray
        As those of `load_mnist`: 60,000 and 10,000 images of 28 x 28; the labels stand for
        `FASHION_MNIST_CLASSES`.

    Raises
    ------
    DataError
        A file is missing, malformed, or could not be fetched.
    BackendError
        With ``download=True``: pooch is not installed.
    """
    return _four_files("fashion_mnist", folder, download)


def load_kmnist(folder: str | os.PathLike[str] | None = None, *, download: bool = False) -> Sets:
    """Load Kuzushiji-MNIST (Clanuwat et al. 2018) as ``(x_train, y_train), (x_test, y_test)``.

    Parameters, results and errors are those of `load_fashion_mnist`, with ``kmnist`` as the folder
    (21 MB). The labels 0 to 9 stand for お, き, す, つ, な, は, ま, や, れ, を.
    """
    return _four_files("kmnist", folder, download)


def load_emnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    split: str = "balanced",
    download: bool = False,
) -> Sets:
    """Load a split of EMNIST (Cohen et al. 2017) as ``(x_train, y_train), (x_test, y_test)``.

    The files hold each image transposed; here it is upright, as MNIST's are.

    Parameters
    ----------
    folder : path-like, optional
        Where ``emnist-balanced-train-images-idx3-ubyte`` … are, each under that name or with
        ``.gz`` added, or the folder ``gzip`` that holds them; by default as in
        `load_fashion_mnist`.
    split : {"byclass", "bymerge", "balanced", "letters", "digits", "mnist"}
    download : bool, default False
        Whether to fetch what is not there (562 MB, all splits; see `fetch`).

    Returns
    -------
    x_train, y_train, x_test, y_test : numpy.ndarray
        As those of `load_mnist`, of 62, 47, 47, 26, 10 or 10 classes. Labels are those of the
        files: from 0, but for "letters" from 1 (a) to 26 (z).

    Raises
    ------
    InputError
        There is no such split.
    DataError, BackendError
        As in `load_fashion_mnist`.
    """
    files = emnist_files(choice("split", split, EMNIST_SPLITS))
    place = located("emnist", folder, files, download=download)
    train, test = (
        [find_file(place, name.removesuffix(".gz")) for name in pair]
        for pair in (files[:2], files[2:])
    )
    return upright(*read_pair(*train)), upright(*read_pair(*test))


def upright(images: Images, labels: Labels) -> tuple[Images, Labels]:
    """Images stored transposed, as upright ones."""
    return np.ascontiguousarray(images.swapaxes(1, 2)), labels


def _four_files(name: str, folder: str | os.PathLike[str] | None, download: bool) -> Sets:
    files = [file.name for file in SETS[name].downloads]
    return load_mnist(located(name, folder, files, download=download))
