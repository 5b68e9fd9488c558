"""Augmentation: random changes of images in every step, drawn on the device.

An augmentation is a function ``x, y = augment(x, y, rng=rng)`` of a batch. `Trainer.fit` takes one
(``augment=``) and gives it the step's `RandomStream`; a hand-written loop calls it before
``model.forward``. It is no layer, and so no part of the model that is saved, exported and
evaluated.

All decisions follow from 32-bit integers of the counter-based generator, and float operations are
correctly rounded, so that all backends make the same images, bit for bit. There are no host waits
and no shapes that depend on values; a captured step draws anew in each replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xbp.arguments import choice, described, integer, number, positive
from xbp.backend import (
    Array,
    Backend,
    Namespace,
    array_namespace,
    backend_of,
    dtype_name,
    is_floating,
    library_of,
    on_device_of,
)
from xbp.errors import InputError
from xbp.random import RandomStream, Seed, as_stream

LEVELS = 4096
"""Different values of λ in `Mixup`."""


class Augmentation:
    """Base of augmentations of images: a subclass defines `images`.

    Images are an array (N, C, H, W), floating-point or uint8, and keep their shape and dtype.
    """

    def __call__(
        self, x: Array, y: Any = None, *, rng: Seed | RandomStream = None
    ) -> tuple[Array, Any]:
        """An augmented batch.

        Parameters
        ----------
        x : array (N, C, H, W), floating-point or uint8
        y : array, optional
            Targets; only `Mixup` changes them.
        rng : int, numpy.random.Generator, xbp.random.RandomStream or None
            In training the step's `RandomStream`.

        Returns
        -------
        x, y

        Raises
        ------
        InputError
            `x` is no array of such images.
        """
        self.check(x)
        with on_device_of(x):
            return self.batch(array_namespace(x), x, y, as_stream(rng) or RandomStream())

    def batch(self, xp: Namespace, x: Array, y: Any, stream: RandomStream) -> tuple[Array, Any]:
        return self.images(xp, x, stream), y

    def images(self, xp: Namespace, x: Array, stream: RandomStream) -> Array:
        """The augmented images; `stream` draws one word for each image and decision."""
        msg = f"{type(self).__name__} changes nothing; define images(self, xp, x, stream)"
        raise NotImplementedError(msg)

    def check(self, x: Array) -> None:
        fits = library_of(x) is not None and len(x.shape) == 4
        if not fits or not (is_floating(x) or dtype_name(x.dtype) == "uint8"):
            kind = f" of {dtype_name(x.dtype)}" if library_of(x) is not None else ""
            msg = (
                f"{self} needs images (N, C, H, W), floating-point or uint8, got "
                f"{described(x)}{kind}"
            )
            raise InputError(msg)

    def __repr__(self) -> str:
        options = {n: v for n, v in vars(self).items() if not n.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in options.items())})"


class Compose(Augmentation):
    """Several augmentations, one after the other.

    Parameters
    ----------
    *steps : callable ``(x, y, *, rng) -> (x, y)``
        `Augmentation` objects, or functions of the same form. They share a `RandomStream`.
    """

    def __init__(self, *steps: Callable[..., tuple[Array, Any]]) -> None:
        for step in steps:
            if not callable(step) or isinstance(step, type):
                msg = (
                    "Compose takes augmentations, such as Flip(), or functions (x, y, *, rng), got "
                    f"{described(step)}"
                )
                raise InputError(msg)
        self.steps = steps

    def __call__(
        self, x: Array, y: Any = None, *, rng: Seed | RandomStream = None
    ) -> tuple[Array, Any]:
        stream = as_stream(rng) or RandomStream()
        for step in self.steps:
            x, y = step(x, y, rng=stream)
        return x, y

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


class Flip(Augmentation):
    """A horizontal flip of each image with probability `p`.

    Parameters
    ----------
    p : float, default 0.5
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = number("p", p, least=0, most=1)

    def images(self, xp: Namespace, x: Array, stream: RandomStream) -> Array:
        flipped = stream.bits((x.shape[0],), like=x) < round(self.p * 2**32)
        return xp.where(_each_image(xp, flipped), xp.flip(x, axis=3), x)


