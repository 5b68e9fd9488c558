"""Planting a fault: a running module gets the behaviour of its broken source."""

from __future__ import annotations

import ast
import copy
import types
from typing import Any

from mutation import wrong


def functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """The functions of a module and the methods of its classes, by qualified name."""
    owners = [module, *(kind for kind in vars(module).values() if isinstance(kind, type))]
    things = [_plain(thing) for owner in owners for thing in vars(owner).values()]
    return {
        thing.__qualname__: thing
        for thing in things
        if isinstance(thing, types.FunctionType) and thing.__module__ == module.__name__
    }


def _plain(thing: Any) -> Any:
    """The function in a property, a class method, or a decorator's wrapper."""
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    return getattr(thing, "__wrapped__", thing)


def install(module: types.ModuleType, name: str, original: ast.Module, tree: ast.Module) -> None:
    """Replace the function or constant `name` by that of `tree`, for all importers.

    The module is not run again. At most one call per process.
    """
    vars(module)["wrong"] = wrong
    outer = name.partition(".<locals>")[0]
    node = _find(tree, outer)
    if isinstance(node, ast.Assign):
        owner = vars(module)[outer.partition(".")[0]] if "." in outer else module
        value = ast.unparse(node.value)
        setattr(owner, outer.rpartition(".")[2], eval(value, vars(module)))
        return
    assert isinstance(node, ast.FunctionDef)
    function = functions(module)[outer]
    before = _find(original, outer)
    assert isinstance(before, ast.FunctionDef)
    if ast.dump(before.args) != ast.dump(node.args):
        values = [eval(ast.unparse(d), vars(module)) for d in node.args.defaults]
        function.__defaults__ = tuple(values) or None
        function.__kwdefaults__ = {
            arg.arg: eval(ast.unparse(default), vars(module))
            for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            if default is not None
        }
    # unreachable code keeps the function's original cells (of `super`)
    unreached = ast.If(ast.Constant(False), copy.deepcopy(before.body), [])
    node.body = [*node.body, unreached]
    code = _codes(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"))[outer]
    function.__code__ = code


def _find(tree: ast.Module, name: str) -> ast.AST:
    """The definition of a qualified name."""
    node: Any = tree
    for part in name.split("."):
        (node,) = (
            member
            for member in node.body
            if getattr(member, "name", None) == part
            or (isinstance(member, ast.Assign) and ast.unparse(member.targets[0]) == part)
        )
    assert isinstance(node, ast.AST)
    return node


def _codes(code: types.CodeType) -> dict[str, types.CodeType]:
    """All nested code objects, by qualified name."""
    found = {code.co_qualname: code}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _codes(constant)
    return found
