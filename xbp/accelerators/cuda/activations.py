"""Sums, ReLU, tanh, the logistic function, SiLU, GELU, rounding: one pass in each direction."""

from __future__ import annotations

import ctypes
from typing import Any

from xbp.accelerators.cuda.launch import (
    PROCESSORS,
    REALS,
    blocks,
    dense,
    fits,
    lanes,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, dense_order, incoming, inverse
from xbp.primitives.dispatch import of_input

Task = structure("Task", x=pointer, dy=pointer, to=pointer, size=ctypes.c_longlong)
THREADS = 256  # as in activations.cu
MOST_BLOCKS = 32 * PROCESSORS
"""The most blocks of a pass; in larger arrays each thread takes several loads."""
KEEP_Y = frozenset({"rectify", "tangent", "logistic"})
"""Functions whose slope is known from their value; as in activations.h."""


def add(x: Array, other: Array) -> Any:
    """See `xbp.primitives.add`; in the memory order of `x`, if that has no gaps."""
    order = dense_order(x)
    if not fits(x, other) or x.shape != other.shape or order is None:
        return NotImplemented
    laid_out = x.transpose(order)
    total = machine_of(x).empty(laid_out.shape, x.dtype)
    _run("add", "identity", total, laid_out, dense(other.transpose(order)))
    return total.transpose(inverse(order))


def rectify(x: Array) -> Any:
    """See `xbp.primitives.rectify`."""
    return _activate("rectify", x)


def tanh(x: Array) -> Any:
    """See `xbp.primitives.tanh`."""
    return _activate("tangent", x)


def logistic(x: Array) -> Any:
    """See `xbp.primitives.logistic`."""
    return _activate("logistic", x)


def sigmoid(x: Array) -> Any:
    """See `xbp.primitives.sigmoid`."""
    result = logistic(x)
    return result if result is NotImplemented else result[0]


def silu(x: Array) -> Any:
    """See `xbp.primitives.silu`."""
    return _activate("silu", x)


def gelu(x: Array, *, approximate: str = "none") -> Any:
    """See `xbp.primitives.gelu`."""
    return _activate(kernel_of("gelu", approximate), x)


def round_to(x: Array, name: str) -> Any:
    """See `xbp.primitives.round_to`; from float32, in the memory order of `x`."""
    if x.dtype.name != "float32" or not fits(x):
        return NotImplemented
    order = dense_order(x)
    if order is None:
        x, order = dense(x), tuple(range(x.ndim))
    laid_out = x.transpose(order)
    y = machine_of(x).empty(laid_out.shape, x.dtype)
    _run("activate", f"round_to_{name}", y, laid_out)
    return y.transpose(inverse(order))


def kernel_of(name: str, approximate: str = "none") -> str:
    """The struct in activations.h of a primitive with its options."""
    if approximate != "none":
        return "gelu_by_tanh"
    return {"tanh": "tangent"}.get(name, name)


def _activate(kernel: str, x: Array) -> Any:
    order = dense_order(x)
    if not fits(x) or order is None:
        return NotImplemented
    machine, dtype, shape, back = machine_of(x), x.dtype, x.shape, inverse(order)
    laid_out = x.transpose(order)
    y = machine.empty(laid_out.shape, dtype)
    _run("activate", kernel, y, laid_out)
    kept = y if kernel in KEEP_Y else laid_out

    def input_gradient(dy: Array) -> Array:
        dy = dense(incoming(dy, shape, dtype).transpose(order))
        return _through(kernel, kept, dy).transpose(back)

    return y.transpose(back), of_input(input_gradient)


def through_rectifier(y: Array, dy: Array) -> Array:
    """∂L/∂x of y = max(x, 0), for dense arrays."""
    return _through("rectify", y, dy)


def _through(kernel: str, kept: Array, dy: Array) -> Array:
    dx = machine_of(kept).empty(kept.shape, kept.dtype)
    _run("activate_to_input", kernel, dx, kept, dy)
    return dx


def _run(name: str, kernel: str, to: Array, x: Array, dy: Array | None = None) -> None:
    machine = machine_of(to)
    places = [None if array is None else machine.address(array) for array in (x, dy, to)]
    vector = lanes(to.dtype, to.size, *places)
    macros = {"real": REALS[to.dtype.name], "VECTOR": vector, "ACTIVATION": kernel}
    grid = (min(blocks(to.size // vector, THREADS), MOST_BLOCKS), 1)
    task = Task(*places, size=to.size)
    machine.launch(("activations.cu", name), macros, grid, THREADS, task)


ACCELERATORS = (add, rectify, tanh, logistic, sigmoid, silu, gelu, round_to)
