"""The table of cases is complete and valid: everything public that computes has a line."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType

import pytest

from xbp import initializers, models, nn, optim, primitives
from xbp.models import lenet1998
from xbp.testing import cases
from xbp.testing.cases import CASES
from xbp.testing.cases.case import within


def classes(room: ModuleType, base: type) -> set[str]:
    """Public subclasses of `base`, without base classes for users."""
    offered = {name: vars(room)[name] for name in room.__all__}
    return {
        name
        for name, kind in offered.items()
        if isinstance(kind, type) and issubclass(kind, base) and kind not in cases.BASES
    }


def functions(room: ModuleType) -> set[str]:
    return {
        name
        for name, function in inspect.getmembers(room, inspect.isfunction)
        if function.__module__ == room.__name__ and not name.startswith("_")
    }


def names(lines: Iterable[object]) -> set[str]:
    return {line[0] if isinstance(line, tuple) else vars(line)["name"] for line in lines}


PUBLIC = {
    "layers": classes(nn, nn.Layer) | classes(lenet1998, nn.Layer) | {"Subsample"},  # of ResNet
    "losses": classes(nn, nn.Loss) | classes(lenet1998, nn.Loss),
    "models": set(models.__all__),
    "optimizers": classes(optim, optim.Optimizer),
    "initializers": functions(initializers) - {"fans"},  # (fan_in, fan_out) of a shape
    "primitives": set(primitives.__all__) - {"output_size", "windows"},  # of shapes
}
LINES = {
    "layers": names(cases.LAYERS),
    "losses": names(cases.LOSSES),
    "models": names(cases.MODELS),
    "optimizers": names(cases.OPTIMIZERS),
    "initializers": names(cases.INITIALIZERS),
    "primitives": names([*cases.PRIMITIVES, *cases.DIFFERENTIABLE]),
}


@pytest.mark.parametrize("kind", PUBLIC)
def test_everything_public_has_a_line(kind: str) -> None:
    missing, unknown = PUBLIC[kind] - LINES[kind], LINES[kind] - PUBLIC[kind]
    assert not missing, f"add a line to xbp/testing/cases/{kind}.py for {', '.join(missing)}"
    assert not unknown, f"in xbp/testing/cases/{kind}.py, but not public: {', '.join(unknown)}"


@pytest.mark.parametrize("kind", ["layers", "losses", "optimizers"])
def test_everything_has_a_definition(kind: str) -> None:
    table: list[cases.Line | cases.Optimizer] = getattr(cases, kind.upper())
    assert names(line for line in table if line.oracle) == LINES[kind]


def test_no_case_comes_twice() -> None:
    titles = [(case.kind, str(case)) for case in CASES] + [("rule", str(r)) for r in cases.RULES]
    assert len(set(titles)) == len(titles)


def test_gradients_of_each_are_compared_with_numeric_ones() -> None:
    """Gradients of a line without a case away from its kinks would not be checked."""
    compared = {c.name for c in CASES if c.smooth or c.line.kinks is within}
    assert compared >= LINES["layers"] | LINES["losses"]
