"""What the package asks for, and how to answer in its place; see `xbp.accelerators.cuda.tuned`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from unittest import mock

from xbp.accelerators.cuda import tuned
from xbp.accelerators.cuda.ahead import programs
from xbp.accelerators.cuda.tuned import Decision, Numbers

Asked: TypeAlias = "dict[Decision, tuple[Callable[[Numbers], bool], Numbers]]"
"""Of each decision, what is allowed, and the numbers of the rule."""


@contextmanager
def forced(family: str, numbers: Numbers, decision: Decision | None = None) -> Iterator[None]:
    """Within the block, kernels of a family are divided so, all others by rules.

    With a decision, only where this is asked.

    A ValueError is raised where the numbers are not allowed.
    """

    def choose(machine: Any, asked: Decision, allowed: Any, rule: Any) -> Numbers:
        if asked.family != family or decision not in (None, asked):
            return tuple(rule())
        if not allowed(numbers):
            msg = f"{asked} cannot be {numbers}"
            raise ValueError(msg)
        return numbers

    with mock.patch.object(tuned, "choose", choose):
        yield


@contextmanager
def asking() -> Iterator[Asked]:
    """What is asked for within the block, where rules decide."""
    asked: Asked = {}

    def choose(machine: Any, decision: Decision, allowed: Any, rule: Any) -> Numbers:
        numbers = tuple(rule())
        asked.setdefault(decision, (allowed, numbers))
        return numbers

    with mock.patch.object(tuned, "choose", choose):
        yield asked


def asked_by(run: Callable[[], object]) -> Asked:
    """What `run`, a function of numpy arrays, would ask for on a GPU."""
    with asking() as asked:
        programs(run, architecture="")
    return asked
