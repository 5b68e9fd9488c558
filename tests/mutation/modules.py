"""The modules of xbp that get faults, and the tests that are nearest to one."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

LEFT_OUT = (
    # which library, which device; commands, pages, files, comparisons; the tests' own tools
    *("backend", "benchmarks", "cli", "datasets", "estimators", "exchange", "report", "testing"),
    # names, messages and pictures; a call of the compiler
    *("arguments", "errors", "images", "machine", "nested", "paths", "registry"),
    *("_version", "__main__", "training.plots", "accelerators.cpu.build"),
)
"""Rooms and modules that compute nothing of a training. All others get faults, new ones too."""

TABLE = re.compile(
    r"\b(testing.cases|import cases|testing.catalogue|nn.cases|optim.rules)\b|\bCASES\b"
)
"""In the text of a file whose tests have the table's cases as parameters."""
OF_EACH = 8
"""Parameters of one test that meet a fault before the others do."""
BESIDE = 2
"""Parameters of one test in a module's mirror folder that meet what its nearest tests let pass."""
FEW = 3
"""Modules whose tests are near to a module that they use; of more users the first ones."""


def sources() -> list[Path]:
    """The files that get faults."""
    paths = sorted((ROOT / "xbp").rglob("*.py"))
    return [path for path in paths if not _within(name_of(path), LEFT_OUT)]


def name_of(path: Path) -> str:
    """The module's name without "xbp."."""
    parts = path.relative_to(ROOT / "xbp").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def of_tests(paths: Iterable[Path]) -> list[str]:
    """The files and folders of tests of these sources, relative to the repository."""
    found = {"tests/properties"}
    for path in paths:
        room = name_of(path).partition(".")[0]
        found |= {path for path in (f"tests/{room}", f"tests/test_{room}.py") if exists(path)}
    return sorted(found)


def files_of_tests(place: str) -> list[str]:
    """The files of a folder of tests, or the file itself, relative to the repository."""
    path = ROOT / place
    files = path.rglob("test_*.py") if path.is_dir() else [path]
    return [file.relative_to(ROOT).as_posix() for file in files]


def exists(path: str) -> bool:
    return (ROOT / path).exists()


def mirror(module: str) -> str:
    """The innermost folder of tests for a module, given without "xbp."."""
    parts = module.split(".")[:-1]
    while parts and not exists("/".join(["tests", *parts])):
        parts.pop()
    return "/".join(["tests", *parts, ""])


@functools.cache
def public(module: str) -> frozenset[str]:
    """The functions and classes that a module defines for others."""
    path = ROOT / "xbp" / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    defined = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return frozenset(name for name in defined if not name.startswith("_"))


@functools.cache
def users(module: str) -> frozenset[str]:
    """The classes of the modules that import what this one defines; of many, the first ones.

    Accelerators do not count: they have no layers.
    """
    found = []
    for path in (path for path in sources() if "accelerators" not in path.parts):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and f"xbp.{module}.".startswith(f"{node.module}."):
                if path.stem != "__init__" and {a.name for a in node.names} & public(module):
                    found.append(name_of(path))
    names = (name for user in found[:FEW] for name in public(user))
    return frozenset(name for name in names if name[0].isupper())


@functools.cache
def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


@functools.cache
def _text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@functools.cache
def _classes() -> frozenset[str]:
    every = (public(name_of(path)) for path in sources())
    return frozenset(name for names in every for name in names if name[0].isupper())


def is_near(test: str, module: str) -> bool:
    """Whether a test, given by its node id, is among those that see the faults of a module first.

    These are tests with a parameter named after what the module or its users define. Near are
    also the tests without a class's name in their parameters, if their file is related.
    """
    file, _, test = test.partition("::")
    if file.startswith("xbp/"):  # a doctest
        return file == f"xbp/{module.replace('.', '/')}.py"
    words = _words(test)
    if (public(module) | users(module)) & words:
        return True
    return _is_related(file, module) and not _classes() & words


def may_have_near(file: str, module: str) -> bool:
    """Whether a file of tests has to be collected for the tests nearest to a module.

    The names of classes in parameters come from the table of cases or stand in the file.
    """
    text = _text(file)
    named = bool((public(module) | users(module)) & _words(text))
    return named or is_beside(file, module) or _is_related(file, module) or bool(TABLE.search(text))


def is_beside(test: str, module: str) -> bool:
    """Whether a test is in the mirror folder of a module."""
    return test.startswith(mirror(module))


@functools.cache
def _is_related(file: str, module: str) -> bool:
    """Whether a file of tests or its folder is named after the module, the file imports it, or it
    is in the mirror folder and mentions what the module defines."""
    room, _, stem = f"xbp.{module}".rpartition(".")
    text = _text(file)
    imports = rf"\b{re.escape(room)}(\.| import .*?\b){stem}\b"
    telling = {name for name in public(module) if "_" in name or not name.islower()}
    return (
        Path(file).stem == f"test_{stem}"
        or ("." in module and file.startswith(f"tests/{module.replace('.', '/')}/"))
        or re.search(imports, text) is not None
        or (is_beside(file, module) and bool(telling & _words(text)))
    )


def some_of_each(
    tests: Sequence[str],
    module: str,
    chosen: Callable[[str, str], bool] = is_near,
    most: int = OF_EACH,
) -> list[int]:
    """The indices of at most so many, evenly spaced parameters of each test function, of those that
    are near to a module or, by another function of a test and a module, `chosen`."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(tests):
        if chosen(name, module):
            groups.setdefault(name.partition("[")[0], []).append(index)
    return sorted(i for group in groups.values() for i in group[:: -(-len(group) // most)])
