"""One table: every optimizer, the options to try it with, and the definition it must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracles
from numpy.random import default_rng
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.backend import backend_of, find_backend

STEPS = 100


class Rule(NamedTuple):
    """An optimizer with some options, made from its class when it is asked for."""

    kind: str
    options: dict[str, Any]

    def __call__(self, parameters: list[nn.Parameter]) -> optim.Optimizer:
        rule: optim.Optimizer = getattr(optim, self.kind)(parameters, **self.options)
        return rule

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{k}={v}' for k, v in self.options.items())})"


ORACLES: dict[str, Callable[..., oracles.F64]] = {
    "SGD": oracles.sgd,
    "Adagrad": oracles.adagrad,
    "RMSprop": oracles.rmsprop,
    "Adadelta": oracles.adadelta,
    "Adam": oracles.adam,
    "AdamW": oracles.adamw,
    "Adamax": oracles.adamax,
    "NAdam": oracles.nadam,
    "RAdam": oracles.radam,
}
DECOUPLED = {"weight_decay": 0.5, "decoupled_weight_decay": True}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.01, "momentum": 0.8, "dampening": 0.8},  # the exponential average
        {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ],
    "Adagrad": [
        {},
        {"lr": 0.1, "lr_decay": 0.05},
        {"lr": 0.1, "initial_accumulator_value": 0.3},
        {"lr": 0.1, "eps": 0.1, "weight_decay": 0.5},
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.0},
    ],
    "RMSprop": [
        {},
        {"alpha": 0.5},
        {"lr": 0.001, "momentum": 0.9},
        {"centered": True},
        {"eps": 0.1, "weight_decay": 0.5},
        {"alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.95}, {"rho": 0.6, "eps": 1e-2, "weight_decay": 0.5}],
    "Adam": [
        {},
        {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.5},
        {"amsgrad": True},
        {"lr": 0.01, "betas": (0.7, 0.8), "weight_decay": 0.5, "amsgrad": True},
        {"lr": 0.01, "amsgrad": True, **DECOUPLED},
    ],
    "AdamW": [
        {},
        {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.5},
        {"lr": 0.01, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": 0.5, "amsgrad": True},
    ],
    "Adamax": [
        {},
        {"lr": 0.1, "betas": (0.5, 0.75)},
        {"lr": 0.01, "betas": (0.0, 0.0)},
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.5},
    ],
    "NAdam": [
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "momentum_decay": 0.5},
        {"lr": 0.01, "betas": (0.0, 0.9)},
        {"lr": 0.01, "betas": (1e-5, 0.9)},  # the product of all μ is 0 after 70 steps
        {"lr": 0.01, "eps": 0.1, "weight_decay": 0.5, "momentum_decay": 0.0},
        {"lr": 0.01, "momentum_decay": 0.05, **DECOUPLED},
    ],
    "RAdam": [
        {},
        {"lr": 0.01, "betas": (0.5, 0.95)},
        {"lr": 0.01, "betas": (0.9, 0.6)},  # v̂ is never reliable
        {"lr": 0.01, "betas": (0.0, 0.99), "eps": 0.1, "weight_decay": 0.5},
        {"lr": 0.01, "betas": (0.8, 0.9), **DECOUPLED},
    ],
}
RULES = [Rule(kind, options) for kind, table in OPTIONS.items() for options in table]


def problem(shape: tuple[int, ...] = (3, 4)) -> tuple[oracles.F64, list[oracles.F64]]:
    """A parameter and random gradients for 100 steps, of scales from 0.01 to 100."""
    rng = default_rng(3)
    scales = 10.0 ** rng.uniform(-2, 2, shape)
    return rng.normal(size=shape), [scales * rng.normal(size=shape) for _ in range(STEPS)]


def feed(optimizer: optim.Optimizer, gradient: NDArray[Any]) -> None:
    """One step of its only parameter."""
    optimizer.zero_grad()
    (parameter,) = optimizer.parameters
    backend = backend_of(parameter.data)
    parameter.add_grad(backend.asarray(gradient, dtype=parameter.data.dtype))
    optimizer.step()


def trained(
    rule: Rule, start: oracles.F64, gradients: list[oracles.F64], backend: str = "numpy"
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
    """With a constant gradient the centered RMSprop of PyTorch is nan after a few dozen steps."""
    rule = Rule("RMSprop", {"alpha": 0.5, "centered": True})
    found = trained(rule, np.array([1.0, 2.0]), [np.array([0.1, 0.7])] * STEPS, backend)
    assert np.isfinite(found).all()


def check_oracle(rule: Rule) -> None:
    """A hundred steps equal the definition."""
    start, gradients = problem()
    # Some roundings of 1e-16 a step; a centered variance loses two digits to cancellation.
    expected = ORACLES[rule.kind](start, gradients, **rule.options)
    assert_close(trained(rule, start, gradients), expected, 1e-12)
