"""Profile of a training step of LeNet-5: each layer forward and backward.

    python benchmarks/profile_lenet5.py [--batch 128] [--optimizer SGD]

Prints µs per image, as 20th percentiles over the steps (other processes only add time), and page
faults per step. XBP_ACCELERATE=0, XBP_NUM_THREADS and OPENBLAS_NUM_THREADS have their usual effect.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from typing import Any

import numpy as np

import xbp
from xbp import accelerators, nn, optim, primitives

parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--optimizer", default="SGD")
options = parser.parse_args()

batch = options.batch
(images, labels), _ = xbp.datasets.load_mnist()
x = xbp.datasets.standardize_images(images[: 16 * batch])
model, loss = xbp.models.LeNet5(rng=0), nn.CrossEntropyLoss()
optimizer = getattr(optim, options.optimizer)(model.parameters(), lr=0.001)
said = [layer.operation() for layer in model.layers]
operations = tuple((it.primitive, tuple(it.options.items())) for it in said)
parameters = [(*it.read, *it.added) for it in said]
seconds: dict[str, list[float]] = defaultdict(list)


def step(number: int) -> None:
    """One step; appends the time of each part to `seconds`."""
    rows = slice(number % 16 * batch, (number % 16 + 1) * batch)
    value, clock = x[rows], time.perf_counter()
    seen: list[nn.Layer] = []
    names: list[str] = []
    backwards: list[Any] = []

    def note(name: str) -> None:
        nonlocal clock
        seconds[name].append(time.perf_counter() - clock)
        clock = time.perf_counter()

    arrays = [[p.data for p in own] for own in parameters]
    for value, gradients, count in primitives.chain.passes(value, operations, arrays):  # noqa: B007, B020
        done = len(seen)
        seen += model.layers[done : done + count]
        names.append(" ".join(type(layer).__name__ for layer in seen[done:]))
        backwards.append((gradients, [p for own in parameters[done : done + count] for p in own]))
        note(f"{len(names)} {names[-1]}, forward")
    _, gradient = loss(value, labels[rows])
    note("loss")
    for index in range(len(names), 0, -1):
        gradients, own = backwards[index - 1]
        gradient, *found = gradients(gradient, index > 1)
        for parameter, grad in zip(own, found, strict=True):
            parameter.add_grad(grad)
        note(f"{index} {names[index - 1]}, backward" + " without dx" * (index == 1))
    optimizer.step()
    optimizer.zero_grad()
    note(f"{options.optimizer} step")


for number in range(20):
    step(number)
seconds.clear()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(options.steps):
    step(number)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
micros = {name: 1e6 * np.percentile(times, 20) / batch for name, times in seconds.items()}
print(f"batch {batch}; accelerators: {accelerators.status()}")
for name, value in micros.items():
    print(f"{name:36} {value:7.2f}")
print(f"{'all':36} {sum(micros.values()):7.2f}   {faults / options.steps:.0f} page faults a step")
