"""Convolutions 3 × 3 with a quarter of the products, by Winograd's F(4 × 4, 3 × 3).

Images are transformed to 36 terms for each tile of 4 × 4 outputs (`winograd.h`), the products of a
term are those of `wide`, in 36 groups, and their sums are transformed back: three launches for y,
and five for the gradients, three of them one after the other.

The terms are 36/16 as large as the images, without a border. Those of x are made again in the
backward: kept, they would be more than all else that a network of convolutions keeps.

With XBP_WINOGRAD=1 it is used where a table of measured choices says so, or `pays` where there is
none; with XBP_WINOGRAD=all wherever it can.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from xbp.accelerators.cuda import tuned, wide
from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    MOST_ROWS,
    PROCESSORS,
    REALS,
    as_nchw,
    batch_innermost,
    blocks,
    dense,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.shared import Array, Pair, Shape, incoming
from xbp.primitives.images import Padding, output_size, sides

NUMBERS = ("n", "channels", "outputs", "groups", "h", "w", "rows", "columns", "top", "left")
Task = structure(
    "Task",
    **dict.fromkeys(("x", "dy", "mask", "weight", "bias", "terms"), pointer),
    **dict.fromkeys(("v", "d", "e", "u", "to", "where"), pointer),
    **dict.fromkeys((*NUMBERS, "parts", "relu", "back"), ctypes.c_int),
)
THREADS, TERMS = 128, 36  # as in winograd.h
LINE, SHARING = 32, 384  # as in winograd_to_weight.cu
RATE = 1.8e5
"""Products of a multiprocessor in a microsecond, where a tile of `wide` has speed 1 and no waits:
64 to 256 channels at 40 to 45 TFLOP/s on an H200."""
BYTES = 3.6e6
"""Bytes of memory in a microsecond: three quarters of an H200's 4.8 TB/s. What the second-level
cache holds is not counted."""
PROLOGUE = 16
"""Terms in whose time a block begins and ends, which short sums do not hide. A guess."""
LAUNCHES, LAUNCH = 4, 3.5
"""Launches one after the other, in both directions, beyond those of `wide`, and their microseconds
in a graph on an H200."""
GAIN = 0.8
"""What of the time is left at most, by an estimate that no measurement has confirmed."""


def wanted() -> str:
    """The setting of XBP_WINOGRAD: "", "1" or "all"."""
    said = os.environ.get("XBP_WINOGRAD", "")
    return said if said in ("1", "all") else ""


def takes(
    x: Array, weight: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> bool:
    """Whether a convolution, one that `wide` suits, is computed here."""
    plain = weight[2:] == (3, 3) and stride == dilation == (1, 1)
    if not wanted() or not plain or TERMS * groups > wide.MOST_COPIES:
        return False
    (n, c, h, w), o = x.shape, weight[0]
    rows, columns = output_size((h, w), (3, 3), stride, padding, dilation)
    sizes = max(length_of(rows, columns, n), length_of(h, w, n))
    if max(max(side) for side in sides(padding)) > 2 or TERMS * max(c, o) * sizes >= MOST_ENTRIES:
        return False
    lines = c + o + blocks(o * weight[1], THREADS)
    fits = lines <= MOST_ROWS and TERMS * o * (weight[1] + 1) * PROCESSORS < MOST_ENTRIES
    if not fits or wanted() == "all":
        return fits
    if x.dtype.name != "float32":
        return False
    decision = tuned.Decision("winograd", "float32", (n, *weight[:2], rows, columns, groups))

    def rule() -> tuned.Numbers:
        return (int(pays(x.shape, weight, (rows, columns), groups)),)

    return tuned.choose(machine_of(x), decision, lambda it: it in ((0,), (1,)), rule) == (1,)


def pays(x: Shape, weight: Shape, size: Pair, groups: int = 1) -> bool:
    """Whether a convolution, forward and backward, is faster by fewer products, by an estimate.

    It compares the time of the products with that of reading and writing the terms.

    Parameters
    ----------
    x, weight : tuple of int
        Their shapes.
    size : (rows, columns)
        Of y.
    """
    (n, c, h, w), (o, channels) = x, weight[:2]
    outputs, (rows, columns) = o // groups, size
    if 8 * blocks(rows, 4) * blocks(columns, 4) > rows * columns:  # half of the tiles is empty
        return False
    terms = [length_of(rows, columns, n), length_of(h, w, n)]
    y, dx = rows * columns * n, h * w * n
    direct = (
        product(outputs, y, 9 * channels, groups)
        + product(channels, dx, 9 * outputs, groups)
        + long_product(outputs, 9 * channels, y, groups)
    )
    fewer = (
        product(outputs, terms[0], channels, TERMS * groups)
        + product(channels, terms[1], outputs, TERMS * groups)
        + long_product(outputs, channels, terms[0], TERMS * groups)
    )
    # V of x twice, M, D; V of ∂L/∂y, its M; each is written and read.
    between = TERMS * (2 * (c + o) * terms[0] + (c + o) * terms[1] + 3 * o * channels)
    bytes_moved = 4 * (2 * (c * dx + o * y) + 2 * between)
    return fewer + bytes_moved / BYTES + LAUNCHES * LAUNCH < GAIN * direct


def product(rows: int, columns: int, terms: int, copies: int) -> float:
    """Microseconds of a matrix product by a tile of `wide`."""
    tile = wide.tile_of(wide.TILES["float32"], rows, columns, copies)
    number = wide.number_of(tile, rows, columns, copies)
    return (terms + PROLOGUE) * wide.time(tile, number) / RATE


def long_product(rows: int, columns: int, terms: int, copies: int) -> float:
    """Microseconds of one whose sums are long, in parts."""
    tile, parts, length = wide.split(wide.TILES["float32"], rows, columns, terms, copies)
    number = parts * wide.number_of(tile, rows, columns, copies)
    return (length + PROLOGUE) * wide.time(tile, number) / RATE


def length_of(rows: int, columns: int, n: int) -> int:
    """The columns of terms of an image of so many rows and columns: a multiple of four."""
    return blocks(blocks(rows, 4) * blocks(columns, 4) * n, 4) * 4


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    *,
    groups: int,
    relu: bool,
    pooled: bool = False,
) -> tuple[Array, Any]:
    """See `xbp.primitives.convolve`; then maxima of windows 2 × 2 if `pooled`, and ReLU if `relu`.

    What is not finite comes out as from `wide.convolve`: where an entry of a tile would not be
    finite, the tile is computed directly. Rounding errors are relative to the largest pixels of a
    tile, and not to those that an entry sees.
    """
    n, c, h, w = x.shape
    o, channels = weight.shape[:2]
    rows, columns = output_size((h, w), (3, 3), stride, padding, dilation)
    dtype, machine = x.dtype, machine_of(x)
    x, weight = batch_innermost(x), dense(weight)
    bias = None if bias is None else dense(bias)
    (top, _), (left, _) = sides(padding)
    numbers = (n, c, o, groups, h, w, rows, columns, top, left)
    sizes = dict(zip(NUMBERS, numbers, strict=True))
    length, length_of_x = length_of(rows, columns, n), length_of(h, w, n)
    real = {"real": REALS[dtype.name]}

    def launch(kernel: str, file: str, grid: Pair, threads: int, **given: Any) -> None:
        arrays = {name: machine.address(it) for name, it in given.items() if hasattr(it, "dtype")}
        numbers = {name: it for name, it in given.items() if isinstance(it, int)}
        machine.launch((file, kernel), real, grid, threads, Task(**sizes, **arrays, **numbers))

    def empty_terms(channels: int, columns: int) -> Array:
        return machine.empty((TERMS * channels, 1, 1, columns), dtype)

    def transform(lines: int, columns: int, **given: Any) -> None:
        across = blocks(columns, THREADS)
        kernels = blocks(weight.size // 9, across * THREADS) if "u" in given else 0
        launch("winograd_terms", "winograd.cu", (across, lines + kernels), THREADS, **given)

    def multiply(v: Array, outputs: int, u: Array) -> Array:
        shape = (TERMS * outputs, u.shape[1], 1, 1)
        return wide.Launches(as_nchw(v), shape, groups=TERMS * groups).output(v, u)

    def output() -> None:
        v, u = empty_terms(c, length), machine.empty((TERMS * o, channels), dtype)
        transform(c, length, x=x, v=v, weight=weight, u=u)
        m = multiply(v, o, u)
        own = {"x": x, "weight": weight, "bias": bias, "terms": m, "to": y, "relu": int(relu)}
        grid = (blocks(length, THREADS), o)
        launch("winograd_output", "winograd.cu", grid, THREADS, **own, where=where)

    shape = (n, o, rows // 2, columns // 2) if pooled else (n, o, rows, columns)
    y = machine.empty((*shape[1:], n), dtype)
    where = machine.empty(y.shape, "uint8") if pooled else None
    output()
    mask = y if relu and not pooled else None  # else y need not live until the backward

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = batch_innermost(incoming(dy, shape, dtype))
        v, d = empty_terms(c, length), empty_terms(o, length)
        given = {"x": x, "dy": dy, "mask": mask, "where": where, "weight": weight}
        if wants_dx:
            e, u = empty_terms(o, length_of_x), machine.empty((TERMS * c, o // groups), dtype)
            transform(c + o, max(length, length_of_x), **given, v=v, d=d, e=e, u=u, back=1)
        else:
            transform(c + o, length, **given, v=v, d=d)

        def to_weight() -> tuple[Array, Array | None]:
            kernels = (TERMS * o, channels, 1, 1)
            launches = wide.Launches(as_nchw(v), kernels, groups=TERMS * groups)
            parts = launches.parts_to_weight(v, d)
            total = machine.empty((weight.size + o,), dtype)
            grid = (
                blocks(weight.size // 9, LINE) + (blocks(o, LINE) if bias is not None else 0),
                1,
            )
            own = {**given, "terms": parts, "to": total, "parts": parts.shape[0]}
            launch("winograd_to_weight", "winograd_to_weight.cu", grid, SHARING, **own)
            dbias = None if bias is None else total[weight.size :]
            return total[: weight.size].reshape(weight.shape), dbias

        def to_input() -> Array:
            m, dx = multiply(e, c, u), machine.empty(x.shape, dtype)
            grid = (blocks(length_of_x, THREADS), c)
            own = {**given, "terms": m, "to": dx, "back": 1}
            launch("winograd_output", "winograd.cu", grid, THREADS, **own)
            return as_nchw(dx)

        if not wants_dx:
            return None, *to_weight()
        of_weight, dx = machine.side_by_side(to_weight, to_input)
        return dx, *of_weight

    return as_nchw(y), gradients
