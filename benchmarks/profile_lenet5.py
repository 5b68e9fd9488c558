"""Where a training step of LeNet-5 spends its time: each layer forward and backward, in turn.

    python benchmarks/profile_lenet5.py [--batch 128] [--optimizer SGD]

Printed are µs an image, each the 20th percentile over the steps (others' work on the machine only
ever adds), and page faults a step. XBP_ACCELERATE=0, XBP_NUM_THREADS and OPENBLAS_NUM_THREADS work
as ever.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict

import numpy as np

import xbp
from xbp import accelerators, nn, optim
from xbp.nn.fusion import fused

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
layers = list(fused(model.layers))
seconds: dict[str, list[float]] = defaultdict(list)


def step(number: int) -> None:
    """One step; the time of each part goes into `seconds`."""
    rows = slice(number % 16 * batch, (number % 16 + 1) * batch)
    value, backwards, clock = x[rows], [], time.perf_counter()

    def note(name: str) -> None:
        nonlocal clock
        seconds[name].append(time.perf_counter() - clock)
        clock = time.perf_counter()

    for index, layer in enumerate(layers):
        value, backward = layer.forward(value, training=True)
        backwards.append(backward)
        note(f"{index} {type(layer).__name__}, forward")
    _, gradient = loss(value, labels[rows])
    note("loss")
    for index in range(len(layers) - 1, 0, -1):
        gradient = backwards[index](gradient)
        note(f"{index} {type(layers[index]).__name__}, backward")
    nn.for_parameters(backwards[0])(gradient)
    note(f"0 {type(layers[0]).__name__}, backward without dx")
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
