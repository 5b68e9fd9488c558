"""Max and average pooling with any windows."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from xbp.accelerators.cuda.launch import (
    REALS,
    as_nchw,
    batch_innermost,
    blocks,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import MOST_PLACES, Array, Pair, incoming
from xbp.primitives.dispatch import of_input
from xbp.primitives.images import output_size

Task = structure("Task", **dict.fromkeys(("x", "dy", "y", "dx", "where"), pointer), n=ctypes.c_int)
THREADS = 128  # as in pooling.cu


def max_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Any:
    """See `xbp.primitives.max_pool`."""
    return _pool(x, kernel_size, stride, padding, average=False)


def average_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Any:
    """See `xbp.primitives.average_pool`."""
    return _pool(x, kernel_size, stride, padding, average=True)


def adaptive_average_pool(x: Array, *, output_size: tuple[int | None, int | None]) -> Any:
    """See `xbp.primitives.adaptive_average_pool`; for windows of one size, side by side."""
    old = x.shape[2:]
    new = [a if b is None else b for a, b in zip(old, output_size, strict=True)]
    if any(b < 1 or a < b or a % b for a, b in zip(old, new, strict=True)):
        return NotImplemented
    window = (old[0] // new[0], old[1] // new[1])
    return average_pool(x, kernel_size=window, stride=window)


def rectified_max_pool(x: Array, size: Pair, *, relu: bool) -> Any:
    """The maximum of windows side by side, after ReLU if `relu`."""
    return _pool(x, size, size, (0, 0), average=False, relu=relu)


def _pool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, *, average: bool, relu: bool = False
) -> Any:
    n, c, h, w = x.shape
    rows, columns = output_size((h, w), kernel, stride, padding)
    if not fits(x) or math.prod(kernel) > MOST_PLACES or min(rows, columns) < 1:
        return NotImplemented
    dtype, machine = x.dtype, machine_of(x)
    x = batch_innermost(x)
    y = machine.empty((c, rows, columns, n), dtype)
    where = None if average else machine.empty(y.shape, "uint8")
    macros = {
        "real": REALS[dtype.name], "AVERAGE": int(average), "RELU": int(relu),
        "C": c, "H": h, "W": w, "KH": kernel[0], "KW": kernel[1],
        "STRIDE_H": stride[0], "STRIDE_W": stride[1], "PAD_H": padding[0], "PAD_W": padding[1],
        "ROWS": rows, "COLUMNS": columns,
    }  # fmt: skip

    def launch(name: str, entries: int, **arrays: Array) -> None:
        given = {key: machine.address(array) for key, array in arrays.items()}
        task = Task(n=n, where=None if where is None else machine.address(where), **given)
        grid = (blocks(entries, THREADS), 1)
        machine.launch(("pooling.cu", name), macros, grid, THREADS, task)

    launch("pool", y.size, x=x, y=y)
    outside, inside, shape = (n, c, rows, columns), x.shape, x.size

    def input_gradient(dy: Array) -> Array:
        dx = machine.empty(inside, dtype)
        launch("pool_to_input", shape, dy=batch_innermost(incoming(dy, outside, dtype)), dx=dx)
        return as_nchw(dx)

    return as_nchw(y), of_input(input_gradient)


ACCELERATORS = (max_pool, average_pool, adaptive_average_pool)
