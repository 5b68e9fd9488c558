"""An exercise: what is to be written, and how it is known to be right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypeAlias

from xbp.homework.hints import Host, Truth

Truths: TypeAlias = "dict[str, Truth]"
"""The right arrays of a case, by the names of the quantities."""


@dataclass(frozen=True)
class Exercise:
    """A layer, a loss or an optimizer to be written, as a class in a file of its own.

    Attributes
    ----------
    name : str
        The name of the exercise, and of the file that `xbp homework new` writes.
    kind : {"layer", "loss", "optimizer"}
    wanted : str
        The name of the class.
    task : str
        What it is to compute: the formula.
    make : callable
        From the student's class to an instance for a case, given the case's inputs.
    cases : list of tuple of arrays
        For a layer: x, ∂L/∂y, and the parameters by their names; for a loss: prediction and
        target; for an optimizer: the initial parameter, and the gradient of each step. The first
        is the usual one, with all sizes different.
    right : callable
        From the inputs of a case to the right arrays.
    names : mapping
        How a quantity is called in hints: ``{"weight": "∂L/∂W"}``.
    extreme : tuple of arrays, optional
        Inputs for which the result must be finite.
    template : str
        The file that a student begins with; by default that of the package with its name.
    """

    name: str
    kind: str
    wanted: str
    task: str
    make: Callable[..., Any]
    cases: list[tuple[Any, ...]]
    right: Callable[..., Truths]
    names: Mapping[str, str] = field(default_factory=dict)
    extreme: tuple[Host, ...] | None = None
    template: str = ""

    def text(self) -> str:
        """The file that a student begins with."""
        return self.template or (files(__package__) / "templates" / f"{self.name}.txt").read_text(
            encoding="utf-8"
        )

    def called(self, quantity: str) -> str:
        """A quantity, as in formulas."""
        usual = {"output": "the output", "input": "∂L/∂x", "value": "the loss"}
        usual |= {"gradient": "∂L/∂y"}
        return {**usual, **self.names}.get(quantity, quantity)
