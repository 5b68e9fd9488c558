"""Small products: the linear layers of LeNet-5, forward and both gradients in one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.gpu.tuning.row import Case, Draw, Row, error_of
from xbp.accelerators.cuda import product
from xbp.accelerators.cuda.product import Factors, Tile
from xbp.accelerators.cuda.tuned import Numbers

FAMILY = "products"
FILES = ("product.cu",)
BATCHES = (128, 32, 512, 2048)
LAYERS = {"fc1": (400, 120, True), "fc2": (120, 84, True), "fc3": (84, 10, False)}
"""Inputs, outputs, and whether ReLU follows."""
SHAPES = (
    *((16, 8, 4, 2), (16, 16, 4, 4), (32, 16, 4, 4), (32, 32, 4, 4)),
    *((8, 8, 2, 2), (16, 16, 4, 2), (64, 32, 8, 4), (64, 64, 4, 4)),
)
"""Rows and columns of a block, then of a thread; the likeliest first."""
SHARED = 48 * 1024 // 4
"""float32 numbers in the shared memory of a block."""


def label(numbers: Numbers) -> str:
    """Rows × columns / of a thread, depth, parts of the sums of each product.

    >>> label((16, 8, 4, 2, 128, 1, 8))
    '16x8/4x2 d128 [1, 8]'
    """
    rows, columns, tall, wide, depth, *parts = numbers
    return f"{rows}x{columns}/{tall}x{wide} d{depth} {parts}"


def sizes(batch: int, layer: str, gradients: bool) -> list[product.Size]:
    """(m, n, k) of the products of one launch."""
    inputs, outputs, _ = LAYERS[layer]
    if gradients:
        return [(outputs, inputs, batch), (batch, inputs, outputs)]
    return [(batch, outputs, inputs)]


def chosen(several: Sequence[product.Size]) -> Numbers:
    """The rule's choice."""
    tile, parts = product.tile_for(several, 4)
    return (*tile[:5], *parts)


def choices(several: Sequence[product.Size]) -> dict[str, Numbers]:
    """The rule's choice, and others with one, two or four stages, the sums undivided or divided."""
    found = [chosen(several)]
    longest = max(k for _, _, k in several)
    for divided in (False, True):
        parts = tuple(max(1, min(16, k // 128)) if divided else 1 for _, _, k in several)
        for shape in SHAPES:
            step = Tile(*shape, 0).step
            most = SHARED // (shape[0] + shape[1] + 8) // step * step
            for stages in (1, 2, 4):
                depth = min(-(-longest // stages // step) * step, most)
                found += [(*shape, depth, *parts)] * (depth > 0)
    return {label(choice): choice for choice in found}


def rows(small: bool = False) -> Iterator[Row]:
    """The products of the table; `small`, of a size for the emulation."""
    for batch in (4,) if small else BATCHES:
        for layer in LAYERS:
            for gradients in (False, True):
                several = sizes(batch, layer, gradients)
                name = f"batch {batch}, {layer} {'gradients' if gradients else 'forward'}"
                flop = sum(2 * m * n * k for m, n, k in several)
                case = partial(case_of, batch, layer, gradients)
                yield Row(FAMILY, name, flop, "products", choices(several), case)


def factors(batch: int, layer: str, gradients: bool, draw: Draw) -> list[Factors]:
    """The operands. Those of fc1 are stored column by column, as flattened images are."""
    inputs, outputs, relu = LAYERS[layer]
    by_columns = layer == "fc1"
    x = draw(inputs, batch).T if by_columns else draw(batch, inputs)
    weight, bias, delta = draw(outputs, inputs), draw(outputs), draw(batch, outputs)
    if not gradients:
        return [Factors(x, weight.T, bias=bias)]
    mask = draw(batch, outputs) if relu else None
    turned = None if mask is None else mask.T
    return [
        Factors(delta.T, x, mask=turned, sums=True),
        Factors(delta, weight, mask=mask, turned=by_columns),
    ]


def case_of(batch: int, layer: str, gradients: bool, draw: Draw) -> Case:
    given = factors(batch, layer, gradients, draw)
    relu = LAYERS[layer][2] and not gradients

    def call() -> Any:
        return product.multiply(*given, relu=relu)

    def error(found: Any) -> float:
        worst = 0.0
        for (c, sums), it in zip(found, given, strict=True):
            a, b, k = it.a.astype("f8"), it.b.astype("f8"), it.a.shape[1]
            if it.mask is not None:
                a = a * (it.mask > 0)
            true = a @ b if it.bias is None else a @ b + it.bias
            errors = [error_of(c, true * (true > 0) if relu else true, k)]
            errors += [] if sums is None else [error_of(sums, a.sum(axis=1), k)]
            worst = max(worst, *errors) if all(e == e for e in errors) else float("nan")
        return worst

    return Case(call, error, lambda: by_torch(given))


def by_torch(given: Sequence[Factors]) -> Callable[[], Any]:
    """cuBLAS's products alone, without bias, ReLU and sums."""
    import cupy
    import torch

    pairs = [tuple(torch.as_tensor(it, device="cuda") for it in (f.a, f.b)) for f in given]
    cupy.cuda.Device().synchronize()
    return lambda: [torch.mm(a, b) for a, b in pairs]
