"""Compiled batch normalization, alone or fused with ReLU, for numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.calls import DTYPES, address, addressable, incoming, run
from xbp.accelerators.cpu.elementwise import LEAST_FOR_THREADS, empty_in
from xbp.accelerators.shared import dense_order
from xbp.primitives.normalization import Moments

Real = NDArray[Any]
CONSTANTS, MEAN, VARIANCE = 7, 2, 3
"""Rows of the table of constants, and two of them; as in kernels.h."""


def batch_normalize(
    x: Real,
    weight: Real | None,
    bias: Real | None,
    mean: Real | None,
    variance: Real | None,
    *,
    eps: float,
    sum_: Callable[[Real], None] | None = None,
    relu: bool = False,
) -> Any:
    """See `xbp.primitives.batch_normalize`; followed by ReLU if `relu`.

    For arrays without gaps in which numbers of a channel lie side by side, in one process.
    """
    dtype, known = x.dtype, mean is not None and variance is not None
    if dtype not in DTYPES or x.ndim < 2 or x.size == 0 or (sum_ is not None and not known):
        return NotImplemented
    x = addressable(x)
    order = dense_order(x)
    if order is None:
        return NotImplemented
    at, channels = order.index(1), x.shape[1]
    inner = math.prod([x.shape[axis] for axis in order[at + 1 :]])
    given = (weight, bias, mean, variance)
    if inner < native.lanes(x.itemsize) or any(
        array is not None and (array.dtype != dtype or array.shape != (channels,))
        for array in given
    ):
        return NotImplemented
    constants, y = np.empty((CONSTANTS, channels), dtype), empty_in(order, x)
    if known:
        constants[MEAN], constants[VARIANCE] = mean, variance
    weight, bias = (None if array is None else np.require(array, requirements=["C", "A"])
                    for array in (weight, bias))  # fmt: skip
    task = native.BatchNorm(
        x=address(x), y=address(y), weight=address(weight), bias=address(bias),
        constants=address(constants), outer=x.size // (channels * inner), channels=channels,
        inner=inner, eps=eps, known=known, relu=relu,
        threads=native.threads() if x.size >= LEAST_FOR_THREADS else 1,
    )  # fmt: skip
    run("batch_norm", dtype, task, (x, weight, bias, constants if known else None), (y, constants))
    has_weight, has_bias = weight is not None, bias is not None
    rows = () if known else (constants[MEAN], constants[VARIANCE])
    moments = Moments(x.size / channels, *rows)
    shape = y.shape

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Any, ...]:
        dy = incoming(dy, shape, dtype)
        if dy.strides != x.strides:
            laid_out = empty_in(order, x)
            laid_out[...] = dy
            dy = replay.copied(laid_out, dy)
        dx = empty_in(order, x) if wants_dx else None
        sums = np.empty((2, channels), dtype)
        task.x, task.constants, task.dy, task.dx = map(address, (x, constants, dy, dx))
        task.sums = address(sums)
        run("batch_norm_backward", dtype, task, (x, weight, bias, y, constants, dy), (dx, sums))
        dweight, dbias = sums[0] if has_weight else None, sums[1] if has_bias else None
        return dx, dweight, dbias, moments

    return y, gradients


ACCELERATORS = (batch_normalize,)
