"""Matrix products that can be captured into a CUDA graph, and the linear layer.

CuPy raises NotImplementedError for every call of cuBLAS while a stream is captured (cupy#6290).
Therefore

- small products use a kernel of our own, `product.cu`: one launch, which takes less time than
  cuBLAS takes to choose a kernel;
- large ones use cuBLAS by a handle of our own, `cublas.py`;
- without cuBLAS, our own kernel does all products.

Eager and captured steps make the same choice, and so give the same bits.
"""

from __future__ import annotations

import ctypes
from typing import Any

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

Task = structure(
    "Task",
    **dict.fromkeys(("a", "b", "bias", "mask", "c", "sums"), pointer),
    **dict.fromkeys(("a_row", "a_column", "b_row", "b_column"), ctypes.c_longlong),
    **dict.fromkeys(("m", "n", "k"), ctypes.c_int),
)
THREADS = 256  # as in product.cu
LEAST_LARGE = 2**25
"""The least m · n · k for cuBLAS. A guess, to be measured."""
MOST_COLUMNS = 65535 * 16
"""CUDA's limit of a grid's second dimension, in columns of the smallest tile."""


def matmul(a: Array, b: Array) -> Any:
    """See `xbp.primitives.matmul`; for any number of leading axes of `a`, none of `b`."""
    if b.ndim != 2 or a.ndim < 2 or a.shape[-1] != b.shape[0] or not fits(a, b):
        return NotImplemented
    if b.shape[1] > MOST_COLUMNS:
        return NotImplemented
    shape = (*a.shape[:-1], b.shape[1])
    a = a.reshape(-1, a.shape[-1])
    if is_large(a, b):
        machine = machine_of(a)
        c = machine.empty((a.shape[0], b.shape[1]), a.dtype)
        if machine.multiply(a, b, c):
            return c.reshape(shape)
    return multiply(a, b)[0].reshape(shape)


def affine(x: Array, weight: Array, bias: Array | None = None, *, relu: bool = False) -> Any:
    """See `xbp.primitives.affine`; then ReLU if `relu`. For products too small for cuBLAS."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        return NotImplemented
    if not fits(x, weight, bias) or (bias is not None and bias.shape != weight.shape[:1]):
        return NotImplemented
    rows = x.reshape(-1, x.shape[-1])
    if is_large(rows, weight.T) or max(weight.shape) > MOST_COLUMNS:
        return NotImplemented
    y, _ = multiply(rows, weight.T, bias=bias, relu=relu)
    mask = y if relu else None
    shape, inside, dtype = (*x.shape[:-1], y.shape[1]), x.shape, x.dtype

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        delta = dense(incoming(dy, shape, dtype)).reshape(y.shape)
        turned = None if mask is None else mask.T
        dweight, dbias = multiply(delta.T, rows, mask=turned, sums=bias is not None)
        dx = multiply(delta, weight, mask=mask)[0].reshape(inside) if wants_dx else None
        return dx, dweight, dbias

    return y.reshape(shape), gradients


def multiply(
    a: Array,
    b: Array,
    *,
    bias: Array | None = None,
    relu: bool = False,
    mask: Array | None = None,
    sums: bool = False,
) -> tuple[Array, Array | None]:
    """a b + bias, rectified if `relu`, by the kernel, and optionally the sums of the rows of a.

    a counts as 0 where `mask`, an array of a's memory layout, is not positive.
    """
    (m, k), n, machine = a.shape, b.shape[1], machine_of(a)
    c = machine.empty((m, n), a.dtype)
    totals = machine.empty((m,), a.dtype) if sums else None
    (a_row, a_column), (b_row, b_column) = steps(a), steps(b)
    bias = None if bias is None else dense(bias)
    places = {"a": a, "b": b, "c": c, "bias": bias, "mask": mask, "sums": totals}
    task = Task(
        **{name: machine.address(it) for name, it in places.items() if it is not None},
        a_row=a_row, a_column=a_column, b_row=b_row, b_column=b_column, m=m, n=n, k=k,
    )  # fmt: skip
    # Large tiles read less, but need one tile for each multiprocessor.
    side = 64 if blocks(m, 64) * blocks(n, 64) >= 132 else 16
    macros = {"real": REALS[a.dtype.name], "SIDE": side, "RELU": int(relu)}
    macros |= {"MASKED": int(mask is not None), "SUMS": int(sums)}
    grid = (blocks(m, side), blocks(n, side))
    machine.launch(("product.cu", "multiply"), macros, grid, THREADS, task)
    return c, totals


def is_large(a: Array, b: Array) -> bool:
    """Whether cuBLAS should take a product."""
    return bool(a.shape[0] * a.shape[1] * b.shape[1] >= LEAST_LARGE)


def steps(matrix: Array) -> tuple[int, int]:
    """The strides of rows and columns, in entries."""
    rows, columns = matrix.strides
    return rows // matrix.itemsize, columns // matrix.itemsize


ACCELERATORS = (matmul, affine)
