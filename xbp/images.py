"""Pictures of digits, as people take and draw them, turned into what a network for MNIST knows.

MNIST's images were made from black and white ones: the digit was scaled to fit 20 × 20 pixels, its
proportions kept, with grey where an edge runs through a pixel, and put into 28 × 28 pixels with its
centre of mass in the middle. (LeCun et al. 1998, section III.A.) The same is done here, after the
ink has been told from the paper: `read_grey`, then `isolate`. It takes Pillow to read files.
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

MOST_PIXELS = 100_000_000  # of a file; decoded, that is 400 MB at most
LARGEST_SIDE = 1024  # larger pictures are made smaller at once: it is more than enough
COARSE_SIDE = 96  # of the picture in which paper and ink are told apart
LEAST_CONTRAST = 0.06  # of ink to paper; less is an empty sheet
STROKE = (1.9, 3.6)  # pixels of the 20 × 20: MNIST's strokes are that thick, nearly all of them
SMALL = 40  # pixels: the edges of a digit no larger than that are grey pixels
FINE = 8  # how much finer than the 20 × 20 the digit is looked at


def read_grey(path: str | os.PathLike[str]) -> Grey:
    """The picture in a PNG or JPEG file as brightness, 0 to 1, upright, of moderate size.

    What is transparent is put on white paper; on black, where on white nothing could be seen.

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
            warnings.simplefilter("ignore")  # the limit here is the lower one
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))  # a JPEG is decoded smaller
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
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel
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
    """Means of squares of pixels; what does not fill a square is left out."""
    h, w = (max(1, size // factor) for size in values.shape)
    factor = min(factor, *values.shape)
    blocks = values[: h * factor, : w * factor].reshape(h, factor, w, factor)
    return np.asarray(blocks.mean(axis=(1, 3)))


# --- from a picture to the digit on it -----------------------------------------------------------


def isolate(grey: Grey) -> NDArray[np.uint8]:
    """The digit of a picture as MNIST has it: 28 × 28, 0 = paper, 255 = ink.

    The picture shows one digit, darker or lighter than what it is drawn on, which reaches the edges
    of the picture more than the digit does.

    Parameters
    ----------
    grey : numpy.ndarray (H, W)
        Brightness, 0 to 1.

    Raises
    ------
    InputError
        There is no digit: nothing stands out from the paper.
    """
    return _centred(_strokes(_digit(_ink(grey))))


def _ink(grey: Grey) -> Grey:
    """How much ink there is on each pixel: about 0 on the paper, about 1 in a stroke."""
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
    # A stroke reflects a share of the light that the paper beside it reflects.
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
    # Around a fine stroke, most of what the coarse mask holds is paper.
    level = float(np.median(ink[mask & (ink > np.percentile(ink[mask], 98) / 2)]))
    if level < LEAST_CONTRAST:
        _refuse()
    empty = ink[ink < level / 3]
    spread = 1.4826 * float(np.median(np.abs(empty - np.median(empty))))
    floor = min(usual + 3 * spread, 0.4 * level)
    return np.clip((ink - floor) / (level - floor), 0, 1)


def _lighting(grey: Grey) -> Grey:
    """The paper's brightness: a quadratic polynomial, fitted so that strokes hardly count.

    It begins with the edges of the picture, which are mostly paper.
    """
    v, u = np.meshgrid(*(np.linspace(-1, 1, size) for size in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1).reshape(-1, 6)
    edge = (np.maximum(np.abs(u), np.abs(v)) > 0.85).reshape(-1)
    values = grey.reshape(-1)
    fitted, counted = np.full_like(values, np.median(values[edge])), edge.astype(float)
    for width in (0.3, 0.2, 0.1, 0.05, 0.05, 0.05):
        weights = counted / (1 + ((values - fitted) / width) ** 2)  # Cauchy's
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(terms * root[:, None], values * root, rcond=None)[0]
        fitted = terms @ solution
        counted = 0.2 + 0.8 * edge
    return fitted.reshape(grey.shape)


def _closed(grey: Grey, size: int) -> Grey:
    """What is darker than all around it, and narrower than `size`, filled up."""
    for extreme, beyond in ((np.max, -np.inf), (np.min, np.inf)):
        for axis in (0, 1):
            margin = [(0, 0), (0, 0)]
            margin[axis] = (size // 2, size // 2)
            padded = np.pad(grey, margin, constant_values=beyond)
            windows = np.lib.stride_tricks.sliding_window_view(padded, size // 2 * 2 + 1, axis)
            grey = extreme(windows, axis=-1)
    return grey


def _digit(ink: Grey) -> Grey:
    """The part of the picture that has the digit, without the ink of other things.

    The digit is the blob with the most ink, if possible none that touches an edge, and others that
    have some share of it, such as the bar of a 5. What remains is noise, or the edge of the sheet.
    """
    coarse = _coarse(ink)
    if coarse.max() <= 0.02:
        _refuse()
    # A fine stroke does not fill a coarse pixel, and the lines of ruled paper are weaker than it.
    labels = components(coarse > 0.3 * np.percentile(coarse[coarse > 0.02], 98))
    amounts = np.bincount(labels.reshape(-1), weights=coarse.reshape(-1))
    amounts[0] = 0
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inside = amounts.copy()
    inside[rim] = 0
    if inside.max() > 0.1 * amounts.max():
        amounts = inside
    chosen = (amounts > 0.06 * amounts.max())[labels]
    # One coarse pixel more on each side, for the strokes' own edges.
    digit = ink * (resize(_spread(chosen).astype(float), *ink.shape) > 0.25)
    box = _box(digit)
    if max(digit[box].shape) <= SMALL:  # then what has a little ink is a pixel on the edge of it
        box = _box(digit, 0.05)
    return np.asarray(digit[box])


def components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number from 1 for each blob of a mask, neighbours at corners included; 0 elsewhere.

    Examples
    --------
    >>> components(np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]], bool))
    array([[1, 0, 0, 2],
           [0, 1, 0, 2],
           [0, 0, 0, 2]])
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # Each takes the largest number around it, and what the pixel of that number has by now.
        around = np.where(mask, _spread(labels), 0)
        spread = np.where(mask, around.reshape(-1)[around - 1], 0)
        if np.array_equal(spread, labels):
            numbers, labels = np.unique(labels, return_inverse=True)
            return labels.reshape(mask.shape) + (0 if numbers[0] == 0 else 1)
        labels = spread


def _spread(values: NDArray[Any]) -> NDArray[Any]:
    """The largest value of each pixel and its eight neighbours."""
    padded = np.pad(values, 1)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.asarray(np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _strokes(digit: Grey) -> Grey:
    """The digit on a fine grid, 160 pixels along its longer side, its strokes as thick as MNIST's.

    A fine pen on a large sheet would leave nothing but a shade on 20 × 20 pixels.
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
    """Scaled to fit 20 × 20, its centre of mass at the centre of 28 × 28."""
    scale = 20 / max(digit.shape)
    small = resize(digit, *(max(1, round(size * scale)) for size in digit.shape))
    small = small / max(small.max(), 1e-9)
    image = np.zeros((28, 28))
    corner = []
    for axis in (0, 1):
        mass = small.sum(axis=1 - axis)
        middle = float(mass @ np.arange(mass.size) / mass.sum())
        # 14 is where it is in MNIST's images, pixels counted from 0.
        corner.append(int(np.clip(round(14 - middle), 0, 28 - mass.size)))
    image[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


# --- sizes ---------------------------------------------------------------------------------------


def resize(grey: Grey, height: int, width: int) -> Grey:
    """The picture in another size: means where it gets smaller, in between where it gets larger.

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
    if new <= old:  # the share of each old pixel that lies in each new one
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
    """The smallest box around what has ink."""
    there = ink > least
    if not there.any():
        _refuse()
    sides = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    return rows, columns


def _refuse() -> NoReturn:
    msg = "shows no digit, only an empty sheet; give a picture of one, dark on light or the reverse"
    raise InputError(msg)
