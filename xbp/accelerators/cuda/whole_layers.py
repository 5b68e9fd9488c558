"""The layers of a chain of operations, as `whole` computes them."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

from xbp.accelerators.chains import AFTER_AFFINE
from xbp.accelerators.cuda import wide
from xbp.accelerators.cuda.convolution import MOST_KERNELS, MOST_SEEN, MOST_SPOTS, seen
from xbp.accelerators.cuda.launch import MOST_ENTRIES
from xbp.accelerators.cuda.whole_kinds import Convolution, Layer, Linear, Pooling
from xbp.accelerators.shared import MOST_PLACES, Shape, is_plain
from xbp.primitives.chain import Operation
from xbp.primitives.convolution import convolve
from xbp.primitives.images import flatten, output_size
from xbp.primitives.pooling import average_pool, max_pool
from xbp.primitives.product import affine

Shapes: TypeAlias = "tuple[Shape | None, ...]"

MOST = 16  # as in whole.h
KINDS = {"rectify": "rectify", "tanh": "tangent", "logistic": "logistic"}
"""Activations, and their names in activations.h."""
KNOWN = (affine, convolve, max_pool, average_pool, flatten, *AFTER_AFFINE)
"""The operations of a chain."""


@lru_cache(256)
def layers_of(
    operations: tuple[Operation, ...], shape: Shape, shapes: Shapes
) -> tuple[Layer, ...] | None:
    """The layers of a chain with sizes, activations and maxima joined to the layer before.

    None if a layer is not known here, or too large.

    Parameters
    ----------
    operations : tuple of (primitive, options)
    shape : tuple of int
        Of x.
    shapes : tuple of tuple of int or None
        Of weight and bias of each linear layer and convolution.
    """
    n, *rest = shape
    size, layers, given = tuple(rest), list[Layer](), iter(shapes)
    for operation, pairs in operations:
        options = dict(pairs)
        layer: Layer | None = None
        last = layers[-1] if layers else None
        if operation is flatten:
            size = (math.prod(size),)
            continue
        if operation in AFTER_AFFINE:
            if last is None or last.kind != "identity":
                return None
            layers[-1] = replace(last, kind=KINDS[operation.name])
            continue
        if operation is max_pool:
            joined = _joined(last, options)
            if joined is not None:
                layers[-1] = joined
                size = joined.size
                continue
        if operation in (max_pool, average_pool):
            layer = _pooling(size, options, operation is average_pool)
        elif operation is convolve:
            layer = _convolution(size, next(given), next(given), options)
        elif operation is affine:
            layer = _linear(size, next(given), next(given))
        if layer is None or layer.outputs * n >= MOST_ENTRIES:
            return None
        layers.append(layer)
        size = layer.size
    whole = 0 < len(layers) <= MOST and isinstance(layers[-1], Linear)
    return tuple(layers) if whole else None


def _linear(size: Shape, weight: Shape | None, bias: Shape | None) -> Linear | None:
    if weight is None or len(weight) != 2 or size != weight[1:]:
        return None
    if bias is not None and bias != weight[:1]:
        return None
    return Linear(weight[1], weight[0], bias is not None)


def _convolution(
    size: Shape, weight: Shape | None, bias: Shape | None, options: dict[str, Any]
) -> Convolution | None:
    stride, padding = options.get("stride", (1, 1)), options.get("padding", (0, 0))
    if weight is None or len(size) != 3 or weight[1] != size[0] or options.get("groups", 1) != 1:
        return None
    if not is_plain(padding, options.get("dilation", (1, 1))):
        return None
    o, c, kh, kw = weight
    _, h, w = size
    rows, columns = output_size((h, w), (kh, kw), stride, padding)
    if min(rows, columns) < 1 or (bias is not None and bias != (o,)):
        return None
    if math.prod(stride) > MOST_SPOTS or kh * kw > MOST_SEEN or o * c > MOST_KERNELS:
        return None
    if wide.suits(weight, stride, 1):
        return None
    (sh, sw), (ph, pw) = stride, padding
    return Convolution(c, h, w, o, kh, kw, sh, sw, ph, pw, bias is not None)


def _joined(last: Layer | None, options: dict[str, Any]) -> Convolution | None:
    """A convolution with the maximum after it, of windows side by side, if a thread can do both."""
    pool = options["kernel_size"]
    if not isinstance(last, Convolution) or last.pool_h * last.pool_w > 1:
        return None
    if last.kind not in ("identity", "rectify") or options["stride"] != pool:
        return None
    if options.get("padding", (0, 0)) != (0, 0) or min(last.rows // pool[0], 1) < 1:
        return None
    pixels = seen(last.kh, last.stride_h, pool[0]) * seen(last.kw, last.stride_w, pool[1])
    spots = math.prod(pool) * last.stride_h * last.stride_w
    if pixels > MOST_SEEN or spots > MOST_SPOTS or last.columns // pool[1] < 1:
        return None
    return replace(last, pool_h=pool[0], pool_w=pool[1])


def _pooling(size: Shape, options: dict[str, Any], average: bool) -> Pooling | None:
    window = options["kernel_size"], options["stride"], options.get("padding", (0, 0))
    if len(size) != 3 or math.prod(window[0]) > MOST_PLACES:
        return None
    c, h, w = size
    if min(output_size((h, w), *window)) < 1:
        return None
    (kh, kw), (sh, sw), (ph, pw) = window
    return Pooling(c, h, w, kh, kw, sh, sw, ph, pw, average)
