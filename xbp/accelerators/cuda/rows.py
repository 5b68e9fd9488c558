"""Rows of tables in one launch: the samples of a batch, and the numbers and results of a step."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

THREADS, MOST, SIDE = 256, 8, 32  # as in rows.h and rows.cu
WORDS = (16, 8, 4, 2, 1)

Table = structure(
    "Table", to=pointer, source=pointer, words=ctypes.c_longlong,
    **dict.fromkeys(("bytes", "columns", "samples"), ctypes.c_int),
)  # fmt: skip
Taking = structure(
    "Taking", of=Table * MOST, **dict.fromkeys(("at", "order", "starts"), pointer),
    **dict.fromkeys(("width", "first", "step"), ctypes.c_longlong), count=ctypes.c_int,
)  # fmt: skip


def take_row(index: Array, *tables: Array) -> Any:
    """See `xbp.primitives.take_row`."""
    if not is_number(index, (1,)):
        return NotImplemented
    return _take(Taking(at=machine_of(index).address(index)), tables)


def gather(order: Array, start: Array, span: tuple[int, int, int], *arrays: Array) -> Any:
    """See `xbp.primitives.gather`. Images are stored as convolutions read them, batch innermost."""
    if not is_number(start, ()) or not is_number(order, order.shape[:1]):
        return NotImplemented
    task = Taking(at=machine_of(order).address(start))
    return _take(task, (), arrays, order, span)


def take_step(
    index: Array,
    order: Array,
    span: tuple[int, int, int],
    tables: tuple[Array, ...],
    arrays: tuple[Array, ...],
) -> Any:
    """See `xbp.primitives.take_step`: in one launch, for which each block finds the start."""
    places = tables[0]
    if not is_number(index, (1,)) or not is_number(order, order.shape[:1]):
        return NotImplemented
    if places.ndim != 2 or not is_number(places, places.shape):
        return NotImplemented
    address = machine_of(index).address
    task = Taking(at=address(index), starts=address(places), width=places.shape[1])
    found = _take(task, tables, arrays, order, span)
    if found is NotImplemented:
        return NotImplemented
    return found[: len(tables)], found[len(tables) :]


def is_number(array: Array, shape: tuple[int, ...]) -> bool:
    """Whether an array consists of 64-bit integers, one after the other, and has this shape."""
    return bool(array.dtype.name == "int64" and array.shape == shape and array.flags.c_contiguous)


def append_row(index: Array, *tables_and_values: Array) -> Any:
    """See `xbp.primitives.append_row`."""
    task, _kept = _appended(index, tables_and_values)
    if task is None:
        return NotImplemented
    machine_of(index).launch(("rows.cu", "append"), {}, (1, 1), THREADS, task)
    return None


def appending(index: Array, *tables_and_values: Array) -> Any:
    """See `xbp.primitives.appending`: in the next launch of `passes`, if there is one."""
    task, kept = _appended(index, tables_and_values)
    return NotImplemented if task is None else _waiting(index, task, kept)


class _Waiting(threading.local):
    """Rows that this thread has to append, with the first launch that can take them along."""

    index: Array = None
    task: Any = None


_WAITING = _Waiting()


@contextmanager
def _waiting(index: Array, task: ctypes.Structure, kept: object) -> Iterator[None]:
    before = _WAITING.index, _WAITING.task
    _WAITING.index, _WAITING.task = index, task
    try:
        yield
        if rider_for(index) is task:
            machine_of(index).launch(("rows.cu", "append"), {}, (1, 1), THREADS, task)
    finally:
        _WAITING.index, _WAITING.task = before


def rider_for(array: Array) -> Any:
    """The task of rows that wait for a launch on the device of an array, no longer; or None."""
    index, task = _WAITING.index, _WAITING.task
    if task is None or type(index) is not type(array) or index.device != array.device:
        return None
    _WAITING.index = _WAITING.task = None
    return task


def _appended(index: Array, arrays: tuple[Array, ...]) -> tuple[Any, tuple[Array, ...]]:
    """The task of appending values to tables, and the arrays that it reads; None if it cannot."""
    count = len(arrays) // 2
    tables, values = arrays[:count], arrays[count:]
    if not is_number(index, (1,)) or not are_tables(tables):
        return None, ()
    for table, value in zip(tables, values, strict=True):
        if value.dtype != table.dtype or value.shape != table.shape[1:]:
            return None, ()
    task = Taking(at=machine_of(index).address(index), count=count)
    values = tuple(map(dense, values))
    for it, table, value in zip(task.of, tables, values, strict=False):
        _copy(it, table, value, value.nbytes)
    return task, values


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


def _take(
    task: ctypes.Structure,
    tables: tuple[Array, ...],
    arrays: tuple[Array, ...] = (),
    order: Array = None,
    span: tuple[int, int, int] = (0, 1, 1),
) -> Any:
    """A row of each table, and the rows of each array that are a batch."""
    count = len(range(*span))
    if not are_tables((*tables, *arrays)) or not 0 < count < MOST_ENTRIES:
        return NotImplemented
    machine, results, most = machine_of((*tables, *arrays)[0]), [], 1
    if arrays:
        task.order, task.first, task.step = machine.address(order), span[0], span[2]
    for it, table in zip(task.of, tables, strict=False):
        row = machine.empty(table.shape[1:], table.dtype)
        _copy(it, row, table, row.nbytes)
        results.append(row)
    for it, array in zip(task.of[len(tables) :], arrays, strict=False):
        it.samples = count
        if is_images(array):
            memory = machine.empty((*array.shape[1:], count), array.dtype)
            it.to, it.source = machine.address(memory), machine.address(array)
            it.words, it.bytes, it.columns = memory.size // count, array.itemsize, count
            most = max(most, blocks(it.words, SIDE) * blocks(count, SIDE))
            results.append(as_nchw(memory))
        else:
            memory = machine.empty((count, *array.shape[1:]), array.dtype)
            _copy(it, memory, array, memory.nbytes // count)
            most = max(most, count)
            results.append(memory)
    machine.launch(("rows.cu", "take"), {}, (most, len(results)), THREADS, task)
    return tuple(results)


def is_images(table: Array) -> bool:
    """Whether a table has images, (N, C, H, W) real numbers, as convolutions take them."""
    return table.ndim == 4 and table.dtype.name in REALS


ACCELERATORS = (take_row, gather, take_step, append_row, appending)
