"""Small networks for the kernels that compute them whole, and what the reference gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from layouts import assert_close

from xbp import accelerators, nn, primitives
from xbp.accelerators.cuda import whole, whole_plan
from xbp.nn.operation import OperationChain

NETWORKS: dict[str, tuple[tuple[int, ...], Any]] = {
    "lenet": (
        (1, 10, 11),
        lambda: [
            *(nn.Conv2d(1, 3, 5, padding=2, rng=0), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 6, (3, 2), rng=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(12, 9, rng=2), nn.ReLU(), nn.Linear(9, 5, rng=3)),
        ],
    ),
    "means": (
        (2, 9, 8),
        lambda: [
            *(nn.Conv2d(2, 5, 3, padding=1, bias=False, rng=0), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(5, 4, 3, 2, 1, rng=1), nn.Sigmoid(), nn.MaxPool2d(3, 2, 1)),
            *(nn.Flatten(), nn.Linear(4, 3, bias=False, rng=2), nn.Tanh()),
        ],
    ),
    "maxima first": (
        (1, 8, 7),
        lambda: [
            *(nn.MaxPool2d(2, 1), nn.Conv2d(1, 2, (2, 3), (1, 2), (1, 0), rng=0)),
            *(nn.MaxPool2d((2, 1)), nn.Tanh(), nn.AvgPool2d((2, 3), 1, (1, 1)), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(20, 4, rng=2)),
        ],
    ),
    "images as vectors": (
        (2, 5, 3),
        lambda: [nn.Flatten(), nn.Linear(30, 33, rng=0), nn.Sigmoid(), nn.Linear(33, 2, rng=1)],
    ),
    "deep": (
        (40,),
        lambda: [
            *(nn.Linear(40, 36, rng=0), nn.Tanh(), nn.Linear(36, 8, bias=False, rng=1), nn.ReLU()),
            *(nn.Linear(8, 12, rng=2), nn.Linear(12, 7, rng=3), nn.ReLU()),
        ],
    ),
}
"""Shapes of a sample, and layers."""


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All networks that can be computed, by few threads, on a GPU of two multiprocessors."""
    monkeypatch.setenv("XBP_WHOLE", "all")
    monkeypatch.setattr(whole_plan, "THREADS", 64)
    monkeypatch.setattr(whole_plan, "PROCESSORS", 2)
    whole_plan.by_rule.cache_clear()
    yield
    whole_plan.by_rule.cache_clear()


class Problem:
    """A network, a batch and ∂L/∂y."""

    def __init__(
        self,
        name: str,
        n: int,
        dtype: str,
        order: Any = np.ascontiguousarray,
        networks: Any = NETWORKS,
    ) -> None:
        shape, layers = networks[name]
        rng = np.random.default_rng(0)
        self.model = nn.Sequential(*layers()).astype(dtype)
        for parameter in self.model.parameters():  # biases are 0 at first
            parameter.data[...] += 0.1 * rng.normal(size=parameter.data.shape)
        self.x = order(rng.normal(size=(n, *shape)).astype(dtype))
        part = OperationChain([*self.model])  # type: ignore[list-item]
        self.operations = part.operations[True]
        _, self.arrays = part.lent(self.x, True)
        self.dy = rng.normal(size=self.model(self.x).shape).astype(dtype)

    def solve(self, machine: Emulation, wants_dx: bool = True) -> list[Any]:
        """y, ∂L/∂x and the parameters' gradients, by the kernels."""
        given = [None if a is None else machine.guarded(a) for each in self.arrays for a in each]
        x, dy = machine.guarded(self.x), machine.guarded(self.dy)
        y, gradients = whole.network(x, *given, operations=self.operations)
        return [y, *gradients(dy, wants_dx)]

    def truth(self) -> list[Any]:
        """The same by the reference, in float64."""
        with accelerators.disabled():
            y, gradients = primitives.chain(self.x.astype("f8"), self.operations, self.double())
            return [y, *gradients(self.dy.astype("f8"))]

    def step(self, machine: Emulation, labels: Any, scale: float = 0.3) -> list[Any]:
        """y, the loss and the parameters' gradients, by the kernels."""
        given = [[None if a is None else machine.guarded(a) for a in own] for own in self.arrays]
        x, labels = machine.guarded(self.x), machine.guarded(labels)
        done = whole.chain_to_loss(x, self.operations, given, of_scale(scale), labels)
        return [*done[:2], *done[2]()]

    def true_step(self, labels: Any, scale: float = 0.3) -> list[Any]:
        """The same by the reference, in float64."""
        with accelerators.disabled():
            done = primitives.chain_to_loss(
                self.x.astype("f8"), self.operations, self.double(), of_scale(scale), labels
            )
            return [*done[:2], *done[2]()]

    def double(self) -> list[list[Any]]:
        return [[None if a is None else a.astype("f8") for a in own] for own in self.arrays]


def of_scale(scale: float) -> Any:
    """Cross-entropy as the last operation of a chain."""
    return primitives.cross_entropy, (("scale", scale),)


def agree(found: list[Any], truth: list[Any], terms: int) -> None:
    for ours, true in zip(found, truth, strict=True):
        assert (ours is None) == (true is None)
        if ours is not None:
            assert ours.shape == true.shape
            assert_close(ours, true, terms)