class ShiftedCrop(Augmentation):
    """A shift of each image by up to `padding` pixels, vertically and horizontally, uniformly.

    Equivalent to a crop of the old size from an image padded on all sides (He et al. 2016, section
    4.2).

    Parameters
    ----------
    padding : int, default 4
        At least 1; with "reflect" less than height and width.
    mode : {"zeros", "reflect"}, default "zeros"
        The padding: zeros, or the image mirrored at its edge.
    """

    def __init__(self, padding: int = 4, mode: str = "zeros") -> None:
        self.padding = integer("padding", padding, least=1)
        self.mode = choice("mode", mode, ("zeros", "reflect"))

    def check(self, x: Array) -> None:
        super().check(x)
        if self.mode == "reflect" and min(x.shape[2:]) <= self.padding:
            msg = f"{self} needs images of more than {self.padding} pixels, got {described(x)}"
            raise InputError(msg)

    def images(self, xp: Namespace, x: Array, stream: RandomStream) -> Array:
        (n, c, height, width), p = x.shape, self.padding
        x = padded(xp, padded(xp, x, 2, p, self.mode), 3, p, self.mode)
        here = {"dtype": xp.int64, "device": x.device}
        down, right = (_below(stream, n, 2 * p + 1, x) for _ in range(2))
        rows = xp.arange(height, **here)[None, :] + down[:, None]
        columns = xp.arange(width, **here)[None, :] + right[:, None]
        planes = xp.reshape(xp.arange(n * c, **here), (n, c))
        # The flat index of each pixel in the padded images.
        index = planes[:, :, None, None] * (height + 2 * p) + rows[:, None, :, None]
        index = index * (width + 2 * p) + columns[:, None, None, :]
        pixels = xp.take(xp.reshape(x, (-1,)), xp.reshape(index, (-1,)), axis=0)
        return xp.reshape(pixels, (n, c, height, width))


class Cutout(Augmentation):
    """A square of each image set to zero (DeVries and Taylor 2017).

    Its centre is uniform over all pixels; the part outside the image is cut off.

    Parameters
    ----------
    size : int, default 8
        The side of the square, in pixels.
    """

    def __init__(self, size: int = 8) -> None:
        self.size = integer("size", size, least=1)

    def images(self, xp: Namespace, x: Array, stream: RandomStream) -> Array:
        n, _, height, width = x.shape
        inside = []
        for length in (height, width):
            first = _below(stream, n, length, x) - self.size // 2
            place = xp.arange(length, dtype=xp.int64, device=x.device)[None, :] - first[:, None]
            inside.append((place >= 0) & (place < self.size))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return xp.where(hole, xp.zeros_like(x), x)


class Brightness(Augmentation):
    """Each image times a number drawn uniformly from 1 - most to 1 + most.

    Results of uint8 are rounded to the nearest and at most 255. For floats black should be 0.

    Parameters
    ----------
    most : float, default 0.2
        From 0 to 1.
    """

    def __init__(self, most: float = 0.2) -> None:
        self.most = number("most", most, least=0, most=1)

    def images(self, xp: Namespace, x: Array, stream: RandomStream) -> Array:
        words = xp.astype(stream.bits((x.shape[0],), like=x), xp.float64)
        factor = words * (2 * self.most / 2**32) + (1 - self.most)
        values = _as_floats(xp, x)
        return _as_before(xp, values * _each_image(xp, xp.astype(factor, values.dtype)), x)


