"""The launches of recorded training steps, and how many of them wait for one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler
from nightly import NIGHTLY

import xbp
from xbp import accelerators, models, nn, optim
from xbp.backend import Graph
from xbp.training import capture, recordings

pytestmark = needs_a_compiler


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch, machine: Emulation, _in_use: None) -> None:
    """A device whose replay calls the recorded function again; the machine counts its launches."""

    class Again(Graph):
        def record(self, function: Callable[[], object]) -> None:
            def replay() -> None:
                machine.launches.clear()
                machine.aside = 0
                function()

            self.replay = replay  # type: ignore[method-assign]

    for module in (capture, recordings):
        monkeypatch.setattr(module, "graph_for", lambda array: Again())


def fit(model: nn.Layer, rule: Any, x: Any, y: Any) -> list[float]:
    """The losses of two steps: the warm-up, and the recorded one."""
    rule = rule(model.parameters())
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), rule, rng=0, capture=True)
    history = trainer.fit(x, y, batch_size=len(x), epochs=2, verbose=False)
    return history["loss"]


LENET5 = {
    "take": 1, "convolve": 2, "multiply": 6, "cross_entropy": 1, "convolve_to_input": 1,
    "convolve_to_weight": 2,
}  # fmt: skip
"""Numbers and samples of the step; layers forward; loss; layers backward. The last launch is the
update, which also writes the row of results."""


@pytest.mark.parametrize(
    ("rule", "last"), [(optim.SGD, "add_scaled"), (optim.Adam, "adaptive_step")][: 1 + NIGHTLY]
)
def test_lenet5(rule: Any, last: str, machine: Emulation) -> None:
    """With a batch whose sums for ∂L/∂W have parts in both convolutions."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 1, 28, 28)), rng.integers(0, 10, 21)

    def losses() -> list[float]:
        model = models.LeNet5(rng=0).astype("float64")
        return fit(model, lambda parameters: rule(parameters, 0.01), x, y)

    found = losses()
    assert Counter(machine.launches) == LENET5 | {last: 1} and machine.launches[-1] == last
    assert len(machine.launches) == 14 and len(machine.launches) - machine.aside == 13
    with accelerators.disabled():
        # Two steps, each of sums of at most a few thousand numbers of order 1.
        np.testing.assert_allclose(found, losses(), rtol=1e-11)
