"""Rows of tables in one launch: the samples of a batch, and the numbers and results of a step."""

from __future__ import annotations

import ctypes
from typing import Any

from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    REALS,
    as_nchw,
    blocks,
    dense,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array

THREADS, MOST, SIDE = 256, 8, 32  # as in rows.cu
WORDS = (16, 8, 4, 2, 1)

Table = structure(
    "Table", to=pointer, source=pointer, words=ctypes.c_longlong, bytes=ctypes.c_int,
    columns=ctypes.c_int,
)  # fmt: skip
Taking = structure(
    "Taking", of=Table * MOST, at=pointer, order=pointer, first=ctypes.c_longlong,
    step=ctypes.c_longlong, count=ctypes.c_int,
)  # fmt: skip


def take_row(index: Array, *tables: Array) -> Any:
    """See `xbp.primitives.take_row`."""
    if not is_number(index, (1,)):
        return NotImplemented
    found = _take(Taking(at=machine_of(index).address(index)), 1, tables)
    return found if found is NotImplemented else tuple(rows[0, ...] for rows in found)


def gather(order: Array, start: Array, span: tuple[int, int, int], *arrays: Array) -> Any:
    """See `xbp.primitives.gather`. Images are stored as convolutions read them, batch innermost."""
    count = len(range(*span))
    if not is_number(start, ()) or not is_number(order, order.shape[:1]) or not count:
        return NotImplemented
    address = machine_of(order).address
    task = Taking(at=address(start), order=address(order), first=span[0], step=span[2])
    return _take(task, count, arrays)


def is_number(array: Array, shape: tuple[int, ...]) -> bool:
    """Whether an array consists of 64-bit integers, one after the other, and has this shape."""
    return bool(array.dtype.name == "int64" and array.shape == shape and array.flags.c_contiguous)


def append_row(index: Array, *tables_and_values: Array) -> Any:
    """See `xbp.primitives.append_row`."""
    count = len(tables_and_values) // 2
    tables, values = tables_and_values[:count], tables_and_values[count:]
    if not is_number(index, (1,)) or not are_tables(tables):
        return NotImplemented
    for table, value in zip(tables, values, strict=True):
        if value.dtype != table.dtype or value.shape != table.shape[1:]:
            return NotImplemented
    machine = machine_of(index)
    task = Taking(at=machine.address(index), count=count)
    values = tuple(map(dense, values))
    for it, table, value in zip(task.of, tables, values, strict=False):
        _copy(it, table, value, value.nbytes)
    machine.launch(("rows.cu", "append"), {}, (1, 1), THREADS, task)
    return None


def are_tables(arrays: tuple[Array, ...]) -> bool:
    """Whether rows of the arrays can be copied in one launch."""
    whole = all(array.size and array.flags.c_contiguous for array in arrays)
    return 0 < len(arrays) <= MOST and whole


def _copy(it: Any, to: Array, source: Array, row: int) -> None:
    """Let a table of a task be copied, in words that divide a row, of `row` bytes."""
    address = machine_of(to).address
    it.to, it.source = address(to), address(source)
    places = it.to, it.source, row
    it.bytes = next(word for word in WORDS if not any(place % word for place in places))
    it.words = row // it.bytes


def _take(task: ctypes.Structure, count: int, tables: tuple[Array, ...]) -> Any:
    """`count` rows of each table."""
    if not are_tables(tables) or count >= MOST_ENTRIES:
        return NotImplemented
    machine, results, most = machine_of(tables[0]), [], count
    address, task.count = machine.address, count
    for it, table in zip(task.of, tables, strict=False):
        if task.order and is_images(table):
            memory = machine.empty((*table.shape[1:], count), table.dtype)
            it.to, it.source = address(memory), address(table)
            it.words, it.bytes, it.columns = memory.size // count, table.itemsize, count
            most = max(most, blocks(it.words, SIDE) * blocks(count, SIDE))
            results.append(as_nchw(memory))
        else:
            memory = machine.empty((count, *table.shape[1:]), table.dtype)
            _copy(it, memory, table, memory.nbytes // count)
            results.append(memory)
    machine.launch(("rows.cu", "take"), {}, (most, len(tables)), THREADS, task)
    return tuple(results)


def is_images(table: Array) -> bool:
    """Whether a table has images, (N, C, H, W) real numbers, as convolutions take them."""
    return table.ndim == 4 and table.dtype.name in REALS


ACCELERATORS = (take_row, gather, append_row)
