"""Small networks whole in one kernel: forward, loss and backward, and ∂L/∂W, in two launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.gpu.tuning.row import Case, Draw, Row, error_of
from xbp import accelerators, models, nn, primitives
from xbp.accelerators.cuda import launch, whole, whole_layers, whole_plan
from xbp.accelerators.cuda.tuned import Numbers
from xbp.nn.sequential import plan_of

FAMILY = "networks"
FILES = ("whole_step.cu", "whole_weights.cu")
BATCHES = (128, 32, 512, 2048)
NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "LeNet-5": (lambda: models.LeNet5(rng=0), (1, 28, 28)),
    "784-128-10": (lambda: models.MLP(784, 128, 10, rng=0), (784,)),
    "12-8-10": (lambda: models.MLP(12, 8, 10, rng=0), (12,)),
    "64-128-128-128-10": (lambda: models.MLP(64, 128, 128, 128, 10, rng=0), (64,)),
}
SMALL = "12-8-10"
CLASSES = 10
TERMS = 10**6
"""More than the terms of any sum, since rounding may bring an output across ReLU's kink."""


def label(numbers: Numbers) -> str:
    """Threads, samples, blocks of a multiprocessor.

    >>> label((512, 8, 2))
    '512 threads, 8 samples, 2 blocks'
    """
    threads, samples, resident = numbers
    return f"{threads} threads, {samples} samples, {resident} blocks"


def operations_of(model: nn.Sequential) -> Any:
    (part,) = plan_of(model).parts
    return part.operations[True]  # type: ignore[union-attr]


def choices(name: str, batch: int) -> dict[str, Numbers]:
    """The rule's choice, and others that fit into shared memory."""
    make, shape = NETWORKS[name]
    model = make()
    shapes = tuple(parameter.data.shape for parameter in model.parameters())
    layers = whole_layers.layers_of(operations_of(model), (batch, *shape), shapes)
    assert layers is not None
    loads = tuple(4 if layer.inputs % 4 == 0 else 1 for layer in whole.learned(layers))
    first = whole_plan.by_rule(layers, batch, 4, loads)
    assert first is not None
    found: dict[str, Numbers] = {label(first): first}
    for samples in (first.samples, first.samples // 2, 2 * first.samples):
        several = samples > 0 and launch.blocks(batch, samples) > launch.PROCESSORS
        for resident in (1, 2) if several else (1,):
            for threads in (512, 1024, 256):
                division = whole_plan.Division(threads, samples, resident)
                possible = whole_plan.is_possible(division)
                if possible and whole_plan.plan(layers, 4, loads, division) is not None:
                    found[label(division)] = division
    return found


def rows(small: bool = False) -> Iterator[Row]:
    """The networks of the table; `small`, of a size for the emulation."""
    for batch in (4,) if small else BATCHES:
        for name in (SMALL,) if small else (it for it in NETWORKS if it != SMALL):
            model = NETWORKS[name][0]()
            flop = 6 * batch * sum(parameter.data.size for parameter in model.parameters())
            case = partial(case_of, batch, name)
            every = choices(name, batch)
            some = dict(list(every.items())[:2]) if small else every
            yield Row(FAMILY, f"batch {batch}, {name}", flop, whole.FAMILY, some, case)


def case_of(batch: int, name: str, draw: Draw) -> Case:
    make, shape = NETWORKS[name]
    model = make()
    x, scores = draw(batch, *shape), draw(batch, CLASSES)
    labels = scores.argmax(axis=1)
    operations, rest = operations_of(model), model.parameters()
    pairs = iter(zip(rest[::2], rest[1::2], strict=True))
    arrays = [
        [draw(*it.data.shape) / it.data.shape[-1] for it in (next(pairs) if learned else ())]
        for learned in (kind in whole.LEARNED for kind, _ in operations)
    ]
    loss = primitives.cross_entropy, (("scale", 1 / batch),)

    def call() -> Any:
        with mock.patch.dict(os.environ, XBP_WHOLE="all"):
            y, value, gradients = whole.chain_to_loss(x, operations, arrays, loss, labels)
        return [y, value, *gradients()]

    def error(found: Any) -> float:
        double = [[array.astype("f8") for array in own] for own in arrays]
        with accelerators.disabled():
            y, value, gradients = primitives.chain_to_loss(
                x.astype("f8"), operations, double, loss, labels
            )
        true = [y, value, *gradients()]
        return max(error_of(a, b, TERMS) for a, b in zip(found, true, strict=True))

    return Case(call, error, lambda: by_torch(make(), x, labels))


def by_torch(model: nn.Sequential, x: Any, labels: Any) -> Callable[[], Any]:
    """The same network, forward, loss and gradients, with new weights."""
    import cupy
    import torch

    layers = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            o, c, *kernel = layer.weight.data.shape
            layers.append(torch.nn.Conv2d(c, o, tuple(kernel), padding=layer.padding))
        elif isinstance(layer, nn.Linear):
            layers.append(torch.nn.Linear(*reversed(layer.weight.data.shape)))
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(torch.nn.MaxPool2d(2))
        else:
            layers.append(getattr(torch.nn, type(layer).__name__)())
    network = torch.nn.Sequential(*layers).cuda()
    given, wanted = (torch.as_tensor(it, device="cuda") for it in (x, labels))
    cupy.cuda.Device().synchronize()
    parameters = list(network.parameters())

    def call() -> Any:
        loss = torch.nn.functional.cross_entropy(network(given), wanted)
        return torch.autograd.grad(loss, parameters)

    return call
