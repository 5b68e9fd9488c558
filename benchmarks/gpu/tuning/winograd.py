"""Convolutions 3 × 3 with a quarter of the products, or direct: y and both gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.gpu.tuning.convolutions import by_torch, data_of
from benchmarks.gpu.tuning.row import Case, Draw, Row, error_of
from benchmarks.gpu.tuning.shapes import KINDS, SHAPES, Shape
from xbp.accelerators.cuda import convolution, winograd

FAMILY = "fewer products"
FILES = ("winograd.cu", "winograd_to_weight.cu", "wide.cu", "wide_to_input.cu", "wide_to_weight.cu")
CHOICES = {"direct": (0,), "a quarter": (1,)}


def rows(small: bool = False) -> Iterator[Row]:
    """The convolutions of the table that it may compute; `small`, of a size for the emulation."""
    for shape in SHAPES:
        if (shape.kernel, shape.stride) != (3, 1):
            continue
        it = shape.small() if small else shape
        sizes = ((it.n, it.c, it.h, it.h), (it.o, it.c, 3, 3), (it.out, it.out))
        labels = sorted(CHOICES, reverse=not winograd.pays(*sizes))  # that of the rule first
        tiles = {label: CHOICES[label] for label in labels}
        name = f"{shape.name} y and gradients"
        yield Row(FAMILY, name, 3 * it.flop, "winograd", tiles, partial(case_of, it))


def case_of(shape: Shape, draw: Draw) -> Case:
    data = data_of(shape, draw)

    def call() -> tuple[Any, ...]:
        with mock.patch.dict(os.environ, XBP_WINOGRAD="1"):
            y, backward = convolution.convolve(data.x, data.weight, **data.window)
        dx, dweight, _ = backward(data.dy)
        return y, dx, dweight

    def error(found: tuple[Any, ...]) -> float:
        pairs = zip(KINDS, found, strict=True)
        return max(error_of(it, data.truth[kind], shape.terms(kind)) for kind, it in pairs)

    return Case(call, error, lambda: each_by_torch(shape, data))


def each_by_torch(shape: Shape, data: Any) -> Callable[[], Any]:
    calls = [by_torch(shape, kind, data) for kind in KINDS]
    return lambda: [call() for call in calls]
