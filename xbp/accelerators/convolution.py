"""Convolution, rectifier and maximum in one compiled pass, for numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators import native

Real = NDArray[Any]
Pair = tuple[int, int]
LEAST_IMAGES = 4
"""Below this a block, which has as many lanes as a vector, is so empty that the reference wins."""


def convolve(x: Real, weight: Real, bias: Real | None, stride: Pair, padding: Pair) -> Any:
    """See `xbp.primitives.convolve`."""
    return convolve_rectify_pool(x, weight, bias, stride, padding, relu=False, pool=(1, 1))


def convolve_rectify_pool(
    x: Real,
    weight: Real,
    bias: Real | None,
    stride: Pair,
    padding: Pair,
    *,
    relu: bool,
    pool: Pair,
    row_major: bool = False,
) -> Any:
    """See `xbp.primitives.convolve_rectify_pool`."""
    dtype = x.dtype
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    p, q = padding
    if dtype not in LANES or n < LEAST_IMAGES or p >= kh or q >= kw or pool[0] * pool[1] > 255:
        return NotImplemented
    call, call_backward = functions(dtype)
    oh, ow = (h + 2 * p - kh) // stride[0] + 1, (w + 2 * q - kw) // stride[1] + 1
    rows, columns = oh // pool[0], ow // pool[1]
    if rows == 0 or columns == 0:
        return NotImplemented
    x, weight = addressable(x), np.ascontiguousarray(weight)
    y = empty((n, o, rows, columns), dtype, row_major)
    where = None
    if relu or pool != (1, 1):
        lanes = LANES[dtype]
        where = np.empty(-(-n // lanes) * lanes * o * rows * columns, np.uint8)
    task = native.Convolution(
        x=native.images(x),
        y=native.images(y),
        weight=weight.ctypes.data,
        bias=None if bias is None else bias.ctypes.data,
        where=None if where is None else where.ctypes.data,
        n=n, c=c, h=h, w=w, o=o, kh=kh, kw=kw,
        stride_h=stride[0], stride_w=stride[1], pad_h=p, pad_w=q,
        oh=oh, ow=ow, pool_h=pool[0], pool_w=pool[1],
        relu=relu, threads=native.threads(),
    )  # fmt: skip
    call(task)

    def backward(dy: Real, wants_dx: bool = True) -> tuple[Real | None, Real, Real]:
        dy = addressable(dy)
        dx = empty(x.shape, dtype, False) if wants_dx else None
        dweight, dbias = np.empty(weight.shape, dtype), np.empty(o, dtype)
        task.y = native.images(dy)
        task.dx = native.Images() if dx is None else native.images(dx)
        task.dweight, task.dbias = dweight.ctypes.data, dbias.ctypes.data
        task.where = None if where is None else where.ctypes.data  # and keeps both alive
        call_backward(task)
        return dx, dweight, dbias

    return y, backward


def empty(shape: tuple[int, ...], dtype: Any, row_major: bool) -> Real:
    """Memory for images: rows first and the batch innermost, as `xbp.primitives.images` has it."""
    if row_major:
        return np.empty(shape, dtype)
    n, c, h, w = shape
    return np.empty((h, c, w, n), dtype).transpose(3, 1, 0, 2)


def addressable(array: Real) -> Real:
    """`array`, or a copy, with elements at whole strides from an aligned beginning."""
    whole = not any(stride % array.itemsize for stride in array.strides)
    return array if whole and array.flags.aligned else np.array(array)


def _functions(dtype: np.dtype[Any]) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    library = native.library()

    def checked(name: str) -> Callable[[Any], None]:
        function = getattr(library, f"{name}_{dtype.name}")
        function.argtypes = (ctypes.POINTER(native.Convolution),)

        def call(task: Any) -> None:
            if function(ctypes.byref(task)):
                msg = "the convolution found no memory for its workspace; use a smaller batch"
                raise MemoryError(msg)

        return call

    return checked("convolve"), checked("convolve_backward")


_FUNCTIONS: dict[Any, Any] = {}


def functions(dtype: np.dtype[Any]) -> Any:
    """Forward and backward for a dtype."""
    if dtype not in _FUNCTIONS:
        _FUNCTIONS[dtype] = _functions(dtype)
    return _FUNCTIONS[dtype]


def _lanes() -> dict[Any, int]:
    library = native.library()
    assert library is not None
    return {np.dtype(name): library.xbp_lanes(np.dtype(name).itemsize) for name in ("f4", "f8")}


LANES = _lanes()
ACCELERATORS = (convolve, convolve_rectify_pool)
