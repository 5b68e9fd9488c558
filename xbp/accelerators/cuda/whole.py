"""A small network in one kernel, its backward for the data in another, all ∂L/∂W in a third.

Kernels of single operations are bound by launches where networks are small. Here a block takes a
few samples through all layers of a chain, with activations in shared memory. Layers on images see
one sample after the other; linear layers see a block's samples together, so that a weight read from
the second-level cache serves all of them.

Off by default, as it was not yet run on a GPU: ``XBP_WHOLE=1`` in the environment, when CuPy's
first array meets a primitive, switches it on for the chains where it pays by an estimate (`pays`),
``XBP_WHOLE=all`` for all that it can compute. Other chains are left to kernels by operation.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

from xbp.accelerators.chains import AFTER_AFFINE, Match
from xbp.accelerators.cuda import whole_plan, wide
from xbp.accelerators.cuda.convolution import MOST_KERNELS, MOST_SEEN, MOST_SPOTS, seen
from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    REALS,
    blocks,
    dense,
    fits,
    lanes,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.whole_plan import Convolution, Layer, Linear, Plan, Pooling
from xbp.accelerators.shared import MOST_PLACES, Array, Shape, incoming, is_plain
from xbp.primitives.chain import Operation
from xbp.primitives.convolution import convolve
from xbp.primitives.images import flatten, output_size
from xbp.primitives.pooling import average_pool, max_pool
from xbp.primitives.product import affine

Shapes: TypeAlias = "tuple[Shape | None, ...]"

MOST = 16  # as in whole.h
TALL, WIDE, WEIGHT_THREADS = 16, 32, 256  # as in whole_weights.cu
KINDS = {"rectify": "rectify", "tanh": "tangent", "logistic": "logistic"}
"""Activations, and their names in activations.h."""
KNOWN = (affine, convolve, max_pool, average_pool, flatten, *AFTER_AFFINE)
SECONDS_OF_LAUNCH = 3.5e-6
"""What a launch takes on the longest path of a graph, with the work of a small layer (H200)."""
BYTES_PER_SECOND = 5.5e12
"""From the second-level cache to all multiprocessors; an estimate for an H100 or H200."""

OfLayer = structure("OfLayer", **dict.fromkeys(
    ("weight", "bias", "y", "delta", "partial", "where"), pointer
))  # fmt: skip
Task = structure(
    "Task", x=pointer, dy=pointer, dx=pointer, sample=ctypes.c_longlong, entry=ctypes.c_longlong,
    row=ctypes.c_longlong, n=ctypes.c_int, of=OfLayer * MOST,
)  # fmt: skip
Product = structure(
    "Product", delta=pointer, x=pointer, weight=pointer, bias=pointer, sample=ctypes.c_longlong,
    entry=ctypes.c_longlong, outputs=ctypes.c_int, inputs=ctypes.c_int, end=ctypes.c_int,
)  # fmt: skip
Products = structure(
    "Products", of=Product * MOST, partial=pointer, total=pointer,
    **dict.fromkeys(("count", "rows", "sums", "n"), ctypes.c_int),
)  # fmt: skip


def wanted() -> str:
    """The setting of XBP_WHOLE: "", "1" or "all"."""
    said = os.environ.get("XBP_WHOLE", "")
    return said if said in ("1", "all") else ""


def whole_chain(operations: Sequence[Operation]) -> Match:
    """All operations of a chain, if each is known here and they end with a linear layer."""
    kinds = [operation for operation, _ in operations]
    learned = sum(kind in (affine, convolve) for kind in kinds)
    if learned < 2 or affine not in kinds or any(kind not in KNOWN for kind in kinds):
        return None
    return len(operations), {"operations": tuple(operations)}


def network(x: Array, *arrays: Array | None, operations: tuple[Operation, ...]) -> Any:
    """The operations of a chain, one after the other.

    A pixel that is not finite reaches ∂L/∂W of a convolution from the places of maxima alone.

    Parameters
    ----------
    x : array (N, …)
    *arrays : array or None
        Weight and bias of each linear layer and convolution.
    operations : tuple of (primitive, options)
    """
    shapes = tuple(None if array is None else array.shape for array in arrays)
    if not fits(x, *arrays) or x.ndim < 2 or not x.shape[0]:
        return NotImplemented
    try:
        hash(operations)
    except TypeError:  # an option without a hash
        return NotImplemented
    layers = layers_of(operations, x.shape, shapes)
    n, dtype, machine = x.shape[0], x.dtype, machine_of(x)
    if layers is None:
        return NotImplemented
    parameters: list[Any] = [None if array is None else dense(array) for array in arrays]
    loads = tuple(
        lanes(dtype, layer.inputs, machine.address(weight))
        for layer, weight in zip(learned(layers), parameters[::2], strict=True)
    )
    plan = whole_plan.plan(layers, n, dtype.itemsize, loads)
    if plan is None or not (wanted() == "all" or pays(plan, n, dtype.itemsize)):
        return NotImplemented
    return Run(plan, x, parameters).result()


class Run:
    """One forward, with what its backward reads."""

    def __init__(self, plan: Plan, x: Array, parameters: list[Any]) -> None:
        self.plan, self.machine, self.dtype, self.shape = plan, machine_of(x), x.dtype, x.shape
        self.n, self.parameters = x.shape[0], parameters
        innermost = (*range(1, x.ndim), 0)
        self.batch_innermost = x.ndim == 4 and x.transpose(innermost).flags.c_contiguous
        self.x = x if self.batch_innermost else dense(x)
        self.blocks = blocks(self.n, plan.samples)
        empty = self.machine.empty
        self.outputs = [empty((self.n, layer.outputs), x.dtype) for layer in plan.layers]
        self.places = [
            empty((self.n, layer.outputs), "uint8") if layer.has_places else None
            for layer in plan.layers
        ]
        self.task = self._task()

    def _task(self, **more: Sequence[Array | None]) -> Any:
        """The arguments of a kernel, with further arrays of each layer."""
        size = math.prod(self.shape[1:])
        sample, entry = (1, self.n) if self.batch_innermost else (size, 1)
        task = Task(x=self.machine.address(self.x), sample=sample, entry=entry, n=self.n)
        weights = iter(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for k, layer in enumerate(self.plan.layers):
            weight, bias = next(weights) if layer.learned else (None, None)
            given = {"weight": weight, "bias": bias, "y": self.outputs[k], "where": self.places[k]}
            given |= {name: arrays[k] for name, arrays in more.items()}
            for name, array in given.items():
                if array is not None:
                    setattr(task.of[k], name, self.machine.address(array))
        return task

    def _launch(self, name: str, macros: dict[str, Any], task: Any) -> None:
        macros = {"real": REALS[self.dtype.name], **macros}
        threads = self.plan.threads
        self.machine.launch((f"{name}.cu", name), macros, (self.blocks, 1), threads, task)

    def result(self) -> tuple[Array, Any]:
        """y and the gradients."""
        self._launch("whole_forward", self.plan.forward, self.task)
        return self.outputs[-1], self.gradients

    def gradients(self, dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
        """∂L/∂x and the parameters' gradients, those of the last layer first."""
        layers, empty = self.plan.layers, self.machine.empty
        dy = dense(incoming(dy, self.outputs[-1].shape, self.dtype))
        size = sum(layer.parameters for layer in layers if isinstance(layer, Convolution))
        shares, at = empty((self.blocks, max(size, 1)), self.dtype), 0
        deltas: list[Array | None] = []
        partial: list[Array | None] = []
        for layer in layers:
            linear, convolution = isinstance(layer, Linear), isinstance(layer, Convolution)
            deltas.append(empty((self.n, layer.outputs), self.dtype) if linear else None)
            partial.append(shares[0, at:] if convolution else None)
            at += layer.parameters if convolution else 0
        task = self._task(delta=deltas, partial=partial)
        task.dy, task.row = self.machine.address(dy), shares.shape[1]
        dx = None
        if wants_dx:
            dx = self.machine.empty(self._stored(self.shape), self.dtype)
            task.dx = self.machine.address(dx)
            dx = dx.transpose(3, 0, 1, 2) if self.batch_innermost else dx
        self._launch("whole_backward", self.plan.backward[wants_dx], task)
        return dx, *self._to_weights(deltas, shares, size)

    def _stored(self, shape: Shape) -> Shape:
        return (*shape[1:], shape[0]) if self.batch_innermost else shape

    def _to_weights(self, deltas: list[Array | None], shares: Array, size: int) -> list[Any]:
        """The gradients of all parameters, those of the last layer first, in one launch."""
        machine, layers = self.machine, self.plan.layers
        weights = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        memory = machine.empty((sum(layer.parameters for layer in layers),), self.dtype)
        task = Products(
            partial=machine.address(shares), total=machine.address(memory), rows=self.blocks,
            sums=size, n=self.n,
        )  # fmt: skip
        found: list[Any] = []
        end, at, of_convolutions = 0, size, 0
        for k, layer in enumerate(layers):
            if not layer.learned:
                continue
            begin = at if isinstance(layer, Linear) else of_convolutions
            weight, bias = weights[len(found) // 2]
            split = begin + weight.size
            own = memory[begin:split].reshape(weight.shape), memory[split : split + layer.biases]
            found += [None if bias is None else own[1], own[0]]
            if isinstance(layer, Convolution):
                of_convolutions += layer.parameters
                continue
            at += layer.parameters
            source = self.outputs[k - 1] if k else self.x
            inside = k == 0 and self.batch_innermost
            end += blocks(layer.outputs, TALL) * blocks(layer.inputs, WIDE)
            product = task.of[task.count]
            product.delta, product.x = map(machine.address, (deltas[k], source))
            product.weight = machine.address(own[0])
            product.bias = None if bias is None else machine.address(own[1])
            product.sample, product.entry = (1, self.n) if inside else (layer.inputs, 1)
            product.outputs, product.inputs, product.end = layer.outputs, layer.inputs, end
            task.count += 1
        grid = (end + blocks(size, WIDE), 1)
        macros = {"real": REALS[self.dtype.name]}
        machine.launch(("whole_weights.cu", "whole_weights"), macros, grid, WEIGHT_THREADS, task)
        return found[::-1]


# --- what is computed ----------------------------------------------------------------------------


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


def learned(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that have parameters."""
    return [layer for layer in layers if layer.learned]


def pays(plan: Plan, n: int, itemsize: int) -> bool:
    """Whether fewer launches save more time than reading the weights once a block takes.

    An estimate, not yet measured.
    """
    saved = sum(layer.launches for layer in plan.layers) - 3
    both = sum(
        layer.parameters * (2 if k else 1)  # the backward of the first layer reads no weights
        for k, layer in enumerate(plan.layers)
        if layer.learned
    )
    cost: float = blocks(n, plan.samples) * both * itemsize / BYTES_PER_SECOND
    return saved * SECONDS_OF_LAUNCH > cost
