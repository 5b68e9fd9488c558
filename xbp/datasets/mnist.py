"""MNIST, which ships with the library, and other data sets with the same four file names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xbp.arguments import number
from xbp.datasets.idx import read_idx
from xbp.errors import DataError, InputError
from xbp.paths import kind_of, require_folder

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[Any]

# Mean and standard deviation over all n = 60,000 * 28 * 28 training pixels p, scaled to [0, 1]:
# sum(p) / (255 n) and sqrt(sum(p^2) / n - (sum(p) / n)^2) / 255, from sums in exact integers.
MNIST_MEAN = 0.13066047627384286
MNIST_STD = 0.3081078038564627

_BUNDLED = Path(__file__).parent / "data" / "mnist"
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Load MNIST, or another data set of its format, as ``(x_train, y_train), (x_test, y_test)``.

    Parameters
    ----------
    data_dir : path-like, optional
        A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each under that name or with
        ``.gz`` added (the plain name wins), for instance Fashion-MNIST. The default is the MNIST
        that ships with xbp; nothing is ever downloaded.

    Returns
    -------
    x_train, y_train, x_test, y_test : numpy.ndarray
        Images, uint8 of shape (N, H, W), 0 = background, 255 = ink; and labels, integers of shape
        (N,). For MNIST, 60,000 and 10,000 images of 28 x 28 and uint8 labels 0 to 9.

    Raises
    ------
    DataError
        If the folder or one of the files is missing, a file is not valid IDX (see `read_idx`), or
        the files do not fit each other.
    """
    folder = _BUNDLED if data_dir is None else Path(data_dir)
    train_images, train_labels, test_images, test_labels = _find_files(folder)
    x_train, y_train = read_pair(train_images, train_labels)
    x_test, y_test = read_pair(test_images, test_labels)
    if x_train.shape[1:] != x_test.shape[1:]:
        msg = (
            f"{_quote(train_images)} has images of shape {x_train.shape[1:]} but "
            f"{_quote(test_images)} of {x_test.shape[1:]}; use two files of one size of image"
        )
        raise DataError(msg)
    return (x_train, y_train), (x_test, y_test)


def standardize_images(
    images: Images,
    mean: float | Sequence[float] = MNIST_MEAN,
    std: float | Sequence[float] = MNIST_STD,
    dtype: DTypeLike = "float32",
) -> NDArray[np.floating[Any]]:
    """Scale pixels to [0, 1], then shift and scale them: ``(images / 255 - mean) / std``.

    Each value is computed in float64 and rounded once to `dtype`. No temporary array is larger than
    a channel: all of MNIST as float32 takes 188 MB.

    Parameters
    ----------
    images : numpy.ndarray
        uint8 of shape (N, H, W) or (N, C, H, W).
    mean, std : float, or C of them
        In units of [0, 1]; the defaults are MNIST's over its training set. `std` is positive.
    dtype : dtype-like
        A floating-point type of numpy's.

    Returns
    -------
    standardized : numpy.ndarray
        `dtype` of shape (N, C, H, W), as `Conv2d` expects it; (N, H, W) becomes one channel.

    Raises
    ------
    InputError
        If `images` is anything but a numpy array of uint8 (N, H, W) or (N, C, H, W), `mean` or
        `std` is not a finite number or one a channel, `std` is too small for finite results, or
        `dtype` is not floating-point.
    """
    known = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not known or images.ndim not in (3, 4):
        msg = (
            f"images are {_describe(images)}, where a numpy array of uint8 (N, H, W) or "
            "(N, C, H, W) was expected; pass the images as they are loaded"
        )
        raise InputError(msg)
    channels = 1 if images.ndim == 3 else images.shape[1]
    dtype = _floating(dtype)
    tables = [
        _standardized_pixels(m, s, dtype)
        for m, s in zip(_each("mean", mean, channels), _each("std", std, channels), strict=True)
    ]
    if images.ndim == 3:
        return tables[0][images[:, np.newaxis]]
    result = np.empty(images.shape, dtype)
    for channel, table in enumerate(tables):
        result[:, channel] = table[images[:, channel]]
    return result


def _each(name: str, given: float | Sequence[float], channels: int) -> list[float]:
    """One number for each channel."""
    values = list(given) if isinstance(given, Sequence | np.ndarray) else [given] * channels
    if len(values) != channels:
        msg = f"{name} has {len(values)} numbers for images of {channels} channels; give {channels}"
        raise InputError(msg)
    return [number(name, value, least=0 if name == "std" else -np.inf) for value in values]


def _standardized_pixels(
    mean: float, std: float, dtype: np.dtype[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    # A pixel has 256 values, so the formula is evaluated 256 times and then looked up.
    pixel = np.arange(256, dtype=np.float64)
    with np.errstate(all="ignore"):  # checked below
        table = ((pixel / 255 - mean) / std).astype(dtype)
    if not np.isfinite(table).all():
        msg = f"std={std:g} does not give finite {table.dtype} images; pass a larger one"
        raise InputError(msg)
    return table


def _find_files(folder: Path) -> list[Path]:
    """Return the paths of the four files, in the order of `_FILES`."""
    require_folder(folder, f"one that holds {', '.join(_FILES)}")
    return [find_file(folder, name) for name in _FILES]


def find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if kind_of(path) not in ("", "a folder"):
            return path
    msg = (
        f"{_quote(folder)} lacks {name}; put {', '.join(_FILES)} there, each plain or as .gz, "
        "or leave data_dir out for the MNIST that ships with xbp"
    )
    raise DataError(msg)


def read_pair(image_path: Path, label_path: Path) -> tuple[Images, Labels]:
    """Read images and their labels, and check that they fit each other."""
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        msg = f"{_quote(image_path)} holds {_describe(images)}; put uint8 images (N, H, W) there"
        raise DataError(msg)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        msg = f"{_quote(label_path)} holds {_describe(labels)}; put integer labels (N,) there"
        raise DataError(msg)
    if len(images) != len(labels):
        msg = (
            f"{_quote(image_path)} holds {len(images)} images but {_quote(label_path)} "
            f"{len(labels)} labels; use two files of one set"
        )
        raise DataError(msg)
    return images, labels


def _floating(dtype: DTypeLike) -> np.dtype[np.floating[Any]]:
    """`dtype` as a numpy dtype, refused unless it is floating-point."""
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if not np.issubdtype(result, np.floating):
        msg = f"dtype must be floating-point, such as 'float32', got {dtype!r}"
        raise InputError(msg)
    return result


def _quote(path: Path) -> str:
    return repr(str(path))


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a {type(value).__name__}"
