"""Chains of small linear layers and activations, forward and backward one compiled call each."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
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
    weights = parameters[::2]
    if (
        len(parameters) != 2 * count
        or dtype not in DTYPES
        or not x.size
        or not x.ndim
        or not is_known()
    ):
        return NotImplemented
    rows, products, kept, lanes = x.size // x.shape[-1], 0, 0, native.lanes(dtype.itemsize)
    most = MOST_WEIGHTS if rows >= LEAST_ROWS else MOST_WEIGHTS_OF_FEW_ROWS
    for weight in weights:
        if weight is None or weight.ndim != 2 or not 0 < weight.size <= most:
            return NotImplemented
        products += rows * weight.size
        out = len(weight)
        wide = -(-out // lanes) * lanes * rows
        kept += wide
    if kept * dtype.itemsize > MOST_KEPT:
        return NotImplemented
    hidden = np.empty(kept - wide, dtype)
    y = np.empty((*x.shape[:-1], out), dtype)
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
        dx = np.empty_like(arrays[0]) if wants_dx else None
        found = [None if array is None else np.empty_like(array) for array in arrays[3:]]
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
