"""Convolution, with rectifier and maximum in the same pass, and its gradients."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from xbp import registry
from xbp.accelerators.cuda import tuned, wide, winograd
from xbp.accelerators.cuda.last import parts_of_sum
from xbp.accelerators.cuda.launch import (
    FILL,
    MOST_ENTRIES,
    REALS,
    Machine,
    as_nchw,
    batch_innermost,
    blocks,
    dense,
    fits,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.pooling import rectified_max_pool
from xbp.accelerators.shared import MOST_PLACES as MOST_OF_POOL
from xbp.accelerators.shared import Array, Pair, incoming, is_plain
from xbp.primitives.images import Padding, output_size, sides

Task = structure(
    "Task",
    **dict.fromkeys(("x", "weight", "bias", "dy", "y", "dx", "partial", "total"), pointer),
    **dict.fromkeys(("counters", "where"), pointer),
    n=ctypes.c_int,
)
THREADS, ROOM = 128, 4096  # as in convolution.cu
MOST_PLACES = 16
"""The most entries of a pooling window, which are a thread's sums for each of its channels."""
MOST_SEEN = 144
"""Pixels that an entry of y sees, through all windows of its maximum: a thread has them in
registers."""
MOST_TAPS, MOST_SUMS = 31, 64
"""Most taps of an output whose sums a thread has for ∂L/∂W, and most sums, with those for ∂L/∂b."""
MOST_SPOTS = 4
"""The most pixels of ∂L/∂x that a thread computes."""
MOST_PARTS = 256
"""The most parts of the sums of ∂L/∂W."""
MOST_TILE = 8
"""The most channels of a thread."""
MOST_TEAMS, ENOUGH_BLOCKS = 4, 8 * FILL // THREADS
"""The most threads that share the channels of a sum; and blocks of THREADS up to which they do:
those that fill half of an H100 or H200."""
MOST_KERNELS = 2**12
"""Pairs of channels. A block of threads for each row of each kernel reads all of x; with many more,
and too few outputs for `wide`, the reference's large products are expected to be faster."""


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool = False,
    pool: Pair = (1, 1),
) -> Any:
    """See `xbp.primitives.convolve`; then ReLU, if `relu`, and the maximum of `pool` windows.

    A weight that is not finite makes ∂L/∂x nan also at the border, where windows would lie outside.
    """
    n, c, h, w = x.shape
    o, channels, kh, kw = weight.shape
    oh, ow = output_size((h, w), (kh, kw), stride, padding, dilation)
    rows, columns = oh // pool[0], ow // pool[1]
    if (
        not fits(x, weight, bias)
        or channels * groups != c
        or o % groups
        or (bias is not None and bias.shape != (o,))
        or min(rows, columns) < 1
        or n * o * oh * ow >= MOST_ENTRIES
    ):
        return NotImplemented
    if wide.suits(weight.shape, stride, groups):
        if registry.rounded():  # the reference's products, which tensor cores compute
            return NotImplemented
        pooled = pool != (1, 1)
        if pooled and math.prod(pool) > MOST_OF_POOL:
            return NotImplemented
        window = (stride, padding, dilation)
        if winograd.takes(x, weight.shape, *window, groups):
            own, both = pool in ((1, 1), (2, 2)), pool == (2, 2)  # maxima that it takes itself
            fewer = winograd.convolve(
                x, weight, bias, *window, groups=groups, relu=relu and own, pooled=both
            )
            return fewer if own else then_pool(fewer, pool, relu)
        before = relu and not pooled
        convolved = wide.convolve(x, weight, bias, *window, groups=groups, relu=before)
        return then_pool(convolved, pool, relu) if pooled else convolved
    if (
        groups > 1
        or not is_plain(padding, dilation)
        or math.prod(pool) > MOST_PLACES
        or kw > MOST_TAPS
        or seen(kh, stride[0], pool[0]) * seen(kw, stride[1], pool[1]) > MOST_SEEN
        or o * c > MOST_KERNELS
    ):
        return NotImplemented
    dtype, machine = x.dtype, machine_of(x)
    x, weight = batch_innermost(x), dense(weight)
    bias = None if bias is None else dense(bias)
    y = machine.empty((o, rows, columns, n), dtype)
    where = machine.empty(y.shape, "uint8") if relu or pool != (1, 1) else None
    lines, outs = sums_of(o, kh, kw)
    (top, _), (left, _) = sides(padding)
    macros = {
        "real": REALS[dtype.name], "C": c, "H": h, "W": w, "O": o, "KH": kh, "KW": kw,
        "STRIDE_H": stride[0], "STRIDE_W": stride[1], "PAD_H": top, "PAD_W": left,
        "POOL_H": pool[0], "POOL_W": pool[1], "ROWS": rows, "COLUMNS": columns, "RELU": int(relu),
        "LINES": lines, "OUTS": outs,
    }  # fmt: skip
    shape = (n, o, rows, columns)

    def launch(
        kernel: str,
        grid: Pair,
        tile: int,
        teams: int,
        block: Pair = (1, 1),
        counters: int = 0,
        **arrays: Array | None,
    ) -> None:
        given = {
            name: machine.address(array)
            for name, array in {"weight": weight, "where": where, **arrays}.items()
            if array is not None
        }
        task = Task(n=n, counters=counters, **given)
        more = {"TILE": tile, "TEAMS": teams, "BLOCK_H": block[0], "BLOCK_W": block[1]}
        threads = THREADS * teams
        machine.launch(("convolution.cu", kernel), macros | more, grid, threads, task)

    entries, key = rows * columns * n, f"{dtype.name} {kh}x{kw}/{stride} max {pool}"
    decision = tuned.Decision("convolve", key, (o, entries, c))
    launch("convolve", *division(machine, decision, math.prod(pool)), x=x, bias=bias, y=y)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = batch_innermost(incoming(dy, shape, dtype))

        def to_weight() -> tuple[Array, Array | None]:
            stripes = blocks(o, outs) * c * blocks(kh, lines)
            decision = tuned.Decision("convolve_to_weight", key, (stripes, entries))
            most = max(1, min(MOST_PARTS, entries // THREADS))
            rule, size = parts_of(entries, stripes), weight.size + o
            parts = tuned.number(machine, decision, range(1, most + 1), rule)
            reads = blocks(parts, THREADS // (outs * (lines * kw + 1)))
            sums = parts_of_sum(machine, (parts, size), dtype, stripes, reads)
            launch(
                "convolve_to_weight", (stripes, parts), 1, 1, counters=sums.counters,
                x=x, dy=dy, partial=sums.partial, total=sums.total,
            )  # fmt: skip
            total = sums.sum()
            dbias = None if bias is None else total[weight.size :]
            return total[: weight.size].reshape(weight.shape), dbias

        def to_input() -> Array:
            dx = machine.empty(x.shape, dtype)
            steps = (pool[0] * stride[0], pool[1] * stride[1])
            block, count = block_of((h, w), (top, left), steps)
            decision = tuned.Decision("convolve_to_input", key, (c, count * n, o))
            divided = division(machine, decision, math.prod(block))
            launch("convolve_to_input", *divided, block, dy=dy, dx=dx)
            return as_nchw(dx)

        if not wants_dx:
            return None, *to_weight()
        of_weight, dx = machine.side_by_side(to_weight, to_input)
        return dx, *of_weight

    return as_nchw(y), gradients


def then_pool(convolved: tuple[Array, Any], pool: Pair, relu: bool) -> tuple[Array, Any]:
    """ReLU, if `relu`, and the maximum of windows side by side, after a convolution."""
    z, of_convolution = convolved
    y, of_pool = rectified_max_pool(z, pool, relu=relu)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        (dz,) = of_pool(dy)
        found: tuple[Array | None, Array, Array | None] = of_convolution(dz, wants_dx)
        return found

    return y, gradients


def seen(kernel: int, stride: int, pool: int) -> int:
    """The number of pixels of an entry's windows, along one axis."""
    return (pool - 1) * stride + kernel


def division(machine: Machine, decision: tuned.Decision, each: int) -> tuple[Pair, int, int]:
    """Blocks, channels of a thread and threads that share a sum: measured, or by the rules.

    `decision` has the numbers of channels, entries and terms; a thread has `each` sums a channel.
    """
    channels, entries, terms = decision.sizes

    def grid(tile: int) -> Pair:
        return blocks(entries, THREADS), blocks(channels, tile)

    def rule() -> tuned.Numbers:
        tile = tile_of(channels, entries)
        return tile, teams_of(terms, grid(tile), tile * each)

    def allowed(numbers: tuned.Numbers) -> bool:
        if len(numbers) != 2 or not 0 < numbers[0] <= min(MOST_TILE, channels):
            return False
        most = min(MOST_TEAMS, terms, 1 + ROOM // (THREADS * numbers[0] * each))
        return 0 < numbers[1] <= most

    tile, teams = tuned.choose(machine, decision, allowed, rule)
    return grid(tile), tile, teams


def tile_of(channels: int, entries: int) -> int:
    """The channels of a thread, each number read being used once for each of them.

    As many as leave enough threads.
    """
    for tiles in (blocks(channels, MOST_TILE), blocks(channels, 4), blocks(channels, 2)):
        tile = blocks(channels, tiles)  # tiles as equal as can be
        if 2 * tiles * entries >= FILL:
            return tile
    return 1


def block_of(size: Pair, padding: Pair, steps: Pair) -> tuple[Pair, int]:
    """The pixels of a thread for ∂L/∂x, and the number of such blocks in an image.

    `steps` are the distances of windows. They are the sides of a block, unless it would be large.
    """
    block = steps if math.prod(steps) <= MOST_SPOTS else (1, 1)
    along = [(s - 1 + p) // b - p // b + 1 for s, p, b in zip(size, padding, block, strict=True)]
    return block, math.prod(along)


def teams_of(channels: int, grid: Pair, sums: int) -> int:
    """How many threads share the sums over channels, as long as there are few threads.

    `sums` are those of a thread, which all teams but one leave in shared memory.
    """
    most = min(MOST_TEAMS, channels, 1 + ROOM // (THREADS * sums))
    return max(1, min(most, ENOUGH_BLOCKS // math.prod(grid)))


def sums_of(outputs: int, height: int, width: int) -> Pair:
    """The sums of a thread for ∂L/∂W: rows of taps, and outputs that share the pixels it reads."""
    lines = max(1, min(height, MOST_TAPS // width))
    most = max(1, MOST_SUMS // (lines * width + 1))
    return lines, blocks(outputs, blocks(outputs, most))


def parts_of(entries: int, stripes: int) -> int:
    """Into how many parts a weight gradient's sum is split: many, none too small for a block."""
    enough, longest = 4 * FILL // THREADS // stripes, entries // (THREADS * 64)
    return max(1, min(max(enough, longest), entries // (THREADS * 2), MOST_PARTS))


ACCELERATORS: tuple[Callable[..., Any], ...] = (convolve,)
