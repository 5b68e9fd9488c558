"""Compiled rows of a table by index, and sums of rows that share an index, for numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.affine import contiguous
from xbp.accelerators.cpu.calls import DTYPES, address, incoming, run

Real = NDArray[Any]
LEAST_FOR_THREADS = 2**16


def embedding(tokens: Real, weight: Real, padding: int | None = None) -> Any:
    """See `xbp.primitives.embedding`."""
    dtype = weight.dtype
    if dtype not in DTYPES or weight.ndim != 2 or tokens.dtype.kind not in "iu":
        return NotImplemented
    if not (weight.size and tokens.size):
        return NotImplemented
    (length, width), index = weight.shape, contiguous(tokens.astype(np.int64, copy=False), tokens)
    weight, y = contiguous(weight), np.empty((*tokens.shape, width), weight.dtype)
    task = task_of(index, weight, y, None)
    run("look_up", dtype, task, (index, weight), (y,))

    def backward(dy: Real, wants_dx: bool = True) -> tuple[None, Real]:
        dy = contiguous(incoming(dy, y.shape, dtype))
        return None, sums(dy.reshape(-1, width), index, length, padding)

    return y, backward


def sums(values: Real, index: Real, length: int, left_out: int | None = None) -> Real:
    """`xbp.primitives.scatter_add`, without the rows of an index that is left out."""
    values, total = contiguous(values), np.empty((length, values.shape[1]), values.dtype)
    task = task_of(index, total, values, left_out)
    run("scatter_add", values.dtype, task, (index, values), (total,))
    return total


def task_of(index: Real, table: Real, rows: Real, left_out: int | None) -> native.Lookup:
    return native.Lookup(
        index=address(index), table=address(table), rows=address(rows),
        n=index.size, length=table.shape[0], width=table.shape[1],
        left_out=-1 if left_out is None else left_out,
        threads=native.threads() if rows.size >= LEAST_FOR_THREADS else 1,
    )  # fmt: skip


ACCELERATORS = (embedding,)
