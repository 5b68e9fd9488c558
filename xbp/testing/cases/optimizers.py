"""The table of optimizers, with one line for each.

``Optimizer(name, oracle, options)``: the public name; the definition, a function of a parameter,
its gradients in each step and the options, which returns the final parameter; and options that
together reach every term of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from xbp import nn, optim
from xbp.testing import oracles
from xbp.testing.cases.case import Choices, written


@dataclass(frozen=True)
class Rule:
    """A constructor of an optimizer with some options, as in ``Rule("SGD", {"lr": 0.1})([p])``.

    With Muon, vectors are in groups of AdamW, as its authors recommend.
    """

    name: str
    options: dict[str, Any]

    def __call__(self, parameters: list[nn.Parameter]) -> optim.Optimizer:
        given: list[Any] = parameters
        if self.name == "Muon" and any(p.data.ndim < 2 for p in parameters):
            groups = groupby(parameters, key=lambda p: p.data.ndim >= 2)  # in their order
            given = [
                {"params": list(group), **({} if matrices else {"rule": optim.AdamW})}
                for matrices, group in groups
            ]
        rule: optim.Optimizer = getattr(optim, self.name)(given, **self.options)
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
        None if another line of the same name has the oracle.
    options : list of dict
    drawn : sequence of dict
        For properties: options to draw, from one of these dicts at a time; by default those of
        `options`.
    """

    name: str
    oracle: Callable[..., oracles.F64] | None
    options: list[dict[str, Any]]
    drawn: Sequence[Choices] = ()

    def rules(self) -> Iterator[Rule]:
        return (Rule(self.name, options) for options in self.options)


DECOUPLED = {"weight_decay": 0.5, "decoupled_weight_decay": True}
DECAY = {"lr": 0.01, "weight_decay": 0.5}
ADAM = {**DECAY, "betas": (0.7, 0.8), "eps": 1e-3}

RATES: Choices = {"lr": [1.0, 0.1, 0.01, 0.001, 0.0], "weight_decay": [0.0, 0.0, 0.01, 0.5]}
BETAS = [0.0, 0.5, 0.75, 0.9, 0.99]
EPSILONS = [1e-8, 1e-4, 0.1]
FLAG = [False, True]
ADAMS: Choices = {
    **RATES,
    # no β₂ of 0, with which a gradient of 0 after one of 1e9 makes m / √v arbitrary
    "betas": [(b1, b2) for b1 in BETAS for b2 in (0.5, 0.9, 0.999)],
    "eps": EPSILONS,
}

OPTIMIZERS = [
    Optimizer("SGD", oracles.sgd, [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.01, "momentum": 0.8, "dampening": 0.8},  # the exponential average
        {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ], [
        {**RATES, "momentum": BETAS, "dampening": [0.0, 0.3, 0.9]},
        {**RATES, "momentum": BETAS[1:], "nesterov": [True]},  # without dampening
    ]),
    Optimizer("SGD", None, [{"lr": optim.OneCycleLR(0.1, 10), "momentum": 0.9}]),
    Optimizer("Adagrad", oracles.adagrad, [
        {},
        {"lr": 0.1, "lr_decay": 0.05},
        {"lr": 0.1, "initial_accumulator_value": 0.3},
        {"lr": 0.1, "eps": 0.1, "weight_decay": 0.5},
        {**DECAY, "lr_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.1},
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 2.0, "eps": 0.0},
    ], [{
        **RATES, "lr_decay": [0.0, 0.05, 1.0], "initial_accumulator_value": [0.0, 0.3],
        "eps": EPSILONS,
    }]),
    Optimizer("RMSprop", oracles.rmsprop, [
        {},
        {"alpha": 0.5},
        {"lr": 0.001, "momentum": 0.9},
        {"centered": True},
        {"eps": 0.1, "weight_decay": 0.5},
        {**DECAY, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True},
        {"alpha": 0.9, "eps": 1e-4, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
    ], [{
        **RATES, "alpha": [0.5, 0.9, 0.99], "eps": [1e-4, 0.1], "momentum": BETAS,
        "centered": FLAG,
    }]),
    Optimizer("Adadelta", oracles.adadelta, [
        {},
        {"lr": 0.5, "rho": 0.95},
        {"rho": 0.6, "eps": 1e-2, "weight_decay": 0.5},
    ], [{**RATES, "rho": BETAS, "eps": EPSILONS}]),
    Optimizer("Adam", oracles.adam, [
        {},
        {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.5},
        {"lr": 0.01, "betas": (0.9, 0.0), "eps": 0.1},  # m / ε where a gradient is 0
        {"amsgrad": True},
        {**ADAM, "amsgrad": True},
        {"lr": 0.01, "betas": (0.7, 0.8), "weight_decay": 0.5, "amsgrad": True},
        {"lr": 0.01, "amsgrad": True, **DECOUPLED},
    ], [{**ADAMS, "amsgrad": FLAG, "decoupled_weight_decay": FLAG}]),
    Optimizer("AdamW", oracles.adamw, [
        {},
        {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.5},
        {**ADAM, "amsgrad": True},
        {"lr": 0.01, "betas": (0.8, 0.7), "eps": 0.1, "weight_decay": 0.5, "amsgrad": True},
    ], [{**ADAMS, "amsgrad": FLAG}]),
    Optimizer("Adamax", oracles.adamax, [
        {},
        {"lr": 0.1, "betas": (0.5, 0.75)},
        {"lr": 0.01, "betas": (0.0, 0.0)},
        ADAM,
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.5},
    ], [ADAMS]),
    Optimizer("NAdam", oracles.nadam, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "momentum_decay": 0.5},
        {"lr": 0.01, "betas": (0.0, 0.9)},
        {"lr": 0.01, "betas": (1e-5, 0.9)},  # the product of all μ is 0 after 70 steps
        {"lr": 0.01, "eps": 0.1, "weight_decay": 0.5, "momentum_decay": 0.0},
        {**ADAM, "momentum_decay": 0.5},
        {"lr": 0.01, "momentum_decay": 0.05, **DECOUPLED},
    ], [{
        **ADAMS, "momentum_decay": [0.0, 0.004, 0.5], "decoupled_weight_decay": FLAG,
    }]),
    Optimizer("RAdam", oracles.radam, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.95)},
        {"lr": 0.01, "betas": (0.9, 0.6)},  # v̂ is never reliable
        {"lr": 0.01, "betas": (0.0, 0.99), "eps": 0.1, "weight_decay": 0.5},
        {**ADAM, "decoupled_weight_decay": True},
        {"lr": 0.01, "betas": (0.8, 0.9), **DECOUPLED},
    ], [{**ADAMS, "decoupled_weight_decay": FLAG}]),
    Optimizer("Lion", oracles.lion, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.75)},
        {"lr": 0.01, "weight_decay": 0.5},
    ], [{**RATES, "betas": ADAMS["betas"]}]),
    Optimizer("LAMB", oracles.lamb, [
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "weight_decay": 0.0},
        {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.5},
        # no rate of 1, which takes a parameter of one entry to 0, where its next step jumps
    ], [{**ADAMS, "lr": RATES["lr"][1:]}]),
    Optimizer("Muon", oracles.muon, [
        {},
        {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.5},
        {"lr": 0.02, "nesterov": False, "ns_steps": 3},
        {"lr": 0.02, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 100.0, "weight_decay": 0.0},
    ], [{
        **RATES, "momentum": BETAS, "nesterov": FLAG, "eps": EPSILONS, "ns_steps": [1, 2, 3, 5],
    }]),
]  # fmt: skip
