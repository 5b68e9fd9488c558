"""Softmax of rows; attention by products, which reads its scores once between them."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.launch import (
    REALS,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, incoming
from xbp.primitives.dispatch import of_input
from xbp.primitives.product import matmul

Task = structure(
    "Task",
    **dict.fromkeys(("x", "dy", "mask", "ignored", "to", "masked"), pointer),
    scale=ctypes.c_double,
    **dict.fromkeys(("rows", "size", "queries", "of_sample"), ctypes.c_int),
)
THREADS, WARP = 256, 32  # as in softmax.cu
LONG = 2048
"""From this size on a block shares a row, below it a warp; an estimate."""
LANES = (WARP, 64, 128, THREADS)
"""How many threads may share a row."""


def softmax(x: Array, *, axis: int) -> Any:
    """See `xbp.primitives.softmax`; along the last axis."""
    if not fits(x) or axis % x.ndim != x.ndim - 1:
        return NotImplemented
    machine, dtype, shape, x = machine_of(x), x.dtype, x.shape, dense(x)
    y = machine.empty(shape, dtype)
    _run("softmax", y, x=x)

    def input_gradient(dy: Array) -> Array:
        dx = machine.empty(shape, dtype)
        _run("softmax_to_input", dx, x=y, dy=dense(incoming(dy, shape, dtype)))
        return dx

    return y, of_input(input_gradient)


def suits(q: Array, k: Array, v: Array, ignored: Array | None, mask: Array | None) -> bool:
    """Whether arrays are such as the kernels of attention take them."""
    n, heads, queries, _ = q.shape
    keys = k.shape[2]
    return (
        fits(q, k, v, mask)
        and n * heads * queries * keys > 0
        and (ignored is None or (ignored.dtype.name, ignored.shape) == ("bool", (n, keys)))
        and (mask is None or mask.shape == (n, heads, queries, keys))
    )


def attention(
    q: Array,
    k: Array,
    v: Array,
    ignored: Array | None = None,
    mask: Array | None = None,
    *,
    causal: bool = False,
) -> Any:
    """See `xbp.primitives.attention`; by products. See `attention.pays` for what takes its place.

    The softmax's Jacobian needs Σ_j P_j ∂L/∂P_j, which is taken from the row itself.
    """
    if not suits(q, k, v, ignored, mask):
        return NotImplemented
    _, heads, queries, width = q.shape
    machine, dtype = machine_of(q), q.dtype
    q, k, v = dense(q), dense(k), dense(v)  # heads, which each product would copy
    weights = dense(matmul(q, k.swapaxes(2, 3)))
    masked = weights if mask is None else machine.empty(weights.shape, dtype)
    given = {
        "mask": None if mask is None else dense(mask),
        "ignored": None if ignored is None else dense(ignored),
    }
    sizes = {"scale": 1 / math.sqrt(width), "queries": queries, "of_sample": heads * queries}
    _run("attend", weights, causal, sizes, masked=masked, **given)
    y = matmul(masked, v)
    shape = y.shape

    def backward(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array]:
        dy = dense(incoming(dy, shape, dtype))
        dv = matmul(masked.swapaxes(2, 3), dy)
        ds = dense(matmul(dy, v.swapaxes(2, 3)))
        _run("attend_to_scores", ds, causal, sizes, x=weights, **given)
        return matmul(ds, k) if wants_dx else None, matmul(ds.swapaxes(2, 3), q), dv

    return y, backward


def _run(
    name: str,
    to: Array,
    causal: bool = False,
    sizes: dict[str, Any] | None = None,
    **arrays: Array | None,
) -> None:
    machine, size = machine_of(to), to.shape[-1]
    rows = to.size // size
    decision = tuned.Decision("softmax", f"{to.dtype.name} {name}", (rows, size))
    lanes = tuned.number(machine, decision, LANES, WARP if size < LONG else THREADS)
    macros = {"real": REALS[to.dtype.name], "LANES": lanes, "CAUSAL": int(causal)}
    given = {
        key: machine.address(array)
        for key, array in {"to": to, **arrays}.items()
        if array is not None
    }
    task = Task(rows=rows, size=size, **(sizes or {}), **given)
    grid = (blocks(rows * lanes, THREADS), 1)
    machine.launch(("softmax.cu", name), macros, grid, THREADS, task)


ACCELERATORS = (softmax,)
