"""The table's optimizers, trained for a hundred steps and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.backend import backend_of, find_backend
from xbp.testing import oracles
from xbp.testing.cases import OPTIMIZERS, RULES, Rule

STEPS = 100
WITHOUT_PEER = ("Lion", "LAMB")
"""Rules that PyTorch lacks."""

Make = Callable[..., optim.Optimizer]
ORACLES = {line.name: line.oracle for line in OPTIMIZERS if line.oracle}
ONE_OF_EACH = list({rule.name: rule for rule in RULES}.values())
"""The last options of each optimizer, which reach every term."""


def problem(
    shape: tuple[int, ...] = (3, 4), seed: int = 3
) -> tuple[oracles.F64, list[oracles.F64]]:
    """A parameter and random gradients for 100 steps, with scales from 0.01 to 100."""
    rng = default_rng(seed)
    scales = 10.0 ** rng.uniform(-2, 2, shape)
    return rng.normal(size=shape), [scales * rng.normal(size=shape) for _ in range(STEPS)]


def feed(optimizer: optim.Optimizer, *gradients: NDArray[Any]) -> None:
    """One step with these gradients, one for each parameter."""
    optimizer.zero_grad()
    for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
        backend = backend_of(parameter.data)
        parameter.add_grad(backend.asarray(gradient, dtype=parameter.data.dtype))
    optimizer.step()


def trained(
    rule: Make, start: oracles.F64, gradients: list[oracles.F64], backend: str = "numpy"
) -> NDArray[Any]:
    parameter = nn.Parameter(find_backend(backend).asarray(start.copy()))
    optimizer = rule([parameter])
    for gradient in gradients:
        feed(optimizer, gradient)
    return xbp.to_numpy(parameter.data)


def assert_close(actual: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    """Equal up to `tolerance`, relative to the largest entry."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def check_variance(backend: str = "numpy") -> None:
    """With a constant gradient PyTorch's centered RMSprop is nan after a few dozen steps."""
    rule = Rule("RMSprop", {"alpha": 0.5, "centered": True})
    found = trained(rule, np.array([1.0, 2.0]), [np.array([0.1, 0.7])] * STEPS, backend)
    assert np.isfinite(found).all()


def check_oracle(rule: Rule) -> None:
    """A hundred steps equal the definition."""
    start, gradients = problem()
    # Some roundings of 1e-16 a step; a centered variance loses two digits to cancellation.
    expected = ORACLES[rule.name](start, gradients, **rule.options)
    assert_close(trained(rule, start, gradients), expected, 1e-12)
