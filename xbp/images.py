"""Photographs and drawings of digits, converted to images like MNIST's.

MNIST's images were made from black and white ones: the digit was scaled to fit 20 × 20 pixels with
its proportions kept and its edges anti-aliased, then placed in 28 × 28 pixels with its centre of
mass in the middle. (LeCun et al. 1998, section III.A.) Here `read_grey` reads a file, with Pillow,
and `isolate` separates ink from paper and does the same.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.errors import DataError, InputError
from xbp.paths import open_file

if TYPE_CHECKING:
    from PIL.Image import Image

Grey: TypeAlias = NDArray[np.float64]

MOST_PIXELS = 100_000_000  # in a file; at most 400 MB when decoded
LARGEST_SIDE = 1024  # pixels to which larger pictures are reduced
COARSE_SIDE = 96  # pixels of the reduced picture in which ink is separated from paper
LEAST_CONTRAST = 0.06  # between ink and paper; less is an empty sheet
STROKE = (1.9, 3.6)  # range of the thickness of MNIST's strokes, in pixels of the 20 × 20
SMALL = 40  # pixels: the edges of a digit up to this size are anti-aliased
FINE = 8  # refinement of the 20 × 20 grid on which strokes are adjusted


def read_grey(path: str | os.PathLike[str]) -> Grey:
    """The picture in a PNG or JPEG file as brightness, 0 to 1, upright, of moderate size.

    Transparent pixels become white paper, or black if nothing would be visible on white.

    Raises
    ------
    DataError
        The file is missing, is neither PNG nor JPEG, is damaged, or is larger than 100 megapixels.
    InputError
        Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except Exception:
        msg = "pictures are read by Pillow, which cannot be imported; pip install pillow"
        raise InputError(msg) from None

    name = repr(str(path))
    try:
        with open_file(path, "a PNG or JPEG file") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MOST_PIXELS is below Pillow's own limit
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))  # decodes a JPEG at a reduced size
                upright = ImageOps.exif_transpose(image)
                return _brightness(upright)
    except DataError:
        raise
    except Image.DecompressionBombError:
        msg = f"{name} has more than {MOST_PIXELS // 10**6} megapixels; give a smaller picture"
    except UnidentifiedImageError:
        msg = f"{name} is neither PNG nor JPEG; give a picture in one of these formats"
    except MemoryError:
        msg = f"{name} does not fit into memory; give a smaller picture"
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error))[:100]
        msg = f"{name} is damaged or cannot be read ({reason}); save it again"
    raise DataError(msg)


def _brightness(image: Image) -> Grey:
    factor = max(1, -(-max(image.size) // LARGEST_SIDE))
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits per pixel
        values = np.asarray(image.reduce(factor) if image.mode != "I;16" else image, np.float64)
        if image.mode == "I;16":
            values = _shrunk(values, factor)
        return np.clip(values / 65535, 0, 1)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layers = np.asarray(image.convert("RGBA").reduce(factor), np.float64) / 255
        alpha = layers[..., 3]
        grey = layers[..., :3] @ (0.299, 0.587, 0.114)
        on_white = grey * alpha + 1 - alpha
        return on_white if np.ptp(on_white) >= LEAST_CONTRAST else grey * alpha
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB" if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") else "L")
    return np.asarray(image.reduce(factor).convert("L"), np.float64) / 255


