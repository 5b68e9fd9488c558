"""The table's layers and losses as tests use them: with inputs and a definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.testing import cases
from xbp.testing.cases import Case

CASES = [case for case in cases.CASES if case.line.oracle and case.finite]
LAYERS = [case for case in CASES if case.kind == "layer"]
LOSSES = [case for case in CASES if case.kind == "loss"]
CALLS = list({case.call: case for case in reversed(CASES)}.values())[::-1]
"""The first case of each line."""


def forward(
    case: Case, inputs: tuple[NDArray[Any], ...], *, training: bool = True
) -> tuple[Any, Any]:
    """(state, output) of a case's layer, or (empty state, value) of its loss; seed 0."""
    subject = case.make()
    if case.kind != "loss":
        y = subject.forward(*inputs, training=training, rng=0)[0]
        return subject.state_dict(), y
    return {}, subject(*inputs)[0]


def check_oracle(case: Case, *, training: bool = True) -> None:
    inputs = case.inputs()
    state, y = forward(case, inputs, training=training)
    expected = case.oracle(state, *inputs, training=training)
    # Both are float64 sums of some hundred products, in different orders.
    largest = np.max(np.abs(expected), initial=1.0)
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13 * largest)
