"""Passes over memory: optimizer updates, for several arrays in one launch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from numbers import Real
from typing import Any

from xbp.accelerators.cuda.launch import (
    PROCESSORS,
    REALS,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.rows import Taking, rider_for
from xbp.accelerators.shared import Array

THREADS, MOST, LINE = 256, 64, 32  # as in passes.cu
MOST_BLOCKS = 1024
"""The most blocks of a pass; in larger arrays each thread takes several entries."""
MANY_ROWS, FEW_BLOCKS = 256, 2 * PROCESSORS
"""The rows of a sum that 32 warps of a block share, if the blocks are few; else 8 share them. On an
H200 522 rows take 33 µs in place of 45 in 217 blocks; but 105 rows 25 in place of 15 in 578."""

Arrays = structure(
    "Arrays", **dict.fromkeys(("to", "a", "b", "c"), pointer), size=ctypes.c_longlong
)
Number = structure("Number", at=pointer, value=ctypes.c_double, bytes=ctypes.c_longlong)
Pass = structure(
    "Pass", of=Arrays * MOST, **dict.fromkeys(("s", "t", "u", "v", "w"), Number),
    rider=Taking, riding=ctypes.c_int,
)  # fmt: skip


def add_scaled(p: Array, factor: Any, g: Array) -> Any:
    """See `xbp.primitives.add_scaled`."""
    return _in_place("add_scaled", (p, g), (factor,))


def plus_scaled(g: Any, factor: Any, p: Any) -> Any:
    """See `xbp.primitives.plus_scaled`."""
    lists = [g] if not isinstance(g, list) else g
    to = [machine_of(array).empty(array.shape, array.dtype) for array in lists]
    partners = p if isinstance(p, list) else [p]
    if _in_place("plus_scaled", (to, lists, partners), (factor,)) is NotImplemented:
        return NotImplemented
    return to if isinstance(g, list) else to[0]


def accumulate(total: Array, beta: Any, g: Array, share: Any = 1.0) -> Any:
    """See `xbp.primitives.accumulate`."""
    return _in_place("accumulate", (total, g), (beta, share))


def rescale(p: Array, factor: Any) -> Any:
    """See `xbp.primitives.rescale`."""
    return _in_place("rescale", (p,), (factor,))


def average(mean: Array, beta: Any, *factors: Array) -> Any:
    """See `xbp.primitives.average`."""
    if len(factors) not in (1, 2):
        return NotImplemented
    name = "average" if len(factors) == 1 else "average_product"
    return _in_place(name, (mean, *factors), (beta,))


def normalized_step(p: Array, rate: Any, m: Array, scale: Any, v: Array, eps: Any) -> Any:
    """See `xbp.primitives.normalized_step`."""
    return _in_place("normalized_step", (p, m, v), (rate, scale, eps))


def adaptive_step(p: Array, m: Array, v: Array, g: Array, *numbers: Any) -> Any:
    """See `xbp.primitives.adaptive_step`."""
    return _in_place("adaptive_step", (p, m, v, g), numbers, changed=3)


def add_up(rows: Array) -> Array:
    """The sum of the rows of a dense matrix, added in a fixed order."""
    total = machine_of(rows).empty(rows.shape[1:], rows.dtype)
    count = rows.shape[0]
    few = blocks(total.size, LINE) <= FEW_BLOCKS
    threads = 1024 if few and count >= MANY_ROWS else THREADS
    _run("add_up", [(total, rows)], (count,), each=LINE, threads=threads)
    return total


# --- launches ------------------------------------------------------------------------------------


def _in_place(
    name: str, arrays: tuple[Any, ...], numbers: tuple[Any, ...], changed: int = 1
) -> Any:
    """A pass that changes the first `changed` arrays, which are in row-major order.

    Lists of arrays of one dtype are done `MOST` at a time in one launch.
    """
    lists = arrays if isinstance(arrays[0], list) else tuple([array] for array in arrays)
    groups = list(zip(*lists, strict=True))
    first = groups[0][0]
    for to, *others in groups:
        alike = all(array.shape == to.shape for array in others)
        in_order = all(array.flags.c_contiguous for array in (to, *others)[:changed])
        if not alike or not fits(first, to, *others) or not in_order:
            return NotImplemented
    if not all(isinstance(it, Real) or is_number(it, first) for it in numbers):
        return NotImplemented
    for start in range(0, len(groups), MOST):
        some = groups[start : start + MOST]
        given = [(to, *map(dense, others)) for to, *others in some]
        _run(name, given, numbers, rider=rider_for(first))
    return None


def is_number(it: Any, beside: Array) -> bool:
    """Whether a value is an array of one real number, of the same library as another array."""
    return type(it) is type(beside) and it.ndim == 0 and it.dtype.name in REALS


def _run(
    name: str,
    groups: Sequence[tuple[Array, ...]],
    numbers: tuple[Any, ...] = (),
    size: int | None = None,
    each: int = THREADS,
    threads: int = THREADS,
    rider: ctypes.Structure | None = None,
) -> None:
    """One launch; a block takes `each` entries at a time. A rider is done by one more block."""
    machine, first = machine_of(groups[0][0]), groups[0][0]
    task, largest = Pass(), 0
    for it, (to, *others) in zip(task.of, groups, strict=False):
        it.to, it.size = machine.address(to), to.size if size is None else size
        for name_of, array in zip("abc", others, strict=False):
            setattr(it, name_of, machine.address(array))
        largest = max(largest, it.size)
    places = (task.s, task.t, task.u, task.v, task.w)
    for it, given in zip(places, numbers, strict=False):
        if isinstance(given, Real):
            it.value = given
        else:
            it.at, it.bytes = machine.address(given), given.itemsize
    if rider is not None:
        task.rider, task.riding = rider, 1
    grid = (min(blocks(largest, each), MOST_BLOCKS), len(groups) + task.riding)
    machine.launch(("passes.cu", name), {"real": REALS[first.dtype.name]}, grid, threads, task)


ACCELERATORS = (
    add_scaled,
    plus_scaled,
    accumulate,
    rescale,
    average,
    normalized_step,
    adaptive_step,
)
