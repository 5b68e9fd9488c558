"""Whose code a step runs: a recording on the host trusts that of xbp alone.

A replay runs no Python. A layer of a user may read the clock, a file or a global variable in its
forward; on the host, where nobody asked for a recording, nothing of that may be frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xbp.errors import InputError
from xbp.nn.parameter import Parameter
from xbp.training.callbacks.base import Training
from xbp.training.metrics.averages import Mean

METHODS = ("forward", "operation", "compose", "__call__", "step", "update", "zero_grad")
"""What a step calls of layers, losses, augmentations and optimizers."""

SCHEDULE = "_lr"
"""The attribute of an optimizer that may be a user's function: it is called before each step."""


def check_own(trainer: Training) -> None:
    """Refuse a model, loss, optimizer or augmentation with code that is not xbp's.

    Raises
    ------
    InputError
    """
    rules = (rule for rule, _ in trainer.optimizer.rules())
    for owner in (*trainer.model.tree(), trainer.loss, *steps_of(trainer.augment), *rules):
        attributes = getattr(owner, "__dict__", {})
        held = [value for name, value in attributes.items() if name != SCHEDULE]
        called = [value for value in held if callable(value) and not isinstance(value, Parameter)]
        for kind in type(owner).__mro__:
            called += [vars(kind)[name] for name in METHODS if name in vars(kind)]
        if not all(map(is_own, (owner, *called))) or any(name in attributes for name in METHODS):
            name = getattr(owner, "__name__", type(owner).__name__)
            msg = f"{name} may compute something else in each step, as code that is not xbp's"
            raise InputError(msg)


def steps_of(augment: Any) -> Iterator[Any]:
    """An augmentation, and those that it consists of."""
    if augment is not None:
        yield augment
        for step in getattr(augment, "steps", ()):
            yield from steps_of(step)


def is_own(thing: Any) -> bool:
    """Whether a function, or the class of an object, is xbp's."""
    if isinstance(thing, Mean):
        return thing.function is None or is_own(thing.function)
    if isinstance(thing, property):
        return is_own(thing.fget)
    home = getattr(thing if hasattr(thing, "__name__") else type(thing), "__module__", None)
    return str(home).startswith("xbp.")
