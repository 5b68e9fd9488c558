"""The launches of `whole`, and their arguments."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from xbp.accelerators.cuda.cross_entropy import LABELS
from xbp.accelerators.cuda.launch import REALS, blocks, dense, machine_of, pointer, structure
from xbp.accelerators.cuda.whole_kinds import Convolution, Linear
from xbp.accelerators.cuda.whole_layers import MOST
from xbp.accelerators.cuda.whole_plan import Plan
from xbp.accelerators.shared import Array, Shape, incoming

TALL, WIDE, WEIGHT_THREADS = 16, 32, 256  # as in whole_weights.cu

OfLayer = structure("OfLayer", **dict.fromkeys(
    ("weight", "bias", "y", "delta", "partial", "where"), pointer
))  # fmt: skip
Task = structure(
    "Task", **dict.fromkeys(("x", "dy", "labels", "dx", "loss"), pointer),
    **dict.fromkeys(("sample", "entry", "row"), ctypes.c_longlong), scale=ctypes.c_double,
    n=ctypes.c_int, of=OfLayer * MOST,
)  # fmt: skip
Product = structure(
    "Product", delta=pointer, x=pointer, weight=pointer, bias=pointer, sample=ctypes.c_longlong,
    entry=ctypes.c_longlong, outputs=ctypes.c_int, inputs=ctypes.c_int, end=ctypes.c_int,
)  # fmt: skip
Products = structure(
    "Products", of=Product * MOST, partial=pointer, total=pointer, loss=pointer,
    **dict.fromkeys(("count", "rows", "sums", "n"), ctypes.c_int),
)  # fmt: skip


class Run:
    """One forward, with what its backward reads."""

    def __init__(self, plan: Plan, x: Array, parameters: list[Any]) -> None:
        self.plan, self.machine, self.dtype, self.shape = plan, machine_of(x), x.dtype, x.shape
        self.n, self.parameters = x.shape[0], parameters
        innermost = (*range(1, x.ndim), 0)
        self.batch_innermost = x.ndim == 4 and x.transpose(innermost).flags.c_contiguous
        self.x = x if self.batch_innermost else dense(x)
        self.blocks = blocks(self.n, plan.division.samples)
        empty = self.machine.empty
        self.outputs = [empty((self.n, layer.outputs), x.dtype) for layer in plan.layers]
        self.places = [
            empty((self.n, layer.outputs), "uint8") if layer.has_places else None
            for layer in plan.layers
        ]

    def result(self) -> tuple[Array, Any]:
        """y and the gradients."""
        self._launch("whole_forward", self.plan.forward, self._task())
        return self.outputs[-1], self.gradients

    def gradients(self, dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
        """∂L/∂x and the parameters' gradients, those of the last layer first."""
        dy = dense(incoming(dy, self.outputs[-1].shape, self.dtype))
        left = Left(self)
        task = self._task(left)
        task.dy = self.machine.address(dy)
        dx = None
        if wants_dx:
            dx = self.machine.empty(self._stored(self.shape), self.dtype)
            task.dx = self.machine.address(dx)
            dx = dx.transpose(3, 0, 1, 2) if self.batch_innermost else dx
        self._launch("whole_backward", self.plan.backward[wants_dx], task)
        return dx, *self._to_weights(left)

    def step(self, labels: Array, scale: float) -> tuple[Array, Array, Any]:
        """y, the loss, and the parameters' gradients, those of the last layer first."""
        left = Left(self, with_loss=True)
        task = self._task(left)
        task.labels, task.scale = self.machine.address(labels), scale
        task.loss = self.machine.address(left.shares[0, left.size :])
        macros = {**self.plan.step, "LABEL": LABELS[labels.dtype.name]}
        self._launch("whole_step", macros, task)
        found = self._to_weights(left)
        return self.outputs[-1], left.loss, lambda: found

    def _task(self, left: Left | None = None) -> Any:
        """The arguments of a kernel; with `left` also those of a backward."""
        size = math.prod(self.shape[1:])
        sample, entry = (1, self.n) if self.batch_innermost else (size, 1)
        task = Task(x=self.machine.address(self.x), sample=sample, entry=entry, n=self.n)
        weights = iter(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        for k, layer in enumerate(self.plan.layers):
            weight, bias = next(weights) if layer.learned else (None, None)
            given = {"weight": weight, "bias": bias, "y": self.outputs[k], "where": self.places[k]}
            if left is not None:
                given |= {"delta": left.deltas[k], "partial": left.partial[k]}
            for name, array in given.items():
                if array is not None:
                    setattr(task.of[k], name, self.machine.address(array))
        if left is not None:
            task.row = left.shares.shape[1]
        return task

    def _launch(self, name: str, macros: dict[str, Any], task: Any) -> None:
        macros = {"real": REALS[self.dtype.name], **macros}
        threads = self.plan.division.threads
        self.machine.launch((f"{name}.cu", name), macros, (self.blocks, 1), threads, task)

    def _stored(self, shape: Shape) -> Shape:
        return (*shape[1:], shape[0]) if self.batch_innermost else shape

    def _to_weights(self, left: Left) -> list[Any]:
        """The gradients of all parameters, those of the last layer first, in one launch."""
        machine, layers = self.machine, self.plan.layers
        weights = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        memory = machine.empty((sum(layer.parameters for layer in layers),), self.dtype)
        task = Products(
            partial=machine.address(left.shares), total=machine.address(memory), rows=self.blocks,
            sums=left.sums, n=self.n,
        )  # fmt: skip
        if left.loss is not None:
            task.loss = machine.address(left.loss)
        found: list[Any] = []
        end, at, of_convolutions = 0, left.size, 0
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
            product.delta, product.x = map(machine.address, (left.deltas[k], source))
            product.weight = machine.address(own[0])
            product.bias = None if bias is None else machine.address(own[1])
            product.sample, product.entry = (1, self.n) if inside else (layer.inputs, 1)
            product.outputs, product.inputs, product.end = layer.outputs, layer.inputs, end
            task.count += 1
        grid = (end + blocks(left.sums, WIDE), 1)
        macros = {"real": REALS[self.dtype.name]}
        machine.launch(("whole_weights.cu", "whole_weights"), macros, grid, WEIGHT_THREADS, task)
        return found[::-1]


class Left:
    """What a backward leaves for ∂L/∂W.

    Attributes
    ----------
    deltas : list of array or None
        ∂L/∂(W x + b) of each linear layer.
    partial : list of array or None
        The first block's share of each convolution's ∂L/∂W and ∂L/∂b.
    shares : array (blocks, sums)
        All of these, and last the parts of the loss.
    size : int
        The number of sums without the loss.
    loss : array or None
        Room for its value, apart from gradients, which need not live as long.
    """

    def __init__(self, run: Run, with_loss: bool = False) -> None:
        layers, empty = run.plan.layers, run.machine.empty
        self.size = sum(layer.parameters for layer in layers if isinstance(layer, Convolution))
        self.sums = self.size + with_loss
        self.shares, at = empty((run.blocks, max(self.sums, 1)), run.dtype), 0
        self.loss: Any = empty((), run.dtype) if with_loss else None
        self.deltas: list[Array | None] = []
        self.partial: list[Array | None] = []
        for layer in layers:
            linear, convolution = isinstance(layer, Linear), isinstance(layer, Convolution)
            self.deltas.append(empty((run.n, layer.outputs), run.dtype) if linear else None)
            self.partial.append(self.shares[0, at:] if convolution else None)
            at += layer.parameters if convolution else 0
