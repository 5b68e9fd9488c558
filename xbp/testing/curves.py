"""Whole trainings on every backend, compared with numpy in float64 step by step.

How far may two correct trainings be apart? A sum of n products computed with unit roundoff u is,
whatever its order, the exact sum of numbers that were moved by about √n·u of themselves (Higham &
Mary 2019, a new approach to probabilistic rounding error analysis, theorem 2.4; never by more than
n·u to first order: Higham 2002, eq. 3.4). So a training in that arithmetic is an exact training
with perturbed images and weights in every step. The growth of such perturbations through a hundred
steps is measured by `PROBES` trainings in float64, which multiply every image and weight by
1 ± √n·u, with new random signs in each step and n for the longest sum of a step.

A loss passes when its distance to the truth is no larger than the worst of these probes has been
until that step, or than the error of a mean over the batch (`xbp.testing.tolerances`); the last
weights pass when a probe's are as far away. That one length stands for all leaves room for what
three probes miss: a forward sum has 400 products at most. Nothing in this is fitted to a backend.

A network of tanh and average pooling is smooth: moves grow in proportion, and the bound stays
close through all steps (some 10⁻⁵ in float32). With ReLU and maximum pooling a move across a kink
sends a gradient elsewhere, and float32 is coarse enough to meet such kinks: the bound is as close
for about twenty steps and then opens to some 10⁻¹, because correct trainings do part there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import xbp
from xbp import accelerators, models, nn, optim
from xbp.backend import Array, brief, on_host, to_numpy, use_backend
from xbp.testing.finding import Finding
from xbp.testing.host_sync import assert_no_host_sync
from xbp.testing.tolerances import LAMBDA, roundoff

Host: TypeAlias = "NDArray[Any]"
Hosts: TypeAlias = "dict[str, list[Host]]"

STEPS, BATCH, PROBES = 100, 32, 3
LONGEST = BATCH * 28 * 28
"""The products in one entry of the first convolution's weight gradient: one a pixel."""


@dataclass(frozen=True)
class Training:
    """LeNet-5 on MNIST by SGD with momentum: initial weights, losses, last weights.

    The compared trainings have equal initial weights and batches, and differ in arithmetic only.
    All losses stay on the device until the last step is done.

    Parameters
    ----------
    name : str
    options : dict
        Of `xbp.models.LeNet5`.
    lr : float
    steps : int, default 100
        Of 32 images each.
    """

    name: str
    options: dict[str, Any]
    lr: float
    steps: int = STEPS
    kind: str = "training"

    @property
    def case(self) -> str:
        return f"{self.name}, {self.steps} steps"

    def check(
        self, backends: Iterable[str], dtypes: Iterable[str] = ("float32", "float64")
    ) -> list[Finding]:
        """The findings on each of the backends.

        The finding about the loss is that of the step with the largest error / bound.
        """
        found: list[Finding] = []
        backends, size = list(backends), self.steps * BATCH
        (images, labels), _ = xbp.datasets.load_mnist()
        for dtype in dtypes:
            data = xbp.datasets.standardize_images(images[:size], dtype=dtype), labels[:size]
            with accelerators.disabled():
                truth = _host(self.run("numpy", data, dtype, "float64"))
                bounds = self.bounds(data, dtype, truth)
                drawn = _host(self.run("numpy", data, dtype, dtype, steps=0))
            for name in backends:
                try:
                    with assert_no_host_sync() if sees_waits(name) else nullcontext():
                        initial = self.run(name, data, dtype, dtype, steps=0)
                        run = self.run(name, data, dtype, dtype)
                except Exception as error:
                    problem = f"the training fails with {brief(error)}"
                    found.append(Finding(name, dtype, "the training", "forward", 0.0, 0.0, problem))
                    continue
                found += _compare(name, dtype, _host(run), truth, bounds)
                found += _same_bits(name, dtype, _host(initial), drawn)
        return found

    def bounds(self, data: tuple[Host, Host], dtype: str, truth: Hosts) -> dict[str, Host]:
        """Bounds for the errors of the losses of all steps, and of the last weights."""
        bounds = {key: np.zeros(len(arrays)) for key, arrays in truth.items()}
        for seed in range(PROBES):
            move = Move(math.sqrt(LONGEST) * roundoff(dtype), seed)
            probe = _host(self.run("numpy", data, dtype, "float64", move))
            for key, bound in bounds.items():
                np.maximum(bound, distances(probe, truth, key), out=bound)
        rounding = LAMBDA * math.sqrt(BATCH) * roundoff(dtype) * np.abs(truth["the loss"])
        bounds["the loss"] = np.maximum(np.maximum.accumulate(bounds["the loss"]), rounding)
        return bounds

    def run(
        self,
        backend: str,
        data: tuple[Host, Host],
        start: str,
        arithmetic: str,
        move: Move | None = None,
        steps: int | None = None,
    ) -> dict[str, list[Array]]:
        """The losses of all steps and the last weights, still on the device.

        Weights and images are rounded to the dtype `start`, then converted to another dtype.
        """
        with use_backend(backend) as place:
            model, loss = models.LeNet5(**self.options, dtype=start, rng=0), nn.CrossEntropyLoss()
            model.astype(arithmetic)
            optimizer = optim.SGD(model.parameters(), self.lr, momentum=0.9)
            x, y = place.asarray(data[0], dtype=arithmetic), place.asarray(data[1])
            losses = []
            for step in range(self.steps if steps is None else steps):
                rows = slice(step * BATCH, (step + 1) * BATCH)
                images = x[rows, ...]
                if move is not None:
                    images = move(images)
                    for parameter in model.parameters():
                        parameter.data = move(parameter.data)
                logits, backward = model.forward(images, training=True)
                value, gradient = loss(logits, y[rows])
                backward(gradient)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(value)
            return {"the loss": losses} | {name: [p.data] for name, p in model.named_parameters()}


