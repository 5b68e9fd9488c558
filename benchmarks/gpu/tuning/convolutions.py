"""Convolutions of many channels: y, ∂L/∂x and ∂L/∂W of VGG, ResNet-20 and FastCIFAR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from typing import Any

from benchmarks.gpu.tuning.row import Case, Draw, Row, error_of
from benchmarks.gpu.tuning.shapes import KINDS, SHAPES, Shape, tiles_for
from xbp.accelerators.cuda import launch, wide
from xbp.primitives import convolve

FAMILY = "convolutions"
FILES = ("wide.cu", "wide_to_input.cu", "wide_to_weight.cu")
KERNELS = {"y": "wide", "∂L/∂x": "wide_to_input", "∂L/∂W": "wide_to_weight"}


def rows(small: bool = False) -> Iterator[Row]:
    """The products of the table; `small`, of a size for the emulation."""
    for shape in SHAPES:
        it = shape.small() if small else shape
        for kind in KINDS:
            tiles = {label: tile.numbers for label, tile in tiles_for(it, kind).items()}
            case, name = partial(case_of, it, kind), f"{shape.name} {kind}"
            yield Row(FAMILY, name, it.flop, KERNELS[kind], tiles, case)


class Data:
    """The arrays of a shape, in the order in memory that the kernels read."""

    def __init__(self, shape: Shape, draw: Draw) -> None:
        n, c, h, o, kernel, stride, padding = shape[1:]
        self.window = {"stride": (stride, stride), "padding": (padding, padding)}
        self.x = draw(c, h, h, n).transpose(3, 0, 1, 2)
        self.weight = draw(o, c, kernel, kernel)
        self.dy = draw(o, shape.out, shape.out, n).transpose(3, 0, 1, 2)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The reference's results in float64."""
        x, weight, dy = (array.astype("f8") for array in (self.x, self.weight, self.dy))
        y, backward = convolve.reference(x, weight, **self.window)
        dx, dweight, _ = backward(dy)
        return {"y": y, "∂L/∂x": dx, "∂L/∂W": dweight}


data_of = lru_cache(None)(Data)


def case_of(shape: Shape, kind: str, draw: Draw) -> Case:
    data = data_of(shape, draw)
    window = (*data.window.values(), (1, 1))

    def forward() -> Any:
        return wide.convolve(data.x, data.weight, None, *window, groups=1, relu=False)

    @lru_cache(None)
    def backward(machine: Any) -> Any:
        with launching(frozenset(), data.x):
            return forward()[1]  # which does not read y

    def call() -> Any:
        gradients = None if kind == "y" else backward(launch.machine_of(data.x))
        with launching(KINDS[kind], data.x):
            if gradients is None:
                return forward()[0]
            return gradients(data.dy, kind == "∂L/∂x")[0 if kind == "∂L/∂x" else 1]

    def error(found: Any) -> float:
        return error_of(found, data.truth[kind], shape.terms(kind))

    return Case(call, error, lambda: by_torch(shape, kind, data))


@contextmanager
def launching(kernels: frozenset[str], array: Any) -> Iterator[None]:
    """Within the block, other kernels are left out, whose results are not looked at."""
    machine: Any = launch.machine_of(array)
    whole = machine.launch

    def some(kernel: tuple[str, str], *rest: Any) -> None:
        if kernel[1] in kernels:
            whole(kernel, *rest)

    machine.launch = some
    try:
        yield
    finally:
        del machine.launch


def by_torch(shape: Shape, kind: str, data: Data) -> Callable[[], Any]:
    """cuDNN's convolution, in PyTorch's order in memory."""
    import cupy
    import torch.utils.dlpack

    arrays = (data.x, data.weight, data.dy)
    x, weight, dy = (
        torch.utils.dlpack.from_dlpack(cupy.ascontiguousarray(array)) for array in arrays
    )
    cupy.cuda.Device().synchronize()  # PyTorch has a stream of its own
    window = ([shape.stride] * 2, [shape.padding] * 2)
    if kind == "y":
        return lambda: torch.nn.functional.conv2d(x, weight, None, *window)
    wanted = [kind == "∂L/∂x", kind == "∂L/∂W", False]
    options = ([1, 1], False, [0, 0], 1, wanted)
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(dy, x, weight, None, *window, *options)
