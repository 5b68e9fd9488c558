"""Lines of the table, and their cases."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp import nn
from xbp.testing.cases.arrays import normal

Host: TypeAlias = NDArray[Any]
Choices: TypeAlias = dict[str, Sequence[Any]]
"""Options, each with the values to draw from."""

MARGIN = 0.02
"""Distance from a kink at which a difference quotient of step 0.01 does not notice it."""


@dataclass(frozen=True)
class Call:
    """Arguments and inputs of a layer, loss or other line.

    Attributes
    ----------
    x : tuple of int, array, or list of these
        The input, or the shape of a normally distributed one; a list for several inputs.
    arguments, options : tuple, dict
        The constructor's arguments.
    target : str
        The kind of targets of a loss: ``"numbers"``, ``"labels"``, …, from
        `xbp.testing.cases.losses`.
    """

    x: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    target: str = ""


def fed(x: Any, *arguments: Any, **options: Any) -> Call:
    """``fed((4, 5), 5, 3, bias=False)``: arguments ``(5, 3, bias=False)``, normal input (4, 5)."""
    return Call(x, arguments, options)


@dataclass(frozen=True)
class Line:
    """A public class or function, with what its tests need.

    Attributes
    ----------
    name : str
        Its public name.
    oracle : callable or None
        Its definition: ``oracle(state, *inputs, *arguments, **options)`` returns the output, or the
        value of a loss. `state` is the `state_dict`, the rest comes from the call. None if another
        line of the same name has the oracle.
    calls : sequence of Call
    room : module
        The module that has the name.
    make : callable, optional
        A replacement for the class of that name.
    title : str
        A replacement for the name in titles of cases; with parentheses, for the whole call.
    kinks : callable, optional
        ``kinks(*inputs, *arguments, **options)`` is the distance of the inputs from the nearest
        kink; None for a function without kinks. Only cases away from kinks are compared with
        high-order difference quotients.
    axes : int
        For properties: the least number of axes of inputs, which may have any shape; 0 for inputs
        with the shapes of the calls, except the number of samples. Subclasses of `nn.Elementwise`
        take any shape.
    drawn : sequence of dict
        For properties: options to draw, from one of these dicts at a time; by default those of the
        calls.
    exact : bool
        For properties: whether small multiples of ¼ give no rounding errors.
    inference : callable, optional
        The oracle of inference, if it differs from the forward in training.
    trains : bool
        Whether a `Trainer` can train it.
    not_in_onnx : str
        The reason why it has no ONNX file; empty if it has one.
    """

    name: str
    oracle: Callable[..., Any] | None
    calls: Sequence[Call]
    _: KW_ONLY
    room: ModuleType = nn
    make: Callable[..., Any] | None = None
    title: str = ""
    kinks: Callable[..., float] | None = None
    axes: int = 0
    drawn: Sequence[Choices] = ()
    exact: bool = False
    inference: Callable[..., Any] | None = None
    trains: bool = True
    not_in_onnx: str = ""

    kind = ""

    def cases(self) -> Iterator[Case]:
        return (Case(self, call) for call in self.calls)

    @property
    def least_axes(self) -> int:
        """`axes`, by default from the class."""
        kind = getattr(self.room, self.name, None)
        entrywise = isinstance(kind, type) and issubclass(kind, nn.Elementwise)
        return self.axes or int(entrywise)

    def inputs(self, call: Call) -> tuple[Host, ...]:
        """Arrays, made anew."""
        return tuple(filled(x).copy() for x in (call.x if isinstance(call.x, list) else [call.x]))


class Layer(Line):
    """A line of `xbp.testing.cases.LAYERS`."""

    kind = "layer"


class Model(Line):
    """A line of `xbp.testing.cases.MODELS`."""

    kind = "model"


@dataclass(frozen=True)
class Case:
    """One call of a line."""

    line: Line
    given: Call

    def __str__(self) -> str:
        return f"{self.call} of {shape_of(self.inputs()[0])}"

    @property
    def kind(self) -> str:
        return self.line.kind

    @property
    def name(self) -> str:
        return self.line.name

    @property
    def call(self) -> str:
        """``"Conv2d(1, 6, 5, padding=2)"``, with the kind of targets for a loss."""
        if "(" in self.line.title:
            return self.line.title
        arguments = written(self.given.arguments, self.given.options)
        target = self.given.target and f" with {self.given.target}"
        return f"{self.line.title or self.name}({arguments}){target}"

    def make(self) -> Any:
        """A new object, with weights in float64 that use all digits of every dtype."""
        made = self.line.make or getattr(self.line.room, self.name)
        accepted = inspect.signature(made).parameters
        anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        seeded = {"dtype": "float64", "rng": 0}
        seeded = {k: v for k, v in seeded.items() if anything or k in accepted}
        return made(*self.given.arguments, **seeded | self.given.options)

    def inputs(self) -> tuple[Host, ...]:
        """Arrays, made anew, the same each time."""
        return self.line.inputs(self.given)

    def oracle(self, state: dict[str, Host], *inputs: Host, training: bool = True) -> Any:
        """The oracle's result."""
        definition = self.line.oracle if training else self.line.inference or self.line.oracle
        if definition is None:
            msg = f"{self} has no oracle"
            raise LookupError(msg)
        return definition(state, *inputs, *self.given.arguments, **self.given.options)

    @property
    def finite(self) -> bool:
        return all(np.all(np.isfinite(x)) for x in self.inputs())

    @property
    def differentiable(self) -> bool:
        """Whether there are derivatives to compare with: no infinity, no exact zero (a kink), and a
        whole gradient.
        """
        x = self.inputs()[0]
        truncated = "truncate" in self.given.options
        return bool(np.all(x)) and bool(np.all(np.isfinite(x))) and not truncated

    @property
    def smooth(self) -> bool:
        """Whether it is differentiable, and no kink is near."""
        arguments, options = self.given.arguments, self.given.options
        kinks = self.line.kinks
        return self.differentiable and (
            kinks is None or kinks(*self.inputs(), *arguments, **options) > MARGIN
        )


