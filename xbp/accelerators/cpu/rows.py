"""Compiled passes along rows of at least a vector: softmax, normalization over the last axes.

A softmax errs by at most 5 + |x - max x| units in the last place, as x - max x is rounded, and by
the rounding error of its sum, which is taken in as many parts as a vector has lanes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.calls import DTYPES, address, addressable, incoming, run
from xbp.accelerators.cpu.elementwise import empty_in
from xbp.accelerators.shared import dense_order
from xbp.primitives.dispatch import of_input

Real = NDArray[Any]
ROWS_OF_BLOCK = 32
MOST_BLOCKS = native.MOST_THREADS
"""Gradients of parameters are sums over blocks of rows, whatever the number of threads."""


def softmax(x: Real, *, axis: int) -> Any:
    """See `xbp.primitives.softmax`; along the innermost axis in memory."""
    dtype, order = x.dtype, dense_order(x)
    if dtype not in DTYPES or x.size == 0 or order is None or order[-1] != axis % x.ndim:
        return NotImplemented
    x, c = addressable(x), x.shape[axis]
    if c < native.lanes(dtype.itemsize):
        return NotImplemented
    y = empty_in(order, x)
    sizes = {"n": x.size // c, "c": c, "threads": native.threads()}
    run("softmax", dtype, native.Rows(x=address(x), y=address(y), **sizes), (x,), (y,))

    def input_gradient(dy: Real) -> Real:
        dy = incoming(dy, y.shape, dtype)
        if dy.strides != y.strides:
            laid_out = empty_in(order, y)
            laid_out[...] = dy
            dy = replay.copied(laid_out, dy)
        dx = empty_in(order, y)
        task = native.Rows(y=address(y), dy=address(dy), dx=address(dx), **sizes)
        run("softmax_backward", dtype, task, (y, dy), (dx,))
        return dx

    return y, of_input(input_gradient)


def normalize(
    x: Real,
    weight: Real | None,
    bias: Real | None,
    *,
    axes: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> Any:
    """See `xbp.primitives.normalize`; over the last axes, with w and b of their shape."""
    dtype, shape = x.dtype, x.shape[x.ndim - len(axes) :]
    last = tuple(range(x.ndim - len(axes), x.ndim))
    if dtype not in DTYPES or x.size == 0 or not axes or tuple(axes) != last:
        return NotImplemented
    for array in (weight, bias):
        if array is not None and (array.dtype != dtype or array.shape != shape):
            return NotImplemented
    c = math.prod(shape)
    if c < native.lanes(dtype.itemsize):
        return NotImplemented
    x, n = contiguous(x), x.size // c
    w, b = (None if array is None else contiguous(array) for array in (weight, bias))
    y, moments = np.empty(x.shape, dtype), np.empty((n, 3), dtype)
    blocks = min(-(-n // ROWS_OF_BLOCK), MOST_BLOCKS)

    def task(**others: Any) -> native.Rows:
        places = {"x": address(x), "weight": address(w), "moments": address(moments)}
        sizes = {"n": n, "c": c, "blocks": blocks, "threads": native.threads()}
        return native.Rows(**places, **sizes, centre=centre, **others)

    run("normalize", dtype, task(y=address(y), bias=address(b), eps=eps), (x, w, b), (y, moments))

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Real | None, ...]:
        dy = contiguous(incoming(dy, x.shape, dtype))
        dx = np.empty(x.shape, dtype) if wants_dx else None
        sums = np.empty((blocks, 2, c), dtype)
        wanted = task(dy=address(dy), dx=address(dx), sums=address(sums))
        run("normalize_backward", dtype, wanted, (x, w, moments, dy), (dx, sums))
        along, level = (total.reshape(shape) for total in sums[0])
        return dx, None if weight is None else along, None if bias is None else level

    return y, gradients


ACCELERATORS = (softmax, normalize)