class Mixup(Augmentation):
    """Each image and label blended with those of another image (Zhang et al. 2018).

    x' = λ x + (1 - λ) x_j, y' = λ y + (1 - λ) y_j, where image j has the same position in the
    reversed batch. λ is drawn for each image from Beta(α, α), in 4,096 equally probable steps, and
    replaced by the larger of λ and 1 - λ, so that an image's own label, which training metrics use,
    keeps the larger weight. A process with a part of the batch lacks the other images, and is
    refused.

    Parameters
    ----------
    classes : int
        The number of classes; integer labels (N,) become probabilities (N, classes) for
        `CrossEntropyLoss`.
    alpha : float, default 0.2
        α; 1 is the uniform distribution, smaller values blend less.

    Raises
    ------
    InputError
        When called: there are no labels, or they are neither integers (N,) nor floats (N, classes);
        or the stream draws for a share of a batch.
    """

    def __init__(self, classes: int, alpha: float = 0.2) -> None:
        self.classes = integer("classes", classes, least=2)
        self.alpha = positive("alpha", alpha)
        self._tables: list[tuple[Backend, Array]] = []

    def batch(self, xp: Namespace, x: Array, y: Any, stream: RandomStream) -> tuple[Array, Any]:
        if stream.share is not None:
            msg = (
                f"{self} blends images of a whole batch, but this process has only a share of it; "
                "take augmentations of single images, such as Flip and ShiftedCrop"
            )
            raise InputError(msg)
        values = _as_floats(xp, x)
        y = self._shares(xp, y, values)
        steps = stream.bits((x.shape[0],), like=x) // (2**32 // LEVELS)
        weight = xp.astype(xp.take(self._table(x), steps, axis=0), values.dtype)
        other, others = xp.flip(values, axis=0), xp.flip(y, axis=0)
        mixed = other + _each_image(xp, weight) * (values - other)
        return _as_before(xp, mixed, x), others + weight[:, None] * (y - others)

    def _shares(self, xp: Namespace, y: Any, values: Array) -> Array:
        shape, labels = getattr(y, "shape", None), values.shape[:1]
        if library_of(y) is library_of(values):
            if shape == labels and xp.isdtype(y.dtype, "integral"):
                classes = xp.arange(self.classes, dtype=xp.int64, device=values.device)
                return xp.astype(xp.astype(y, xp.int64)[:, None] == classes, values.dtype)
            if shape == (*labels, self.classes) and is_floating(y):
                return xp.astype(y, values.dtype)
        msg = (
            f"{self} needs integer labels of shape {tuple(labels)} or probabilities of shape "
            f"{(*labels, self.classes)} beside the images, got {described(y)}"
        )
        raise InputError(msg)

    def _table(self, x: Array) -> Array:
        """The values of λ on the device of `x`, cached, since a captured step cannot make them."""
        backend = backend_of(x)
        for known, table in self._tables:
            if known == backend:
                return table
        self._tables.append((backend, backend.asarray(upper_quantiles(self.alpha, LEVELS))))
        return self._tables[-1][1]


def upper_quantiles(alpha: float, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Quantiles of max(λ, 1 - λ) for λ from Beta(α, α), in decreasing order.

    For u = 1 - λ ≤ ½ the density is u^{α-1} (1 - u)^{α-1} up to a factor. With u = s^{1/t} and
    t = min(α, 1) the density of s is s^{α/t-1} (1 - u)^{α-1}, which is bounded; its integral is
    computed by trapezoids and inverted. Results are rounded to 2⁻²⁰, as the last digits of powers
    differ between machines.
    """
    t = min(alpha, 1.0)
    s = np.linspace(0, 0.5**t, 2**16 + 1)
    density = s ** (alpha / t - 1) * (1 - s ** (1 / t)) ** (alpha - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    u = np.interp((np.arange(count) + 0.5) / count, mass / mass[-1], s) ** (1 / t)
    return 1 - np.round(u * 2**20) / 2**20


# --- shared --------------------------------------------------------------------------------------


def _below(stream: RandomStream, n: int, bound: int, like: Array) -> Array:
    """n integers from 0 to bound - 1, uniform to one part in 2³² / bound."""
    return (stream.bits((n,), like=like) * bound) // 2**32


def _each_image(xp: Namespace, values: Array) -> Array:
    return xp.reshape(values, (-1, 1, 1, 1))


def _as_floats(xp: Namespace, x: Array) -> Array:
    return x if is_floating(x) else xp.astype(x, xp.float32)


def _as_before(xp: Namespace, values: Array, x: Array) -> Array:
    """Floats as the dtype of `x`; for uint8 the nearest integers up to 255."""
    if is_floating(x):
        return values
    return xp.astype(xp.minimum(xp.round(values), 255.0), x.dtype)


def padded(xp: Namespace, x: Array, axis: int, padding: int, mode: str) -> Array:
    """`x` with `padding` more rows or columns on both sides."""
    length = x.shape[axis]

    def part(first: int, end: int) -> Array:
        return x[:, :, first:end, :] if axis == 2 else x[:, :, :, first:end]

    if mode == "reflect":
        before = xp.flip(part(1, padding + 1), axis=axis)
        after = xp.flip(part(length - padding - 1, length - 1), axis=axis)
    else:
        shape = (*x.shape[:axis], padding, *x.shape[axis + 1 :])
        before = after = xp.zeros(shape, dtype=x.dtype, device=x.device)
    return xp.concat([before, x, after], axis=axis)