TRAININGS = (
    Training("LeNet-5 (tanh, average)", {"activation": "tanh", "pool": "average"}, lr=0.05),
    Training("LeNet-5 (ReLU, maximum)", {}, lr=0.01),
)


def sees_waits(backend: str) -> bool:
    """Whether the host has to wait for the values of a backend's arrays."""
    with use_backend(backend) as place:
        return not on_host(place.asarray([0.0]))


class Move:
    """Multiplication by 1 ± size, with random signs."""

    def __init__(self, size: float, seed: int) -> None:
        self.size, self.rng = size, np.random.default_rng(seed)

    def __call__(self, host: Host) -> Host:
        moved: Host = host * (1 + self.size * self.rng.choice([-1.0, 1.0], host.shape))
        return moved


def _host(run: dict[str, list[Array]]) -> Hosts:
    return {key: [to_numpy(array) for array in arrays] for key, arrays in run.items()}


def distances(run: Hosts, truth: Hosts, key: str) -> Host:
    """The largest error in each array: of the losses step by step, or of the last weights."""
    pairs = zip(run[key], truth[key], strict=True)
    return np.array([np.max(np.abs(a.astype(np.float64) - b)) for a, b in pairs])


def _compare(
    backend: str,
    dtype: str,
    run: Hosts,
    truth: Hosts,
    bounds: dict[str, Host],
) -> Iterator[Finding]:
    steps = len(truth["the loss"])
    for key, bound in bounds.items():
        error = distances(run, truth, key)
        worst = int(np.argmax(error / bound))  # the first nan, if there is one
        quantity, direction = f"{key} after {steps} steps", "state"
        if key == "the loss":
            quantity, direction = f"the loss of step {worst + 1} of {steps}", "forward"
        problem = "" if np.isfinite(error[worst]) else "is not finite"
        found = {"error": float(error[worst]), "bound": float(bound[worst])}
        if problem:
            found = {"error": 0.0, "bound": 0.0}
        yield Finding(backend, dtype, quantity, direction, **found, problem=problem)


def _same_bits(backend: str, dtype: str, drawn: Hosts, expected: Hosts) -> Iterator[Finding]:
    for key, arrays in expected.items():
        if arrays:
            same = drawn[key][0].tobytes() == arrays[0].tobytes()
            problem = "" if same else "is not the same, bit for bit, as on numpy"
            yield Finding(backend, dtype, f"the initial {key}", "bits", 0.0, 0.0, problem)
