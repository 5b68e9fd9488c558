"""Whose code a step runs: a recording on the host trusts that of xbp alone.

A replay runs no Python. A layer of a user may read the clock, a file or a global variable in its
forward; on the host, where nobody asked for a recording, nothing of that may be frozen.
"""

from __future__ import annotations

from typing import Any

from xbp.errors import InputError
from xbp.nn import Layer, Loss
from xbp.nn.parameter import Parameter
from xbp.training.callbacks.base import Training
from xbp.training.metrics.averages import Mean


def check_own(trainer: Training) -> None:
    """Refuse a model, loss, optimizer or augmentation with code that is not xbp's.

    Raises
    ------
    InputError
    """
    augment = trainer.augment
    steps = () if augment is None else (augment, *getattr(augment, "steps", ()))
    rules = [rule for rule, _ in trainer.optimizer.rules()]
    for owner in (*trainer.model.tree(), trainer.loss, *steps, *rules):
        if not is_own(owner):
            _refuse(owner)
        if isinstance(owner, Layer | Loss):
            for value in vars(owner).values():
                if callable(value) and not isinstance(value, Parameter) and not is_own(value):
                    _refuse(owner)


def is_own(thing: Any) -> bool:
    """Whether a function, or the class of an object, is xbp's."""
    if isinstance(thing, Mean):
        return thing.function is None or is_own(thing.function)
    home = getattr(thing if hasattr(thing, "__name__") else type(thing), "__module__", None)
    return str(home).startswith("xbp.")


def _refuse(owner: Any) -> None:
    name = getattr(owner, "__name__", type(owner).__name__)
    msg = f"{name} may compute something else in each step, as code that is not xbp's"
    raise InputError(msg)
