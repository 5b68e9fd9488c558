"""Rows of tables at positions on the device, which a recorded step reads anew each time."""

from __future__ import annotations

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