def _shrunk(values: Grey, factor: int) -> Grey:
    """Means of squares of pixels, without incomplete squares at the edges."""
    h, w = (max(1, size // factor) for size in values.shape)
    factor = min(factor, *values.shape)
    blocks = values[: h * factor, : w * factor].reshape(h, factor, w, factor)
    return np.asarray(blocks.mean(axis=(1, 3)))


# --- from a picture to the digit on it -----------------------------------------------------------


def isolate(grey: Grey) -> NDArray[np.uint8]:
    """The digit in a picture as an image like MNIST's: 28 × 28, 0 = paper, 255 = ink.

    The picture shows one digit, darker or lighter than the paper, which occupies most of the edges
    of the picture.

    Parameters
    ----------
    grey : numpy.ndarray (H, W)
        Brightness, 0 to 1.

    Raises
    ------
    InputError
        Nothing stands out from the paper.
    """
    return _centred(_strokes(_digit(_ink(grey))))


def _ink(grey: Grey) -> Grey:
    """The amount of ink in each pixel: about 0 on the paper, about 1 in a stroke."""
    h, w = grey.shape
    if np.ptp(grey) < LEAST_CONTRAST:
        _refuse()
    coarse = _coarse(grey)
    fitted = _lighting(coarse)
    rest = coarse - fitted
    spread = max(0.01, 1.4826 * float(np.median(np.abs(rest - np.median(rest)))))
    dark, light = (np.maximum(sign * rest - 3 * spread, 0).sum() for sign in (-1, 1))
    if light > dark:
        grey, coarse, fitted = 1 - grey, 1 - coarse, 1 - fitted
    fitted = np.clip(fitted, 0.05, None)
    paper = np.maximum(fitted * _closed(coarse / fitted, COARSE_SIDE // 3), 0.05)
    # Relative to paper: a stroke reflects a fraction of the light that paper beside it reflects.
    there = 1 - coarse / paper
    usual = float(np.median(there))
    noise = 1.4826 * float(np.median(np.abs(there - usual)))
    strong = there[there > max(usual + 6 * noise, LEAST_CONTRAST / 2)]
    if strong.size == 0:
        _refuse()
    mask = resize((there > np.percentile(strong, 90) / 2).astype(float), h, w) > 0.5
    ink = 1 - grey / resize(paper, h, w)
    if not mask.any():
        _refuse()
    # Around a fine stroke, the coarse mask covers mostly paper.
    level = float(np.median(ink[mask & (ink > np.percentile(ink[mask], 98) / 2)]))
    if level < LEAST_CONTRAST:
        _refuse()
    empty = ink[ink < level / 3]
    spread = 1.4826 * float(np.median(np.abs(empty - np.median(empty))))
    floor = min(usual + 3 * spread, 0.4 * level)
    return np.clip((ink - floor) / (level - floor), 0, 1)


def _lighting(grey: Grey) -> Grey:
    """The paper's brightness: a quadratic polynomial from a robust fit.

    The fit starts with the edges of the picture, which are mostly paper.
    """
    v, u = np.meshgrid(*(np.linspace(-1, 1, size) for size in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1).reshape(-1, 6)
    edge = (np.maximum(np.abs(u), np.abs(v)) > 0.85).reshape(-1)
    values = grey.reshape(-1)
    fitted, counted = np.full_like(values, np.median(values[edge])), edge.astype(float)
    for width in (0.3, 0.2, 0.1, 0.05, 0.05, 0.05):
        weights = counted / (1 + ((values - fitted) / width) ** 2)  # the Cauchy weight function
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(terms * root[:, None], values * root, rcond=None)[0]
        fitted = terms @ solution
        counted = 0.2 + 0.8 * edge
    return fitted.reshape(grey.shape)


def _closed(grey: Grey, size: int) -> Grey:
    """Morphological closing: dark parts narrower than `size` are filled."""
    for extreme, beyond in ((np.max, -np.inf), (np.min, np.inf)):
        for axis in (0, 1):
            margin = [(0, 0), (0, 0)]
            margin[axis] = (size // 2, size // 2)
            padded = np.pad(grey, margin, constant_values=beyond)
            windows = np.lib.stride_tricks.sliding_window_view(padded, size // 2 * 2 + 1, axis)
            grey = extreme(windows, axis=-1)
    return grey


def _digit(ink: Grey) -> Grey:
    """The part of the picture with the digit, without other ink.

    The digit is the component with the most ink, preferably one that does not touch an edge,
    together with others of a similar amount, such as the bar of a 5. The rest is noise, or the edge
    of the sheet.
    """
    coarse = _coarse(ink)
    if coarse.max() <= 0.02:
        _refuse()
    # A low threshold, as fine strokes do not fill a coarse pixel; ruled lines are weaker still.
    labels = components(coarse > 0.3 * np.percentile(coarse[coarse > 0.02], 98))
    amounts = np.bincount(labels.reshape(-1), weights=coarse.reshape(-1))
    amounts[0] = 0
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inside = amounts.copy()
    inside[rim] = 0
    if inside.max() > 0.1 * amounts.max():
        amounts = inside
    chosen = (amounts > 0.06 * amounts.max())[labels]
    # Dilated by one coarse pixel, to include the edges of strokes.
    digit = ink * (resize(_spread(chosen).astype(float), *ink.shape) > 0.25)
    box = _box(digit)
    if max(digit[box].shape) <= SMALL:  # pixels with little ink are its edges
        box = _box(digit, 0.05)
    return np.asarray(digit[box])


def components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Connected components (8-connectivity) of a mask, numbered from 1; 0 elsewhere.

    Examples
    --------
    >>> components(np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool))
    array([[1, 0, 0, 2],
           [0, 1, 0, 2],
           [0, 0, 0, 2]])
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # Take the largest label around each pixel, then the current label of that label's pixel.
        around = np.where(mask, _spread(labels), 0)
        spread = np.where(mask, around.reshape(-1)[around - 1], 0)
        if np.array_equal(spread, labels):
            numbers, labels = np.unique(labels, return_inverse=True)
            return labels.reshape(mask.shape) + (0 if numbers[0] == 0 else 1)
        labels = spread


def _spread(values: NDArray[Any]) -> NDArray[Any]:
    """The maximum of each pixel and its eight neighbours."""
    padded = np.pad(values, 1)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.asarray(np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _strokes(digit: Grey) -> Grey:
    """The digit on a fine grid, 160 pixels along its longer side, with strokes as in MNIST.

    Without this, a fine pen on a large sheet would leave only a shade on 20 × 20 pixels.
    """
    scale = 20 * FINE / max(digit.shape)
    fine = resize(digit, *(max(1, round(size * scale)) for size in digit.shape))
    thick = thickness(fine) / FINE
    change = round((np.clip(thick, *STROKE) - thick) / 2 * FINE)
    if change == 0:
        return fine
    radius = min(abs(change), 2 * FINE)
    fine = np.pad(fine, radius + 1)
    shifts = [
        np.roll(fine, (i, j), axis=(0, 1))
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
        if i * i + j * j <= (radius + 0.5) ** 2
    ]
    fine = np.max(shifts, axis=0) if change > 0 else np.min(shifts, axis=0)
    return np.asarray(fine[_box(fine)])


def thickness(ink: Grey) -> float:
    """The mean thickness of strokes, in pixels: twice their area over the length of their outline.

    Examples
    --------
    >>> ink = np.zeros((60, 60))
    >>> ink[5:55, 20:24] = 1
    >>> round(thickness(ink), 1)
    3.7
    """
    padded = np.pad(ink, 1)
    vertical, horizontal = np.gradient(padded)
    outline = np.hypot(vertical, horizontal).sum()
    return float(2 * padded.sum() / max(outline, 1e-9))


def _centred(digit: Grey) -> NDArray[np.uint8]:
    """The digit scaled to fit 20 × 20, with its centre of mass at the centre of 28 × 28."""
    scale = 20 / max(digit.shape)
    small = resize(digit, *(max(1, round(size * scale)) for size in digit.shape))
    small = small / max(small.max(), 1e-9)
    image = np.zeros((28, 28))
    corner = []
    for axis in (0, 1):
        mass = small.sum(axis=1 - axis)
        middle = float(mass @ np.arange(mass.size) / mass.sum())
        # 14 as in MNIST's images, with pixels counted from 0.
        corner.append(int(np.clip(round(14 - middle), 0, 28 - mass.size)))
    image[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


# --- sizes ---------------------------------------------------------------------------------------


def resize(grey: Grey, height: int, width: int) -> Grey:
    """The picture in another size, by means where it shrinks and interpolation where it grows.

    Examples
    --------
    >>> resize(np.array([[0.0, 1.0, 2.0, 3.0]]), 1, 2)
    array([[0.5, 2.5]])
    >>> resize(np.array([[0.0, 1.0]]), 1, 4)
    array([[0.  , 0.25, 0.75, 1.  ]])
    """
    rows, columns = (_weights(*sizes) for sizes in zip(grey.shape, (height, width), strict=True))
    return np.asarray(rows @ grey @ columns.T)


def _weights(old: int, new: int) -> Grey:
    """A matrix (new, old) that resamples an axis."""
    if new <= old:  # the overlap of old and new pixels
        edges = np.linspace(0, old, new + 1)
        starts = np.arange(old)
        upper = np.minimum(edges[1:, None], starts + 1)
        lower = np.maximum(edges[:-1, None], starts)
        return np.asarray(np.maximum(upper - lower, 0) * (new / old))
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(place.astype(int), max(old - 2, 0))
    weights = np.zeros((new, old))
    weights[np.arange(new), left] = 1 - (place - left)
    weights[np.arange(new), np.minimum(left + 1, old - 1)] += place - left
    return weights


def _coarse(grey: Grey) -> Grey:
    scale = min(1.0, COARSE_SIDE / max(grey.shape))
    return resize(grey, *(max(1, round(size * scale)) for size in grey.shape))


def _box(ink: Grey, least: float = 0.25) -> tuple[slice, slice]:
    """The bounding box of the ink."""
    there = ink > least
    if not there.any():
        _refuse()
    sides = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    return rows, columns


def _refuse() -> NoReturn:
    msg = "shows no digit, only an empty sheet; give a picture of one, dark on light or the reverse"
    raise InputError(msg)
