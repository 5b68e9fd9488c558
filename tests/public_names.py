"""The public names and their parameters, as text, and what has become incompatible with a list.

    python tests/public_names.py > tests/golden/public_names.txt     # at a release

prints one line for each public function, class, public method of a class, option of the command
line, and other name: ``xbp.nn.Flatten()``, ``xbp.optim.SGD(params, lr, momentum=, …)``. A parameter
with a default ends in ``=``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).parent / "golden" / "public_names.txt"
ROOMS = (
    *(
        "xbp",
        "xbp.accelerators",
        "xbp.backend",
        "xbp.data",
        "xbp.datasets",
        "xbp.derivatives",
        "xbp.errors",
    ),
    *(
        "xbp.estimators",
        "xbp.exchange",
        "xbp.homework",
        "xbp.initializers",
        "xbp.models",
        "xbp.models.lenet1998",
    ),
    *("xbp.nn", "xbp.optim", "xbp.parallel", "xbp.primitives", "xbp.random", "xbp.report"),
    *("xbp.testing", "xbp.training", "xbp.training.callbacks", "xbp.training.metrics"),
)
PREFIX = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}


def names_of(room: Any) -> list[str]:
    """What `__all__` has; in a module without it, what is defined there and has no underscore."""
    return sorted(
        getattr(room, "__all__", None)
        or [
            name
            for name, value in vars(room).items()
            if name[0] != "_" and getattr(value, "__module__", None) == room.__name__
        ]
    )


def parameters_of(function: Any) -> str:
    """The parameters, as in the list."""
    parts, keywords = [], False
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.kind.name
        if kind == "KEYWORD_ONLY" and not keywords:
            parts.append("*")
        keywords |= kind in ("KEYWORD_ONLY", "VAR_POSITIONAL")
        default = "" if parameter.default is parameter.empty else "="
        parts.append(f"{PREFIX.get(kind, '')}{parameter.name}{default}")
    return f"({', '.join(parts)})"


def lines() -> Iterator[str]:
    """Every line of the list."""
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in names_of(module):
            yield from lines_of(f"{room}.{name}", getattr(module, name))
    yield from options()


def lines_of(name: str, value: Any) -> Iterator[str]:
    """The lines of one name."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        yield name
        return
    try:
        yield name + parameters_of(value)
    except ValueError:  # a type without a signature
        yield name
    for own, method in vars(value).items() if inspect.isclass(value) else ():
        if own[0] != "_" and isinstance(method, staticmethod | classmethod):
            yield f"{name}.{own}{parameters_of(getattr(value, own))}"
        elif own[0] != "_" and inspect.isfunction(method):
            yield f"{name}.{own}{parameters_of(method)}"
        elif own[0] != "_" and isinstance(method, property):
            yield f"{name}.{own}"


def options() -> Iterator[str]:
    """The commands and their options."""
    import typer

    from xbp.cli import app

    def of(path: str, command: Any) -> Iterator[str]:
        yield path
        if hasattr(command, "list_commands"):
            context = typer.Context(command)
            for name in command.list_commands(context):
                yield from of(f"{path} {name}", command.get_command(context, name))
        else:
            for parameter in command.params:
                yield from (f"{path} {option}" for option in parameter.opts if option[0] == "-")

    yield from of("$ xbp", typer.main.get_command(app))


def incompatible(old: list[str], new: list[str]) -> list[str]:
    """What code written for the names in `old` cannot do with those in `new`.

    >>> incompatible(["f(a, b=)", "g"], ["f(a, b=, c=)", "g", "h"])
    []
    >>> incompatible(["f(a, b=)"], ["f(a, c, b)"])
    ['f: c has no default', 'f: b has no default', 'f: b is no longer at position 2']
    >>> incompatible(["f(a)", "g"], ["f()"])
    ['f: a is gone', 'g is gone']
    """
    known, problems = dict(map(parsed, new)), []
    for line in old:
        name, before = parsed(line)
        if name not in known:
            problems.append(f"{name} is gone")
        elif before is not None:
            problems += [f"{name}: {problem}" for problem in changes(before, known[name] or [])]
    return problems


def parsed(line: str) -> tuple[str, list[str] | None]:
    """The name, and its parameters, or None if it has none."""
    name, bracket, rest = line.partition("(")
    return name, rest.rstrip(")").split(
        ", "
    ) if bracket and rest != ")" else [] if bracket else None


def changes(before: list[str], after: list[str]) -> Iterator[str]:
    """What has changed for a caller."""
    had = [parameter.rstrip("=") for parameter in before]
    has = [parameter.rstrip("=") for parameter in after]
    for parameter in after:
        if parameter[0] != "*" and not parameter.endswith("=") and parameter not in before:
            yield f"{parameter} has no default"
    for position, name in enumerate(had):
        if name == "*":
            continue
        keyword = name[0] == "*" or "*" in had[:position]
        if name not in has:
            yield f"{name} is gone"
        elif not keyword and has.index(name) != position:
            yield f"{name} is no longer at position {position + 1}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
