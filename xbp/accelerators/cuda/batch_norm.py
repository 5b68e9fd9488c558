"""Batch normalization, alone or with an activation after it, in two passes each way."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.activations import kernel_of
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
from xbp.accelerators.shared import Array, dense_order, incoming, inverse
from xbp.primitives.normalization import Moments

Task = structure(
    "Task",
    **dict.fromkeys(("x", "dy", "weight", "bias", "mean", "variance"), pointer),
    **dict.fromkeys(("y", "dx", "partial", "known", "sums"), pointer),
    eps=ctypes.c_double,
    **dict.fromkeys(("outer", "channels", "inner", "parts"), ctypes.c_int),
)
Tracking = structure(
    "Tracking",
    **dict.fromkeys(("mean", "variance", "new_mean", "new_variance", "count"), pointer),
    **dict.fromkeys(("share", "correction"), ctypes.c_double),
    channels=ctypes.c_int,
)
THREADS, KNOWN, MEAN, VARIANCE = 256, 5, 3, 4  # as in batch_norm.cu: rows of `known`
FEW = 32
"""Below this many neighbouring numbers of a channel, a warp reads neighbouring channels."""
ENOUGH_BLOCKS = 8 * PROCESSORS
"""Blocks that keep a GPU busy."""
LEAST = 8
"""The least numbers of a thread, if a channel is split."""


def batch_normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    *,
    eps: float,
    sum_: Callable[[Array], None] | None = None,
    activation: str | None = None,
    approximate: str = "none",
) -> Any:
    """See `xbp.primitives.batch_normalize`; then the `activation` of that name, in one process."""
    known = mean is not None and variance is not None
    channels, given = x.shape[1], (weight, bias, mean, variance)
    if (
        not fits(x, *given)
        or (sum_ is not None and not known)
        or any(array is not None and array.shape != (channels,) for array in given)
    ):
        return NotImplemented
    order = dense_order(x) or tuple(range(x.ndim))
    laid_out, back, shape, dtype = dense(x.transpose(order)), inverse(order), x.shape, x.dtype
    machine, at = machine_of(x), order.index(1)
    inner = math.prod(laid_out.shape[at + 1 :])
    side = 1 if inner >= FEW else FEW
    stripes, rows = blocks(channels, side), THREADS // side
    if stripes > MOST_ROWS:
        return NotImplemented
    n = x.size // channels
    parts = max(1, min(blocks(ENOUGH_BLOCKS, stripes), n // (rows * LEAST)))
    decision = tuned.Decision("batch_norm", f"{dtype.name}, side {side}", (stripes, n))
    parts = tuned.number(machine, decision, range(1, max(1, n // rows) + 1), parts)
    own = [None if array is None else dense(array) for array in given]
    weight, bias, mean, variance = own if known else (*own[:2], None, None)
    kind = "identity" if activation is None else kernel_of(activation, approximate)
    found, y = machine.empty((KNOWN, channels), dtype), machine.empty(laid_out.shape, dtype)

    def launch(name: str, count: int, to: Array | None = None, **arrays: Array | None) -> None:
        given = {
            key: machine.address(array)
            for key, array in {"x": laid_out, "known": found, **arrays}.items()
            if array is not None
        }
        images = (given.get(key) for key in ("x", "y", "dy", "dx"))
        vector = lanes(dtype, inner, *images) if side == 1 else 1
        macros = {"real": REALS[dtype.name], "VECTOR": vector, "SIDE": side, "ACTIVATION": kind}
        task = Task(eps=eps, outer=n // inner, channels=channels, inner=inner, parts=parts, **given)
        machine.launch(("batch_norm.cu", name), macros, (count, stripes), THREADS, task)

    parameters = {"weight": weight, "bias": bias, "mean": mean}
    partial = None
    if not known:
        partial = machine.empty((channels, parts, 3), dtype)
        launch("batch_norm_moments", parts, partial=partial)
    launch("batch_normalize", parts, y=y, partial=partial, variance=variance, **parameters)
    moments = Moments(n, *(() if known else (found[MEAN], found[VARIANCE])))

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Any, ...]:
        dy = dense(incoming(dy, shape, dtype).transpose(order))
        partial = machine.empty((channels, parts, 2), dtype)
        sums = machine.empty((2, channels), dtype)
        dx = machine.empty(dy.shape, dtype) if wants_dx else None
        launch("batch_norm_products", parts, dy=dy, partial=partial, **parameters)
        read = {"dy": dy, "partial": partial, "sums": sums}
        launch("batch_norm_to_input", parts if wants_dx else 1, dx=dx, **read, **parameters)
        return (
            None if dx is None else dx.transpose(back),
            None if weight is None else sums[0],
            None if bias is None else sums[1],
            moments,
        )

    return y.transpose(back), gradients


def track(
    mean: Array,
    variance: Array,
    count: Array,
    new_mean: Array,
    new_variance: Array,
    *,
    share: Any,
    correction: Any,
) -> Any:
    """See `xbp.primitives.track`; for shares that are no arrays."""
    arrays = (mean, variance, new_mean, new_variance)
    if (
        not all(isinstance(it, Real) for it in (share, correction))
        or not fits(*arrays)
        or any(it.shape != mean.shape or not it.flags.c_contiguous for it in arrays)
        or (count.dtype.name, count.size) != ("int64", 1)
    ):
        return NotImplemented
    machine, kind = machine_of(mean), REALS[mean.dtype.name]
    places = (machine.address(it) for it in (*arrays, count))
    task = Tracking(*places, share=share, correction=correction, channels=mean.size)
    macros = {"real": kind, "VECTOR": 1, "SIDE": 1, "ACTIVATION": "identity"}
    grid = (blocks(mean.size, THREADS), 1)
    machine.launch(("batch_norm.cu", "track"), macros, grid, THREADS, task)
    return None


ACCELERATORS = (batch_normalize, track)
