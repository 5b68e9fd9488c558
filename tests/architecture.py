"""The rooms of xbp, their imports, and violations of the plan.

    python tests/architecture.py            # rooms, imports between them, violations
    python tests/architecture.py nn.layer   # the imports of one file, in both directions

`ROOMS` is the plan: a room imports only from those below it, and files do not import in a circle.
`test_imports.py` checks both.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

ROOMS = {
    "errors": "sentences for users",
    "_version": "one number",
    "arguments": "checks of arguments",
    "nested": "arrays and tuples of them",
    "registry": "which implementation of an operation serves which arrays",
    "paths": "what a path leads to, before it is read",
    "staging": "where files are written before a rename",
    "launchers": "who started this process, and its share of the cores",
    "backend": "array libraries, devices, arrays, the current backend",
    "machine": "versions, processor, devices, commit",
    "primitives": "operations that may have a second implementation, with their gradients",
    "random": "seeds and streams",
    "initializers": "initial weights",
    "accelerators": "second implementations, by machine: C for numpy, kernels for CuPy",
    "parallel": "groups of processes",
    "nn": "layers and losses",
    "derivatives": "Jacobians, gradients of samples, products with the Hessian",
    "optim": "update rules and schedules",
    "datasets": "where data come from",
    "data": "how data are given to training",
    "images": "pictures of users",
    "models": "networks by name",
    "training": "the loop, its callbacks, metrics and files",
    "estimators": "scikit-learn's interface",
    "interop": "other libraries' layers",
    "xbp": "the public names",
    "testing": "gradients, parity, stand-ins for a GPU",
    "homework": "exercises that check themselves",
    "exchange": "ONNX",
    "report": "pages about runs",
    "benchmarks": "side by side with peers",
    "cli": "one file a command",
    "__main__": "python -m xbp",
}
"""From the ground up, with its purpose: a room imports from those above it in this table."""


class Arrow(NamedTuple):
    """An import of one file by another."""

    source: str
    target: str
    kind: str
    """"" as soon as the file is imported, "lazy" in a function, "typing" for annotations alone."""


# --- reading -------------------------------------------------------------------------------------


def files(root: Path = ROOT) -> dict[str, Path]:
    """Modules by their names: ``"xbp.nn.layer"``; a package is its ``__init__.py``."""
    found = {}
    for path in sorted((root / "xbp").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """ "nn" of "xbp.nn.layer"; "xbp" of "xbp"."""
    return module.split(".")[1] if "." in module else module


def arrows(modules: Mapping[str, Path]) -> list[Arrow]:
    """All imports of modules by modules."""
    return [
        arrow
        for name, path in modules.items()
        for arrow in sorted(set(_imports(name, path, modules)))
        if arrow.target != name
    ]


def _imports(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[Arrow]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, kind in _statements(ast.parse(path.read_text(encoding="utf-8")), ""):
        match node:
            case ast.Import(names=names):
                targets = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*above, module] if module else above)
                whole = [f"{base}.{alias.name}" for alias in names]
                targets = [each if each in modules else base for each in whole]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=v)]):
                targets = [str(v)]
            case _:
                continue
        for target in targets:
            if target in modules:
                yield Arrow(name, target, kind)


def _statements(node: ast.AST, kind: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node within `node`, with the kind of import at that place."""
    for child in ast.iter_child_nodes(node):
        inner = kind
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = kind or "lazy"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inner = "typing"
        yield child, inner
        yield from _statements(child, inner)


# --- judging -------------------------------------------------------------------------------------


def upwards(found: Iterable[Arrow]) -> list[Arrow]:
    """Imports from a room that is not below the importing one."""
    order = {name: index for index, name in enumerate(ROOMS)}
    return [a for a in found if order[room(a.target)] > order[room(a.source)]]


def circles(found: Iterable[Arrow]) -> list[list[str]]:
    """Circles of imports: the strongly connected components of files. (Tarjan 1972.)"""
    targets: dict[str, list[str]] = {}
    for arrow in found:
        targets.setdefault(arrow.source, []).append(arrow.target)
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    closed: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for target in targets.get(name, ()):
            if target not in index:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], index[target])
        if lowest[name] == index[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                closed.append(sorted(circle))

    for name in list(targets):
        if name not in index:
            visit(name)
    return sorted(closed)


def against_the_plan(found: Iterable[Arrow]) -> tuple[set[tuple[str, str]], set[tuple[str, ...]]]:
    """Upward imports, as (file, room), and circles of files among the other imports."""
    found = list(found)
    wrong = set(upwards(found))
    rest = circles(arrow for arrow in found if arrow not in wrong)
    return {(a.source, room(a.target)) for a in wrong}, {tuple(circle) for circle in rest}


# --- showing -------------------------------------------------------------------------------------


def picture(found: list[Arrow]) -> Iterator[str]:
    """Rooms from the top down, each with the rooms that it imports, and violations of the plan."""
    wrong = set(upwards(found))
    between = {(room(a.source), room(a.target)) for a in found}
    for name in reversed(ROOMS):
        below = [other for other in reversed(ROOMS) if (name, other) in between and other != name]
        yield f"{name:13} {ROOMS[name]}\n{'':13} -> {', '.join(below) or 'nothing'}"
    rest = circles(arrow for arrow in found if arrow not in wrong)
    yield f"\narrows upwards: {len(wrong)}; circles of files without them: {len(rest)}\n"
    yield from (f"upwards: {shown(arrow)}" for arrow in sorted(wrong))
    for circle in rest:
        inside = [a for a in found if a.source in circle and a.target in circle]
        yield f"circle of {len(circle)} files, by {len(inside)} imports:"
        yield from (f"    {shown(arrow)}" for arrow in inside)


def neighbours(found: list[Arrow], name: str) -> Iterator[str]:
    """All imports by a file, and of it."""
    yield from (shown(arrow) for arrow in found if name in (arrow.source, arrow.target))


def shown(arrow: Arrow) -> str:
    return f"{arrow.source} -> {arrow.target}" + (f" ({arrow.kind})" if arrow.kind else "")


def main() -> None:
    found = arrows(files())
    asked = [name if name.startswith("xbp") else f"xbp.{name}" for name in sys.argv[1:]]
    for line in [line for name in asked for line in neighbours(found, name)] or picture(found):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
