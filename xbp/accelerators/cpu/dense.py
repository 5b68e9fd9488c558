"""Chains of small linear layers and activations, forward and backward one compiled call each."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.affine import LEAST_FOR_THREADS, LEAST_ROWS, contiguous
from xbp.accelerators.cpu.arrays import ARGUMENTS, LAYOUT, is_known
from xbp.accelerators.cpu.calls import DTYPES, incoming
from xbp.backend import RECORDING

Real = NDArray[Any]
MOST_WEIGHTS = 2**14
"""In a layer; a larger one is read from memory for each block of rows, and affine.h is as fast."""
MOST_WEIGHTS_OF_FEW_ROWS = 2**10
"""Turning more weights takes longer than the products of a row or two."""
MOST_KEPT = 2**25  # bytes of hidden layers; inference would hold them all at once
ACTIVATIONS = {None: 0, "rectify": 1, "tanh": 2, "logistic": 3}  # as in dense.h
MOST_LAYERS = 16  # as there


def dense(x: Real, *parameters: Real | None, activations: tuple[str | None, ...]) -> Any:
    """Linear layers one after the other, and after each an activation or None.

    Parameters
    ----------
    x : array (…, in)
    *parameters : weight (out, in), and bias (out,) or None, of each layer
    activations : tuple
        The names of primitives.

    Returns
    -------
    y : array (…, out)
    gradients : callable
        From ∂L/∂y to ∂L/∂x, and ∂L/∂W and ∂L/∂b of the last layer, of the one before, ….
    """
    dtype, count = x.dtype, len(activations)
    if len(parameters) != 2 * count or dtype not in DTYPES or not is_known():
        return NotImplemented
    shapes = tuple([None if weight is None else weight.shape for weight in parameters[::2]])
    found = _sizes(x.shape, shapes, dtype.itemsize, native.lanes(dtype.itemsize))
    if found is None:
        return NotImplemented
    shape, kept, products = found
    y, hidden = np.empty(shape, dtype), np.empty(kept, dtype)
    threads = native.threads() if products >= LEAST_FOR_THREADS else 1
    known = dtype.num, _codes(activations), count, threads
    arrays: list[Any] = [x, y, hidden, *parameters]
    failed = _kernel("dense", dtype)(LAYOUT, id(arrays), *known)
    if failed == 1:  # another memory order, or no such network
        arrays = [None if array is None else contiguous(array) for array in arrays]
        failed = _kernel("dense", dtype)(LAYOUT, id(arrays), *known)
    if failed:
        return _refused(failed)
    if RECORDING.tape is not None:
        _note(arrays, dtype, known, (x, *parameters), (y, hidden))

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Real | None, ...]:
        dy = contiguous(incoming(dy, y.shape, dtype))
        dx = np.empty(x.shape, dtype) if wants_dx else None
        found = [None if array is None else np.empty(array.shape, dtype) for array in parameters]
        everything = [*arrays, dy, dx, *found]
        if failed := _kernel("dense_backward", dtype)(LAYOUT, id(everything), *known):
            _refused(failed)
        if RECORDING.tape is not None:
            _note(everything, dtype, known, (*arrays, dy), (dx, *found), backward=True)
        own: list[Real | None] = []
        for first in range(2 * count - 2, -1, -2):
            own += found[first : first + 2]
        return dx, *own

    return y, gradients


def _note(
    arrays: list[Any],
    dtype: np.dtype[Any],
    known: tuple[int, bytes, int, int],
    read: Sequence[Real | None],
    written: Sequence[Real | None],
    backward: bool = False,
) -> None:
    """Put a call, which has been made, on the tape; see `known` in `dense`."""
    number, codes, count, threads = known
    task = replay.DenseTask(
        ctypes.pointer(LAYOUT), id(arrays), codes, count, number, threads, backward
    )
    replay.note(f"dense_task_run_{dtype.name}", task, read, written, arrays, codes)


@lru_cache(256)
def _sizes(
    shape: tuple[int, ...], weights: tuple[tuple[int, ...] | None, ...], itemsize: int, lanes: int
) -> tuple[tuple[int, ...], int, int] | None:
    """The output's shape, the numbers of hidden layers to keep, and the products.

    None for other sizes than those at which one call is faster than one for each layer.
    """
    if not shape or 0 in shape:
        return None
    rows, products, kept = math.prod(shape[:-1]), 0, 0
    most = MOST_WEIGHTS if rows >= LEAST_ROWS else MOST_WEIGHTS_OF_FEW_ROWS
    out = wide = 0
    for weight in weights:
        if weight is None or len(weight) != 2 or not 0 < math.prod(weight) <= most:
            return None
        products += rows * math.prod(weight)
        out = weight[0]
        wide = -(-out // lanes) * lanes * rows
        kept += wide
    if kept * itemsize > MOST_KEPT:
        return None
    return (*shape[:-1], out), kept - wide, products


@cache
def _codes(activations: tuple[str | None, ...]) -> bytes:
    return bytes(ACTIVATIONS[name] for name in activations)


def _refused(failed: int) -> Any:
    if failed == 1:
        return NotImplemented
    msg = "a chain of linear layers found no memory for its workspace; use a smaller batch"
    raise MemoryError(msg)


@cache
def _kernel(name: str, dtype: np.dtype[Any]) -> Callable[..., int]:
    arguments = (*ARGUMENTS, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int)
    kernel: Callable[..., int] = native.function(f"{name}_{dtype.name}", arguments)
    return kernel
