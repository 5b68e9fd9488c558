"""Attention by blocks: one launch forward, one backward, and no array of all scores.

`attention.h` says what a block does. q, k, v and ∂L/∂y are read where they lie, as views of the
projections that they come from; y and the gradients are written in the order of the projections
that read them. Of the scores the backward keeps one number a query.

`plan` chooses tiles, and `pays` between this and products (`softmax.attention`), both by an
estimate. Not yet run on a GPU. XBP_ATTENTION in the environment overrules it: ``blocks`` wherever
a head has few enough features, which keeps memory small, or ``products``.
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

from xbp.accelerators.cuda import softmax
from xbp.accelerators.cuda.attention_plan import WIDTHS, Sizes, Tile, pays, plan
from xbp.accelerators.cuda.launch import (
    REALS,
    blocks,
    dense,
    lanes,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, incoming

Rows = structure(
    "Rows", at=pointer, sample=ctypes.c_longlong, head=ctypes.c_longlong, row=ctypes.c_int
)
Task = structure(
    "Task",
    **dict.fromkeys(("q", "k", "v", "y", "dy", "dq", "dk", "dv"), Rows),
    **dict.fromkeys(("mask", "ignored", "logarithms"), pointer),
    scale=ctypes.c_double,
    **dict.fromkeys(
        ("of_sample", "all", "queries", "keys", "d", "e", "vectors", "of_keys"), ctypes.c_int
    ),
)

FORWARD = "attention_forward.cu", "attend_by_blocks"
BACKWARD = "attention_backward.cu", "attend_by_blocks_backward"


def attention(
    q: Array,
    k: Array,
    v: Array,
    ignored: Array | None = None,
    mask: Array | None = None,
    *,
    causal: bool = False,
) -> Any:
    """See `xbp.primitives.attention`."""
    n, heads, queries, width = q.shape
    sizes = Sizes(n * heads, queries, k.shape[2], width, v.shape[3], q.dtype.itemsize, causal)
    chosen = os.environ.get("XBP_ATTENTION", "")
    if (
        chosen == "products"
        or not softmax.suits(q, k, v, ignored, mask)
        or max(sizes.d, sizes.e) > max(WIDTHS)
        or k.shape != (n, heads, sizes.keys, width)
        or v.shape[:3] != k.shape[:3]
        or not (chosen == "blocks" or pays(sizes))
    ):
        return softmax.attention(q, k, v, ignored, mask, causal=causal)
    return by_blocks(q, k, v, ignored, mask, causal=causal)


def by_blocks(
    q: Array,
    k: Array,
    v: Array,
    ignored: Array | None = None,
    mask: Array | None = None,
    *,
    causal: bool = False,
) -> Any:
    """Attention of arrays that `attention` has checked."""
    machine, dtype = machine_of(q), q.dtype
    n, heads, queries, d = q.shape
    keys, e = v.shape[2:]
    sizes = Sizes(n * heads, queries, keys, d, e, dtype.itemsize, causal)
    forward, backward_tile = plan(sizes)
    logarithms, y = machine.empty((n, heads, queries), dtype), empty(n, heads, queries, e, like=q)
    arrays = {"q": neighbours(q), "k": neighbours(k), "v": neighbours(v), "y": y}
    others = {
        "mask": None if mask is None else dense(mask),
        "ignored": None if ignored is None else dense(ignored),
        "logarithms": logarithms,
    }

    def run(kernel: tuple[str, str], tile: Tile, count: int, of_keys: int, **more: Array) -> None:
        rows = {**arrays, **more}
        places = {key: machine.address(array) for key, array in rows.items()}
        task = Task(
            **{key: Rows(places[key], *steps(array)) for key, array in rows.items()},
            **{key: machine.address(it) for key, it in others.items() if it is not None},
            scale=1 / math.sqrt(d), of_sample=heads, all=sizes.heads, queries=queries, keys=keys,
            d=d, e=e, vectors=all(in_vectors(rows[key], places[key]) for key in rows),
            of_keys=of_keys,
        )  # fmt: skip
        macros = {
            "real": REALS[dtype.name], "WIDTH": tile.width, "CAUSAL": int(causal),
            "TILE_ROWS": tile.rows, "TILE_COLUMNS": tile.columns,
            "TALL": tile.tall, "WIDE": tile.wide,
        }  # fmt: skip
        machine.launch(kernel, macros, (count, 1), tile.threads, task)

    run(FORWARD, forward, sizes.heads * blocks(queries, forward.rows), 0)

    def backward(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array]:
        dy = neighbours(incoming(dy, y.shape, dtype))
        dq = empty(n, heads, queries, d, like=q) if wants_dx else None
        dk, dv = (empty(n, heads, keys, size, like=q) for size in (d, e))
        of_keys = sizes.heads * blocks(keys, backward_tile.rows)
        count, more = of_keys, {"dy": dy, "dk": dk, "dv": dv}
        if dq is not None:
            count, more = (
                count + sizes.heads * blocks(queries, backward_tile.rows),
                {**more, "dq": dq},
            )
        run(BACKWARD, backward_tile, count, of_keys, **more)
        return dq, dk, dv

    return y, backward


def empty(n: int, heads: int, times: int, width: int, *, like: Array) -> Array:
    """Memory for (N, H, T, d), in which all heads of a time step lie side by side."""
    memory = machine_of(like).empty((n, times, heads, width), like.dtype)
    return memory.transpose(0, 2, 1, 3)


def neighbours(rows: Array) -> Array:
    """`rows`, or a copy, with the features of a row side by side, and rows less than 2³¹ apart."""
    near = rows.strides[3] == rows.itemsize and abs(rows.strides[2]) < 2**31 * rows.itemsize
    return rows if near else dense(rows)


def steps(rows: Array) -> tuple[int, ...]:
    """The strides of samples, heads and rows, in numbers."""
    return tuple(stride // rows.itemsize for stride in rows.strides[:3])


def in_vectors(rows: Array, address: int) -> bool:
    """Whether each row may be read by 16 bytes."""
    whole = all(stride % 16 == 0 for stride in rows.strides[:3])
    return whole and lanes(rows.dtype, rows.shape[3], address) > 1


ACCELERATORS = (attention,)
