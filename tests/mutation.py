"""Break every backward formula on purpose, one place at a time, and count what the tests catch.

    PYTHONPATH=. python tests/mutation.py

A mutant is a copy of a module of xbp.nn in which, inside a backward (or the derivative of an
activation, or the gradient of a loss), one expression is scaled by 1.01, one term of a sum or one
factor of a product is dropped, one accumulation overwrites, or one parameter gets no gradient. It
is caught if, for any line of the table for that class, the oracle or the gradient check fails.
tests/optim/test_mutation.py does the same to the update rules of the optimizers.
"""

from __future__ import annotations

import ast
import copy
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from catalogue import CASES, Case, check_oracle

from xbp import nn
from xbp.testing import check_gradients


def formulas(tree: ast.Module, kinds: set[str]) -> Iterator[tuple[str, ast.AST]]:
    """(class, node) of everything in a module that computes a gradient, for those classes."""
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for method in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(method):
                if isinstance(node, ast.FunctionDef | ast.Lambda) and node is not method:
                    yield cls.name, node
                gives_pair = method.name in ("formula", "__call__")
                if (
                    gives_pair
                    and isinstance(node, ast.Return)
                    and isinstance(node.value, ast.Tuple)
                ):
                    yield cls.name, node.value.elts[1]


def places(formula: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(node, change) for each thing that can be broken in a formula."""
    if isinstance(formula, ast.Lambda):
        yield formula, "scale the derivative"
    elif isinstance(formula, ast.expr) and not isinstance(formula, ast.Lambda):
        yield formula, "scale the gradient"
    for node in ast.walk(formula):
        if isinstance(node, ast.Return):
            yield node, "scale the result"
        elif isinstance(node, ast.Expr) and "add_grad" in ast.unparse(node):
            yield node, "scale"
            yield node, "drop"
        elif isinstance(node, ast.AugAssign):
            yield node, "overwrite"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            yield node, "drop the right of"
            yield node, "drop the left of"


def scaled(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Mult(), ast.Constant(1.01))


def broken(tree: ast.Module, target: ast.AST, change: str) -> ast.Module:
    """A copy of the module with one change."""
    path = {id(node): index for index, node in enumerate(ast.walk(tree))}[id(target)]
    tree = copy.deepcopy(tree)
    victim = list(ast.walk(tree))[path]

    class Breaker(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            node = self.generic_visit(node)
            if node is not victim:
                return node
            if change == "scale the derivative" and isinstance(node, ast.Lambda):
                node.body = scaled(node.body)
            elif change == "scale the gradient" and isinstance(node, ast.expr):
                return scaled(node)
            elif change == "scale the result" and isinstance(node, ast.Return) and node.value:
                node.value = scaled(node.value)
            elif change == "scale" and isinstance(node, ast.Expr):
                assert isinstance(node.value, ast.Call)
                node.value.args[0] = scaled(node.value.args[0])
            elif change == "drop":
                return ast.Pass()
            elif change == "scale the constant" and isinstance(node, ast.Constant):
                return scaled(node)
            elif change == "negate the condition" and isinstance(node, ast.If | ast.IfExp):
                node.test = ast.UnaryOp(ast.Not(), node.test)
            elif isinstance(node, ast.Call):
                return node.args[change == "drop the first of"]
            elif change == "overwrite" and isinstance(node, ast.AugAssign):
                return ast.Assign([node.target], node.value)
            elif isinstance(node, ast.BinOp):
                return node.left if change == "drop the right of" else node.right
            return node

    return ast.fix_missing_locations(Breaker().visit(tree))


def functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """The functions of a module and the methods of its classes, by qualified name."""
    owners = [module, *(kind for kind in vars(module).values() if isinstance(kind, type))]
    return {
        thing.__qualname__: thing
        for owner in owners
        for thing in vars(owner).values()
        if isinstance(thing, types.FunctionType) and thing.__module__ == module.__name__
    }


@contextmanager
def running(module: types.ModuleType, tree: ast.Module) -> Iterator[None]:
    """Within the block, the functions of `module`, whoever imported them, run what `tree` says."""
    mutant = types.ModuleType(module.__name__)
    exec(compile(tree, str(module.__file__), "exec"), mutant.__dict__)
    originals, broken_ones = functions(module), functions(mutant)
    codes = {name: function.__code__ for name, function in originals.items()}
    try:
        for name, function in originals.items():
            function.__code__ = broken_ones[name].__code__
        yield
    finally:
        for name, function in originals.items():
            function.__code__ = codes[name]


def caught(
    module: types.ModuleType, tree: ast.Module, checks: Iterable[Callable[[], object]]
) -> bool:
    """Whether one of the checks fails where `module` is broken."""
    with running(module, tree):
        for check in checks:
            try:
                check()
            except Exception:  # a crash is a catch, too
                return True
    return False


def check_case(case: Case) -> None:
    check_oracle(case)
    check_gradients(case.make(), *case.inputs(), most=40)


def run() -> Iterator[tuple[str, bool]]:
    """(description, caught) of every mutant."""
    kinds = {case.kind for case in CASES}
    modules = {sys.modules[getattr(nn, kind).__module__] for kind in kinds}
    for module in sorted(modules, key=lambda module: module.__name__):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        here = {kind for kind in kinds if getattr(nn, kind).__module__ == module.__name__}
        for cls, formula in list(formulas(tree, here)):
            concerned = {
                kind for kind in here if cls in (c.__name__ for c in getattr(nn, kind).__mro__)
            }
            if not concerned:
                continue
            for node, change in list(places(formula)):
                what = f"{module.__name__}.{cls}: {change} `{ast.unparse(node)}`"
                checks = [partial(check_case, case) for case in CASES if case.kind in concerned]
                yield what, caught(module, broken(tree, node, change), checks)


if __name__ == "__main__":
    results = list(run())
    for what, was_caught in results:
        if not was_caught:
            print("SURVIVED", what)  # noqa: T201
    total = sum(was_caught for _, was_caught in results)
    print(f"{total} of {len(results)} mutants caught")  # noqa: T201
    sys.exit(total != len(results))
