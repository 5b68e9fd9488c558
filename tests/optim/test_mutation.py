"""Every update rule broken in one place at a time, as tests/mutation.py does to the backwards."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import oracles
from mutation import broken, caught, places
from rules import ORACLES, RULES, assert_close, check_variance, problem, trained

from xbp import optim

KINDS = sorted(ORACLES)
MODULES = sorted({base.__module__ for kind in KINDS for base in getattr(optim, kind).__mro__[:-1]})
NOT_RULES = {"__init__", "state_names"}


@cache
def expected(index: int) -> oracles.F64:
    """The oracle's answer, which no mutant changes."""
    rule = RULES[index]
    return ORACLES[rule.kind](*problem(), **rule.options)


def check(index: int) -> None:
    assert_close(trained(RULES[index], *problem()), expected(index), 1e-12)  # as in test_family.py


def rules(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """(class, method) of all that computes an update; the class of a function is no class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name not in NOT_RULES:
                    if node.name != "Optimizer" or method.name == "_decay":
                        yield node.name, method


def all_places(rule: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    """What can be broken in a backward, and quotients, powers, constants, choices, maxima."""
    body = ast.Module(rule.body, [])
    yield from places(body)
    # An index is no quantity; and within a threshold's neighbourhood nothing need lie.
    fixed = {
        id(inner)
        for node in ast.walk(body)
        if isinstance(node, ast.Subscript | ast.Compare)
        for inner in ast.walk(node.slice if isinstance(node, ast.Subscript) else node)
    }
    for node in ast.walk(body):
        if isinstance(node, ast.AugAssign):
            yield node, "drop"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Pow):
            yield node, "drop the right of"
            yield node, "drop the left of"
        elif isinstance(node, ast.If | ast.IfExp):
            yield node, "negate the condition"
        elif isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
            yield node, "drop the first of"
            yield node, "drop the second of"
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if node.value and id(node) not in fixed:
                yield node, "scale the constant"


def run() -> Iterator[tuple[str, bool]]:
    """(description, caught) of every mutant."""
    for name in MODULES:
        module = sys.modules[name]
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for cls, rule in rules(tree):
            checks: list[Callable[[], object]] = [
                partial(check, index)
                for index, (kind, _) in enumerate(RULES)
                if not cls or cls in (base.__name__ for base in getattr(optim, kind).__mro__)
            ]
            if cls == "RMSprop":
                checks.append(check_variance)
            for node, change in all_places(rule):
                what = f"{name}.{cls}.{rule.name}: {change} `{ast.unparse(node)}`"
                yield what, caught(module, broken(tree, node, change), checks)


def test_every_broken_rule_is_caught() -> None:
    results = list(run())
    assert len(results) > 200
    ruled = {what.split(":")[0].split(".")[-2] for what, _ in results}
    inheriting = {"AdamW"}  # which is Adam but for its defaults
    assert ruled == {"", "Optimizer", *KINDS} - inheriting
    assert [what for what, was_caught in results if not was_caught] == []


def test_nothing_stays_broken() -> None:
    for index in range(len(RULES)):
        check(index)
    assert np.isfinite(expected(0)).all()
