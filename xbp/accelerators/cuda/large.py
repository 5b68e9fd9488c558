"""The linear layer by products of its own, each of them large enough for cuBLAS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xbp.accelerators.cuda.launch import machine_of
from xbp.accelerators.shared import Array, incoming
from xbp.primitives.rounded import sum_but_along


def affine_by(
    multiply: Callable[[Array, Array], Array],
    kept: Callable[[Array], Array],
    x: Array,
    weight: Array,
    bias: Array | None,
) -> tuple[Array, Callable[..., Any]]:
    """See `xbp.primitives.affine`; a graph computes ∂L/∂W and ∂L/∂x at the same time.

    A product of few rows, as ∂L/∂x of a small batch, has too few tiles for all multiprocessors.

    Parameters
    ----------
    multiply : callable
        The product of two matrices that `kept` returned, or of their transposes.
    kept : callable
        A factor, in the form in which products read it, and the backward keeps it.
    x, weight, bias
        As of `affine`.
    """
    shape, inside, dtype = (*x.shape[:-1], weight.shape[0]), x.shape, x.dtype
    flat, machine = (math.prod(shape[:-1]), shape[-1]), machine_of(x)
    rows, weight = kept(x.reshape(-1, x.shape[-1])), kept(weight)
    y = multiply(rows, weight.T)
    has_bias = bias is not None
    if has_bias:
        y += bias

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = incoming(dy, shape, dtype).reshape(flat)
        delta = kept(dy)

        def to_weight() -> tuple[Array, Array | None]:
            return multiply(delta.T, rows), sum_but_along(-1, dy) if has_bias else None

        def to_input() -> Array:
            return multiply(delta, weight).reshape(inside)

        if not wants_dx:
            return None, *to_weight()
        of_weight, dx = machine.side_by_side(to_weight, to_input)
        return dx, *of_weight

    return y.reshape(shape), gradients
