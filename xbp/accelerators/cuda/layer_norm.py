"""Layer, RMS and group norm: one pass forward, one backward, and one for the parameters."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.last import parts_of_sum
from xbp.accelerators.cuda.launch import (
    MOST_ROWS,
    PROCESSORS,
    REALS,
    blocks,
    dense,
    fits,
    lanes,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, Shape, incoming

Task = structure(
    "Task",
    **dict.fromkeys(("x", "dy", "weight", "bias", "y", "dx"), pointer),
    **dict.fromkeys(("partial", "total", "counters", "known"), pointer),
    eps=ctypes.c_double,
    rows=ctypes.c_int,
    size=ctypes.c_int,
)
THREADS, LINE, KNOWN = 256, 32, 3  # as in layer_norm.cu
LONG = 2048
"""From this size on a block shares a row, below it a warp; an estimate."""
LANES = (LINE, 64, 128, THREADS)
"""How many threads may share a row."""
ENOUGH_BLOCKS, LEAST = 4 * PROCESSORS, 8
"""Blocks that share the sums over rows, and the least rows of a thread in them."""


def normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axes: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> Any:
    """See `xbp.primitives.normalize`; over the last axes, with parameters of their shape.

    Or, as in group norm, with parameters for the indices of two axes, the first of these and the
    one before it.
    """
    first = x.ndim - len(axes)
    last = x.shape[first:]
    own = {array.shape for array in (weight, bias) if array is not None}
    if (
        not fits(x, weight, bias)
        or tuple(axes) != tuple(range(first, x.ndim))
        or own - {last, by_channel(x.shape, first)}
        or len(own) > 1
    ):
        return NotImplemented
    machine, dtype, shape, size = machine_of(x), x.dtype, x.shape, math.prod(last)
    grouped = bool(own) and own != {last}
    groups, pixels = (shape[first - 1], math.prod(last[1:])) if grouped else (1, 1)
    count = groups * size // pixels  # parameters
    x, rows = dense(x), x.size // size
    parameters = {
        name: dense(it) for name, it in (("weight", weight), ("bias", bias)) if it is not None
    }
    y, known = machine.empty(shape, dtype), machine.empty((KNOWN, rows), dtype)
    decision = tuned.Decision("rows of layer_norm", dtype.name, (rows, size))
    threads = tuned.number(machine, decision, LANES, LINE if size < LONG else THREADS)

    def launch(name: str, grid: tuple[int, int], counters: int = 0, **arrays: Array | None) -> None:
        given = {
            key: machine.address(array)
            for key, array in {"x": x, "known": known, **parameters, **arrays}.items()
            if array is not None
        }
        vector = lanes(dtype, size, *(given.get(key) for key in ("x", "y", "dy", "dx")))
        macros = {"real": REALS[dtype.name], "VECTOR": vector, "LANES": threads}
        task = Task(eps=eps, rows=rows, size=size, counters=counters, **given)
        macros |= {"CENTRE": int(centre), "GROUPS": groups, "PIXELS": pixels}
        machine.launch(("layer_norm.cu", name), macros, grid, THREADS, task)

    each = (blocks(rows * threads, THREADS), 1)
    launch("normalize", each, y=y)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
        dy = dense(incoming(dy, shape, dtype))

        def to_weight() -> tuple[Array | None, ...]:
            if not parameters:
                return None, None
            stripes = count if grouped else blocks(count, LINE)
            terms = x.size // count if grouped else rows * LINE  # of a block
            most = max(1, min(terms // THREADS, MOST_ROWS))
            parts = max(1, min(blocks(ENOUGH_BLOCKS, stripes), terms // (THREADS * LEAST), most))
            decision = tuned.Decision("parts of layer_norm", dtype.name, (stripes, terms))
            parts = tuned.number(machine, decision, range(1, most + 1), parts)
            crew = (THREADS if grouped else THREADS // LINE) // 2  # which adds up a sum's parts
            found = parts_of_sum(machine, (parts, 2 * count), dtype, stripes, blocks(parts, crew))
            name = "normalize_to_channel" if grouped else "normalize_to_weight"
            launch(
                name, (stripes, parts), found.counters,
                dy=dy, partial=found.partial, total=found.total,
            )  # fmt: skip
            sums = found.sum()
            return tuple(
                None if it is None else sums[k * count : (k + 1) * count].reshape(it.shape)
                for k, it in enumerate((weight, bias))
            )

        def to_input() -> Array:
            dx = machine.empty(shape, dtype)
            launch("normalize_to_input", each, dy=dy, dx=dx)
            return dx

        if not wants_dx:
            return None, *to_weight()
        of_parameters, dx = machine.side_by_side(to_weight, to_input)
        return dx, *of_parameters

    return y, gradients


def by_channel(shape: Shape, first: int) -> Shape | None:
    """The shape of parameters for each index of the axes `first` - 1 and `first`."""
    return (*shape[first - 1 : first + 1], *(1 for _ in shape[first + 1 :])) if first else None


ACCELERATORS = (normalize,)