# --- kinks ----------------------------------------------------------------------------------------


def at_zero(x: Host, *arguments: Any, **options: Any) -> float:
    """Distance of the input from 0."""
    return float(np.min(np.abs(x)))


def at_ties(x: Host, *arguments: Any, **options: Any) -> float:
    """The least distance between two entries."""
    return float(np.min(np.diff(np.sort(x, axis=None))))


def within(*arguments: Any, **options: Any) -> float:
    """0, for functions with kinks at unknown inner values."""
    return 0.0


# --- titles ---------------------------------------------------------------------------------------


def filled(x: Any) -> Host:
    """The array `x`, or normal numbers of the shape `x`."""
    return normal(*x) if isinstance(x, tuple) else x


def shape_of(array: Host) -> str:
    """``"(2, 3) with zeros"``."""
    found = {"zeros": array == 0, "infinities": np.isinf(array), "nan": np.isnan(array)}
    return " ".join([str(array.shape), *(f"with {what}" for what, it in found.items() if it.any())])


def given_to(function: Callable[..., Any]) -> str:
    """The arguments of a partial function, in Python."""
    if not isinstance(function, partial):
        return ""
    shown = [arg for arg in function.args if not callable(arg) and arg != ""]
    options = dict(function.keywords)
    for arg in function.args:
        if isinstance(arg, partial):
            options |= arg.keywords
    return written(tuple(shown), options)


def written(arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Arguments in Python."""
    shown = [repr(value) for value in arguments]
    for key, value in options.items():
        name = (
            value.__name__ if inspect.isfunction(value) or inspect.isclass(value) else repr(value)
        )
        shown.append(f"{key}={name}")
    return ", ".join(shown)
