"""Values that a captured step has frozen, compared with the current ones."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from xbp.backend import Array, array_namespace
from xbp.nn.parts import containers
from xbp.registry import enabled
from xbp.training.callbacks.base import Training

MOVING = ("steps", "counts", "state", "_lr", "_groups")
"""Attributes of an optimizer that are not frozen: they change in each step, or are rules' own."""

PLAIN = (bool, int, float, str)
_DATA, _TRAINABLE = map(operator.attrgetter, ("data", "trainable"))


class Frozen:
    """Options of layers, loss and optimizer, and arrays of parameters and optimizer.

    Parameters
    ----------
    trainer : Training
        May be a weak reference.
    """

    def __init__(self, trainer: Training) -> None:
        self.trainer = trainer
        self.optimizer = trainer.optimizer
        self.collect()

    def collect(self) -> None:
        """Find the owners of options, and the arrays."""
        model, optimizer = self.trainer.model, self.optimizer
        augment = self.trainer.augment
        steps = (augment, *getattr(augment, "steps", ())) if augment is not None else ()
        self.owners = [*model.tree(), self.trainer.loss, *steps]
        self.options = [getattr(owner, "__dict__", {}) for owner in self.owners]
        self.members = [held for owner in self.owners for held in containers(owner)]
        found = [p for _, p in model._all_names("")] + optimizer.parameters
        self.parameters = list({id(parameter): parameter for parameter in found}.values())

    def values(self) -> list[Any]:
        """Everything that a recording would freeze now."""
        found = list(chain.from_iterable(map(dict.values, self.options)))
        for members in self.members:
            found += members.values() if isinstance(members, dict) else members
        for rule, indices in self.optimizer.rules():
            options = vars(rule).copy()
            for name in MOVING:
                options.pop(name, None)
            found += options.values()
            found += (indices.start, indices.stop, type(rule))
        trainer = self.trainer
        found += (trainer.model, trainer.loss, trainer.augment, *trainer.state.stream.key)
        found += (enabled(), trainer.precision)
        if trainer.scaling is not None:
            found += trainer.scaling.arrays()
        found += map(_DATA, self.parameters)
        found += map(_TRAINABLE, self.parameters)
        found += chain.from_iterable(map(dict.values, self.optimizer.state))
        return found

    def changed(self, before: Sequence[Any]) -> str:
        """The owner of a value that differs from `before`, in words."""
        end = 0
        for owner, options in zip(self.owners, self.options, strict=True):
            start, end = end, end + len(options)
            if not same(list(options.values()), before[start:end]):
                return f"something that {type(owner).__name__} keeps"
        return "an array, or an option of the optimizer,"

    @contextmanager
    def undone_on_error(self, *arrays: Array) -> Iterator[None]:
        """Restore parameters, state, counters, options and `arrays` if the block raises."""
        optimizer = self.optimizer
        steps, counts = optimizer.steps, list(optimizer.counts)
        data = [parameter.data for parameter in self.parameters]
        states = [dict(state) for state in optimizer.state]
        all_options = [(own, dict(own)) for own in (*self.options, vars(optimizer))]
        changed = [*data, *(array for state in states for array in state.values()), *arrays]
        saved = [array_namespace(array).asarray(array, copy=True) for array in changed]
        try:
            yield
        except BaseException:
            for array, value in zip(changed, saved, strict=True):
                array[...] = value
            for parameter, array in zip(self.parameters, data, strict=True):
                parameter.data, parameter.grad = array, None
            for own, before in all_options:
                own.clear()
                own.update(before)
            optimizer.state, optimizer.steps, optimizer.counts = states, steps, counts
            raise


def same(here: Sequence[Any], there: Sequence[Any]) -> bool:
    """Whether both hold the same objects; numbers and strings are compared by value."""
    if len(here) != len(there):
        return False
    if all(map(operator.is_, here, there)):
        return True
    return all(
        a is b or (type(a) is type(b) and type(a) in PLAIN and a == b)
        for a, b in zip(here, there, strict=True)
    )
