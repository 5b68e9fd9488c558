"""Compiled passes over numpy arrays: sum, rectifier, rounding, cross-entropy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.arrays import ARGUMENTS, LAYOUT, is_known
from xbp.accelerators.cpu.calls import address, aligned
from xbp.accelerators.shared import dense_order, inverse
from xbp.backend import RECORDING
from xbp.primitives.dispatch import check_gradient, of_input

Real = NDArray[Any]
LEAST_FOR_THREADS = 32768  # as in elementwise.h
LABELS = np.dtype("int64")
DTYPES = {np.dtype("float32"): ctypes.c_float, np.dtype("float64"): ctypes.c_double}


def add(x: Real, other: Real) -> Any:
    """See `xbp.primitives.add`; on all threads, for arrays with the same order in memory."""
    alike = x.dtype == other.dtype and x.shape == other.shape and x.strides == other.strides
    order = dense_order(x) if alike and x.size >= LEAST_FOR_THREADS else None
    if order is None or x.dtype not in DTYPES or not (x.flags.aligned and other.flags.aligned):
        return NotImplemented
    y = empty_in(order, x)
    _call("add", y, x, other)
    return y


def rectify(x: Real) -> Any:
    """See `xbp.primitives.rectify`."""
    return entrywise("rectify", x, LEAST_FOR_THREADS, of_output=True)


def round_to(x: Real, name: str) -> Any:
    """See `xbp.primitives.round_to`; from float32, in the memory order of `x`."""
    if x.dtype != np.float32:
        return NotImplemented
    order = dense_order(x)
    if order is None or not x.flags.aligned:
        x = replay.copied(np.array(x, order="C"), x)
        order = tuple(range(x.ndim))
    y = empty_in(order, x)
    _call(f"round_to_{name}", y, x)
    return y


def cross_entropy(logits: Real, target: Any, scale: float) -> Any:
    """See `xbp.primitives.cross_entropy`; for valid labels only."""
    dtype = logits.dtype
    if not fits(logits, target) or not is_known():
        return NotImplemented
    if target.dtype != LABELS:
        target = target.astype(LABELS)
    logits, target = contiguous(logits), contiguous(target)
    gradient = np.empty(logits.shape, dtype)
    arrays = [logits, target, gradient]
    total = _cross_entropy(dtype)(LAYOUT, id(arrays), scale, native.threads())
    if total != total:
        return NotImplemented  # a nan among the logits or a label out of range; rare
    return dtype.type(scale * total), gradient


def fits(logits: Any, target: Any) -> bool:
    """Whether the kernel computes the cross-entropy of such arrays."""
    if logits.dtype not in DTYPES or target.ndim != 1 or logits.size == 0:
        return False
    return bool(target.shape == logits.shape[:1] and target.dtype.kind in "iu")


# --- calls ---


def entrywise(name: str, x: Real, least: int, *, of_output: bool = False) -> Any:
    """An operation on each entry, one pass forward and one backward, of at least `least` entries.

    Its gradients keep and read x, or with `of_output` y.
    """
    dtype = x.dtype
    if dtype not in DTYPES or x.size < least:
        return NotImplemented
    order = dense_order(x)
    if order is None:
        x, order = np.ascontiguousarray(x), tuple(range(x.ndim))
    y = empty_in(order, x)
    _call(name, y, x)
    kept = y if of_output else x

    def input_gradient(dy: Real) -> Real:
        check_gradient(dy, kept.shape)
        if dy.dtype != dtype or dy.strides != kept.strides:
            laid_out = empty_in(order, kept)
            laid_out[...] = dy
            dy = replay.copied(laid_out, dy)
        dx = empty_in(order, kept)
        _call(f"{name}_backward", dx, kept, dy)
        return dx

    return y, of_input(input_gradient)


def _call(name: str, to: Real, a: Real, b: Real | None = None) -> None:
    function, threads = _pass(name, to.dtype), native.threads()
    function(address(to), address(a), address(b), 0, 0, 0, to.size, threads)
    if RECORDING.tape is not None:
        where = ctypes.cast(function, ctypes.c_void_p)  # type: ignore[arg-type]
        task = replay.PassTask(where, *map(address, (to, a, b)), to.size, threads)
        replay.note(f"pass_task_run_{to.dtype.name}", task, (a, b), (to,))


@cache
def _pass(name: str, dtype: np.dtype[Any]) -> Callable[..., None]:
    real, pointer = DTYPES[dtype], ctypes.c_void_p
    arguments = (*(pointer,) * 3, *(real,) * 3, ctypes.c_int64, ctypes.c_int)
    kernel: Callable[..., None] = native.function(f"{name}_{dtype.name}", arguments, None)
    return kernel


@cache
def _cross_entropy(dtype: np.dtype[Any]) -> Callable[..., float]:
    arguments = (*ARGUMENTS[:2], DTYPES[dtype], ctypes.c_int)
    kernel: Callable[..., float]
    kernel = native.function(f"listed_cross_entropy_{dtype.name}", arguments, ctypes.c_double)
    return kernel


def empty_in(order: tuple[int, ...], like: Real) -> Real:
    """Memory for an array like `like`, with axes in the given memory `order`."""
    shape = [like.shape[axis] for axis in order]
    return aligned(tuple(shape), like.dtype).transpose(inverse(order))


ACCELERATORS = (add, rectify, round_to, cross_entropy)
