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
    if not fits(weight, tokens):
        return NotImplemented
    (length, width), dtype, index = weight.shape, weight.dtype, indices(tokens)
    weight, y = contiguous(weight), np.empty((*tokens.shape, width), weight.dtype)
    task = task_of(index, weight, y, None)
    run("look_up", dtype, task, (index, weight), (y,))

    def backward(dy: Real, wants_dx: bool = True) -> tuple[None, Real]:
        dy = incoming(dy, y.shape, dtype)
        return None, sums(dy.reshape(-1, width), index, length, padding)

    return y, backward


def scatter_add(values: Real, index: Real, length: int) -> Any:
    """See `xbp.primitives.scatter_add`."""
    if not fits(values, index) or length < 1:
        return NotImplemented
    return sums(values, indices(index), length, None)


def sums(values: Real, index: Real, length: int, left_out: int | None) -> Real:
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


def fits(values: Real, index: Real) -> bool:
    whole = values.ndim == 2 and values.size > 0 and index.size > 0
    return whole and values.dtype in DTYPES and index.dtype.kind in "iu"


def indices(tokens: Real) -> Real:
    """Tokens as int64 in row-major order."""
    return contiguous(tokens.astype(np.int64, copy=False), tokens)


ACCELERATORS = (embedding, scatter_add)
