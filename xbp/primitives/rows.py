"""Rows of tables at positions on the device, read or written by a recorded step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


@primitive
def take_row(index: Array, *tables: Array) -> tuple[Array, ...]:
    """tables[i][index] of each table.

    Parameters
    ----------
    index : array (1,) of int64
        From 0 to the number of rows - 1.
    *tables : arrays (rows, …)
    """
    take = array_namespace(index).take
    return tuple(take(table, index, axis=0)[0, ...] for table in tables)


@primitive
def gather(
    order: Array, start: Array, span: tuple[int, int, int], *arrays: Array
) -> tuple[Array, ...]:
    """The rows order[start + s] of each array, for s in range(*span): the samples of a batch.

    Parameters
    ----------
    order : array (N,) of int64
        Numbers of rows, from 0 on.
    start : array () of int64
    span : (first, stop, step)
        Not empty; start + s is always less than N.
    *arrays : arrays (rows, …)
    """
    xp = array_namespace(order)
    here: dict[str, Any] = {"dtype": xp.int64, "device": order.device}
    indices = xp.take(order, start + xp.arange(*span, **here), axis=0)
    return tuple(xp.take(array, indices, axis=0) for array in arrays)


@primitive
def take_step(
    index: Array,
    order: Array,
    span: tuple[int, int, int],
    tables: tuple[Array, ...],
    arrays: tuple[Array, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """`take_row` of the tables, and `gather` of the arrays from a start that it finds there.

    The first table, of int64, has the starts of batches in its first column.
    """
    rows = take_row(index, *tables)
    return rows, gather(order, rows[0][0, ...], span, *arrays)


@primitive
def append_row(index: Array, *tables_and_values: Array) -> None:
    """table[index] ← value for each table, in place; then index ← index + 1.

    Parameters
    ----------
    index : array (1,) of int64
        From 0 to the number of rows - 1.
    *tables_and_values : arrays (rows, …), and as many arrays (…)
        Of a table and its value, the dtypes are equal.
    """
    xp = array_namespace(index)
    half = len(tables_and_values) // 2
    for table, value in zip(tables_and_values[:half], tables_and_values[half:], strict=True):
        here = xp.arange(table.shape[0], dtype=xp.int64, device=table.device) == index
        table[...] = xp.where(xp.reshape(here, (-1, *(1,) * value.ndim)), value, table)
    index += 1


@primitive
def appending(index: Array, *tables_and_values: Array) -> AbstractContextManager[None]:
    """A context at whose end `append_row` has been done.

    Within it no tables, values or index are used, so that an accelerator may do it at any time, in
    one launch with something else.
    """

    @contextmanager
    def at_the_end() -> Iterator[None]:
        yield
        append_row(index, *tables_and_values)

    return at_the_end()
