"""Rows of a table by index, and the sum of rows that share an index, without atomics."""

from __future__ import annotations

import ctypes
from typing import Any

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.cross_entropy import LABELS
from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    MOST_ROWS,
    PROCESSORS,
    REALS,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.passes import add_up
from xbp.accelerators.shared import Array, incoming

Task = structure(
    "Task",
    **dict.fromkeys(("from_", "index", "to"), pointer),
    padding=ctypes.c_longlong,
    **dict.fromkeys(("n", "width", "length"), ctypes.c_int),
)
THREADS = 128  # as in embedding.cu
ENOUGH_BLOCKS = 8 * PROCESSORS
"""Blocks that keep a GPU busy."""
MOST_SCANNED = 2**30
"""Blocks times rows: beyond it, as each block reads the index of each row, sorting is faster."""
MOST_CLEARING = 16 * PROCESSORS
"""The most blocks that write zeros."""


def embedding(tokens: Array, weight: Array, padding: int | None = None) -> Any:
    """See `xbp.primitives.embedding`."""
    if not fits(weight) or tokens.dtype.name not in LABELS or weight.ndim != 2:
        return NotImplemented
    (length, width), n = weight.shape, tokens.size
    if not 0 < n * width < MOST_ENTRIES or n * min(n, length) > MOST_SCANNED:
        return NotImplemented
    machine, dtype, index, weight = machine_of(weight), weight.dtype, dense(tokens), dense(weight)
    y, shape = machine.empty((n, width), dtype), (*tokens.shape, width)
    _run("look_up", y, weight, index, length, (n, 1))
    none = -1 if padding is None else padding

    def backward(dy: Array, wants_dx: bool = True) -> tuple[None, Array]:
        dy = dense(incoming(dy, shape, dtype))
        return None, _sums(dy.reshape(n, width), index, length, none)

    return y.reshape(shape), backward


def scatter_add(values: Array, index: Array, length: int) -> Any:
    """See `xbp.primitives.scatter_add`."""
    if not fits(values) or index.dtype.name not in LABELS or length < 1:
        return NotImplemented
    if index.size * min(index.size, length) > MOST_SCANNED:
        return NotImplemented
    return _sums(dense(values), dense(index), length, -1)


def _sums(values: Array, index: Array, length: int, padding: int) -> Array:
    """∂L/∂W. Blocks are those of the rows, which share the values in parts; or of the values.

    Of the values if there are more rows, unless something else was measured: that are 0 parts.
    """
    (n, width), machine = values.shape, machine_of(values)
    each = length * blocks(width, THREADS)
    most = max(1, min(blocks(n, THREADS), MOST_ROWS, (MOST_ENTRIES - 1) // (length * width)))
    parts = 0 if length > n else max(1, min(blocks(ENOUGH_BLOCKS, each), most))
    decision = tuned.Decision("embedding", values.dtype.name, (n, width, length))
    parts = tuned.number(machine, decision, range(most + 1), parts)
    if not parts:
        total = machine.empty((length, width), values.dtype)
        clearing = min(blocks(total.size, THREADS), MOST_CLEARING)
        _run("clear", total, values, index, length, (clearing, 1))
        _run("scatter_few", total, values, index, length, (n * blocks(width, THREADS), 1), padding)
        return total
    sums = machine.empty((parts, length, width), values.dtype)
    _run("scatter_add", sums, values, index, length, (each, parts), padding)
    return sums[0] if parts == 1 else add_up(sums)


def _run(
    name: str,
    to: Array,
    rows: Array,
    index: Array,
    length: int,
    grid: tuple[int, int],
    padding: int = -1,
) -> None:
    machine = machine_of(to)
    places = map(machine.address, (rows, index, to))
    task = Task(*places, padding=padding, n=index.size, width=to.shape[-1], length=length)
    macros = {"real": REALS[to.dtype.name], "LABEL": LABELS[index.dtype.name]}
    machine.launch(("embedding.cu", name), macros, grid, THREADS, task)


ACCELERATORS = (embedding, scatter_add)
