"""Optimizers: one line each.

``Optimizer(name, oracle, options)``: the public name; the definition, which is given a parameter,
its gradients step by step and the options, and returns what becomes of the parameter; and options
that together reach every term of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xbp import nn, optim
from xbp.testing import oracles
from xbp.testing.cases.case import written


@dataclass(frozen=True)
class Rule:
    """An optimizer with some options, made of parameters: ``Rule("SGD", {"lr": 0.1})([p])``."""

    name: str
    options: dict[str, Any]

    def __call__(self, parameters: list[nn.Parameter]) -> optim.Optimizer:
        rule: optim.Optimizer = getattr(optim, self.name)(parameters, **self.options)
        return rule

    def __str__(self) -> str:
        return f"{self.name}({written((), self.options)})"


@dataclass(frozen=True)
class Optimizer:
    """A line of `xbp.testing.cases.OPTIMIZERS`.

    Attributes
    ----------
    name : str
    oracle : callable or None
        None where other lines of the same name have one.
    options : list of dict
    """

    name: str
    oracle: Callable[..., oracles.F64] | None
    options: list[dict[str, Any]]

    def rules(self) -> Iterator[Rule]:
        return (Rule(self.name, options) for options in self.options)


DECOUPLED = {"weight_decay": 0.5, "decoupled_weight_decay": True}
DECAY = {"lr": 0.01, "weight_decay": 0.5}
ADAM = {**DECAY, "betas": (0.7, 0.8), "eps": 1e-3}

OPTIMIZERS = [
    Optimizer("SGD", oracles.sgd, [
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.01, "momentum": 0.8, "dampening": 0.8},  # the exponential average
        {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ]),
    Optimizer("SGD", None, [{"lr": optim.OneCycleLR(0.1, 10), "momentum": 0.9}]),
    Optimizer("Adagrad", oracles.adagrad, [
        {},
        {"lr": 0.1, "lr_decay": 0.05},
        {"lr": 0.1, "initial_accumulator_value": 0.3},
        {"lr": 0.1, "eps": 0.1, "weight_decay": 0.5},
        {**DECAY, "lr_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.1},
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.0},
    ]),
    Optimizer("RMSprop", oracles.rmsprop, [
        {},
        {"alpha": 0.5},
        {"lr": 0.001, "momentum": 0.9},
        {"centered": True},
        {"eps": 0.1, "weight_decay": 0.5},
        {**DECAY, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True},
        {"alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
    ]),
    Optimizer("Adadelta", oracles.adadelta, [
        {},
        {"lr": 0.5, "rho": 0.95},
        {"rho": 0.6, "eps": 1e-2, "weight_decay": 0.5},
    ]),
    Optimizer("Adam", oracles.adam, [
        {},
        {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.5},
        {"amsgrad": True},
        {**ADAM, "amsgrad": True},
        {"lr": 0.01, "betas": (0.7, 0.8), "weight_decay": 0.5, "amsgrad": True},
        {"lr": 0.01, "amsgrad": True, **DECOUPLED},
    ]),
    Optimizer("AdamW", oracles.adamw, [
        {},
        {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.5},
        {**ADAM, "amsgrad": True},
        {"lr": 0.01, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": 0.5, "amsgrad": True},
    ]),
    Optimizer("Adamax", oracles.adamax, [
        {},
        {"lr": 0.1, "betas": (0.5, 0.75)},
        {"lr": 0.01, "betas": (0.0, 0.0)},
        ADAM,
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.5},
    ]),
    Optimizer("NAdam", oracles.nadam, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "momentum_decay": 0.5},
        {"lr": 0.01, "betas": (0.0, 0.9)},
        {"lr": 0.01, "betas": (1e-5, 0.9)},  # the product of all μ is 0 after 70 steps
        {"lr": 0.01, "eps": 0.1, "weight_decay": 0.5, "momentum_decay": 0.0},
        {**ADAM, "momentum_decay": 0.5},
        {"lr": 0.01, "momentum_decay": 0.05, **DECOUPLED},
    ]),
    Optimizer("RAdam", oracles.radam, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.95)},
        {"lr": 0.01, "betas": (0.9, 0.6)},  # v̂ is never reliable
        {"lr": 0.01, "betas": (0.0, 0.99), "eps": 0.1, "weight_decay": 0.5},
        {**ADAM, "decoupled_weight_decay": True},
        {"lr": 0.01, "betas": (0.8, 0.9), **DECOUPLED},
    ]),
]  # fmt: skip
