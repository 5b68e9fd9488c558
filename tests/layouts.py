"""Orders in memory that kernels meet, and what their results may differ by."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[Any]


def contiguous(x: Real) -> Real:
    copy = np.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def rows_first(x: Real) -> Real:
    return contiguous(x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)


def mirrored(x: Real) -> Real:
    return contiguous(x[..., ::-1])[..., ::-1]


def cropped(x: Real) -> Real:
    """A view of larger images, whose strides look like those of an array of its shape."""
    n, c, h, w = x.shape
    larger = np.zeros((n, c, h + 1, h) if h > w else (n, c, h * w, w), x.dtype)
    larger[:, :, :h, :w] = x
    return larger[:, :, :h, :w]


def unaligned(x: Real) -> Real:
    memory = np.empty(x.nbytes + 1, np.uint8)
    moved = memory[:-1].view(x.dtype).reshape(x.shape)
    moved[...] = x
    assert not moved.flags.aligned
    return moved


LAYOUTS = {f.__name__: f for f in (contiguous, rows_first, mirrored, cropped, unaligned)}


def elsewhere(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A call in a new thread, without a larger workspace from an earlier call."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *arguments, **options).result()


def assert_close(result: Real, truth: Real, terms: int) -> None:
    """Rounding of a sum of `terms` products of order 1, in any order: √terms · u each, at most
    about 20 of that (Higham & Mary 2019)."""
    assert result.shape == truth.shape
    allowed = 20 * math.sqrt(terms) * float(np.finfo(result.dtype).eps) * (1 + np.abs(truth).max())
    assert np.abs(result - truth).max() <= allowed
