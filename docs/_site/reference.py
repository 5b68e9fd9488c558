"""The reference: a page for each public room, and one for each file that defines its names.

Pages are written to ``docs/reference`` before Sphinx reads it. Each name is described once, with
its signature, its docstring and its source; the build fails if a public name is missing.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from public_names import ROOMS as ALWAYS
from public_names import names_of
from sphinx.errors import ExtensionError
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.inspect import signature, stringify_signature

from _site.docstrings import escaped, rst

ROOMS = (*ALWAYS, "xbp.interop.torch")
FOLDER = Path(__file__).parents[1] / "reference"
ALIASES: set[tuple[str, str]] = set()
"""Names of a room that another one describes."""

ABOUT = {
    "xbp": "the package itself",
    "xbp.nn": "layers, containers, losses, parameters",
    "xbp.optim": "optimizers, schedules, groups, clipping",
    "xbp.primitives": "operations that may have a second implementation, with their gradients",
    "xbp.training": "the trainer, and what it consists of",
    "xbp.derivatives": "Jacobians, gradients of samples, products with the Hessian",
    "xbp.homework": "exercises that check themselves",
    "xbp.testing": "gradients, parity, hidden waits",
}


class Room:
    """The names of one public module, by the file that defines them."""

    def __init__(self, name: str, homes: dict[int, str]) -> None:
        self.name, self.module = name, sys.modules[name]
        self.files: dict[str, list[str]] = {}
        self.elsewhere: dict[str, str] = {}
        for own, value in _exported(name):
            home = homes.get(id(value), name)
            if home != name:
                self.elsewhere[own] = f"{home}.{own}"
                ALIASES.add((name, own))
                continue
            place = str(getattr(value, "__module__", "")) if _is_code(value) else name
            self.files.setdefault(place if place.startswith("xbp.") else name, []).append(own)

    def page(self, file: str) -> str:
        """The page of a file, without the ending."""
        if file == self.name:
            return f"{self.name}/others"
        return f"{self.name}/{file.removeprefix(self.name + '.').removeprefix('xbp.')}"

    def title(self, file: str) -> str:
        if file == self.name:
            return "other names"
        stem = file.removeprefix(self.name + ".").removeprefix("xbp.")
        return stem.replace("_", " ").replace(".", ", ")

    def index(self) -> Iterator[str]:
        """The lines of the room's own page: its docstring, and a table for each file."""
        yield from [_heading(self.name, "="), f".. py:module:: {self.name}", ""]
        yield from [*rst(inspect.cleandoc(self.module.__doc__ or "").splitlines()), ""]
        for file, names in sorted(self.files.items()):
            yield from [f":doc:`{self.title(file)} <{self.page(file)}>`", ""]
            yield from [".. list-table::", "   :widths: 30 70", ""]
            for own in names:
                yield f"   * - :py:obj:`{own} <{self.name}.{own}>`"
                yield f"     - {_first_line(getattr(self.module, own))}"
            yield ""
        if self.elsewhere:
            yield "Described elsewhere:"
            yield ""
        for own, other in self.elsewhere.items():
            yield from [f".. py:data:: {own}", "   :no-contents-entry:", ""]
            about = _first_line(getattr(self.module, own))
            yield from [f"   {about} See :py:obj:`{other}`.", ""]
        yield from [".. toctree::", "   :hidden:", ""]
        yield from (f"   {self.title(file)} <{self.page(file)}>" for file in sorted(self.files))

    def entries(self, file: str) -> Iterator[str]:
        """The lines of a file's page."""
        yield from [_heading(f"{self.name}: {self.title(file)}", "="), ""]
        if file != self.name:
            doc = sys.modules[file].__doc__ or ""
            yield from [*rst(inspect.cleandoc(doc).splitlines()), ""]
        yield from [f".. py:currentmodule:: {self.name}", ""]
        for own in self.files[file]:
            value = getattr(self.module, own)
            yield from [_heading(own, "-"), ""]
            if inspect.isclass(value):
                yield from [f".. autoclass:: {own}", "   :members:", "   :undoc-members:", ""]
            elif callable(value) and hasattr(value, "__name__"):
                yield from [f".. autofunction:: {own}", ""]
            else:
                yield from [f".. py:data:: {own}", ""]
                yield from (f"   {line}" for line in rst(_attribute_doc(own, value)))
                yield ""


def _exported(room: str) -> list[tuple[str, Any]]:
    """The public names of a room, but for modules."""
    module = importlib.import_module(room)
    named = [(own, getattr(module, own)) for own in names_of(module)]
    return [(own, value) for own, value in named if not isinstance(value, ModuleType)]


def _is_code(value: Any) -> bool:
    """Whether it is a class, a function or a primitive."""
    return inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "reference")


def _homes() -> dict[int, str]:
    """For each object the room that describes it: that of its file, or the first to export it."""
    homes: dict[int, str] = {}
    for room in ROOMS:
        for _, value in _exported(room):
            file = f"{getattr(value, '__module__', '')}."
            if _is_code(value) and (id(value) not in homes or file.startswith(f"{room}.")):
                if len(room) > len(homes.get(id(value), "")) or not file.startswith(
                    homes[id(value)]
                ):
                    homes[id(value)] = room
    return homes


def _heading(text: str, line: str) -> str:
    return f"{escaped(text)}\n{line * (len(text) + 8)}"


def _first_line(value: Any) -> str:
    documented = inspect.isclass(value) or callable(value)
    doc = inspect.cleandoc(value.__doc__ or "") if documented else ""
    return escaped(doc.partition("\n\n")[0].replace("\n", " ")) or "\\ "


def _attribute_doc(name: str, value: Any) -> list[str]:
    """The docstring below a constant or a type, in the file that defines it."""
    for file, module in list(sys.modules.items()):
        if file.startswith("xbp.") and vars(module).get(name) is value:
            docs = ModuleAnalyzer.for_module(file).find_attr_docs()
            if ("", name) in docs:
                return docs["", name]
    return ["Any type."] if value is Any else []


def write(app: Any) -> None:
    """Write all pages; those that have not changed keep their time, so that Sphinx skips them."""
    if find_spec("torch") is None:
        with mock(["torch"]):
            importlib.import_module("xbp.interop.torch")
    homes, pages = _homes(), {}
    rooms = [Room(name, homes) for name in ROOMS]
    for room in rooms:
        pages[f"{room.name}.rst"] = "\n".join(room.index())
        for file in room.files:
            pages[f"{room.page(file)}.rst"] = "\n".join(room.entries(file))
    pages["commands.rst"] = "\n".join(commands())
    pages["index.rst"] = "\n".join(_contents())
    for path in FOLDER.rglob("*.rst") if FOLDER.exists() else ():
        if path.relative_to(FOLDER).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _contents() -> Iterator[str]:
    yield from [_heading("Reference", "="), ""]
    yield "Every public name, with its formula, its shapes, its errors and its source."
    yield from ["", ".. list-table::", "   :widths: 30 70", ""]
    for room in ROOMS:
        about = ABOUT.get(room)
        if about is None:
            about = escaped((sys.modules[room].__doc__ or "").partition("\n")[0].rstrip("."))
        yield from [f"   * - :doc:`{room}`", f"     - {about}"]
    yield from ["   * - :doc:`commands`", "     - the command line", ""]
    yield from [".. toctree::", "   :hidden:", ""]
    yield from (f"   {room}" for room in ROOMS)
    yield "   commands"


def commands() -> Iterator[str]:
    """A section for each command of ``xbp``, with its options."""
    import typer

    from xbp.cli import app

    yield from [_heading("The command line", "="), ""]

    def of(path: str, command: Any) -> Iterator[str]:
        yield from [_heading(path, "-" if path.count(" ") < 2 else "~"), ""]
        text = inspect.cleandoc(command.help or "").replace("\f", "")
        yield from [*escaped(text).splitlines(), ""]
        if hasattr(command, "list_commands"):
            context = typer.Context(command)
            for name in command.list_commands(context):
                yield from of(f"{path} {name}", command.get_command(context, name))
            return
        for parameter in command.params:
            names = ", ".join(parameter.opts)
            yield f"``{names}``" if parameter.opts[0][0] == "-" else f"``{parameter.name.upper()}``"
            about = escaped(" ".join((getattr(parameter, "help", None) or "").split()))
            yield from [f"    {about or 'See above.'}", ""]

    yield from of("xbp", typer.main.get_command(app))


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring, before numpydoc reads it."""
    lines[:] = rst(lines)


def source_of(app: Any, module: str, name: str) -> str | None:
    """The file of a name's class or function; none for a second name: a source links back once."""
    first = name.partition(".")[0]
    if (module, first) in ALIASES:
        return f"{module} has no such file"
    value = getattr(sys.modules.get(module), first, None)
    return str(value.__module__) if _is_code(value) else None


def forget_missing_sources(app: Any) -> list[Any]:
    """Leave modules without source out of the list of sources."""
    found = app.env._viewcode_modules
    app.env._viewcode_modules = {name: entry for name, entry in found.items() if entry}
    return []


def of_init(
    app: Any, what: str, name: str, obj: Any, options: Any, shown: str | None, returns: str | None
) -> tuple[str, None] | None:
    """The parameters of `__init__`, also where a base class has a `__new__` of any arguments."""
    if what != "class" or obj.__new__ is object.__new__ or "__init__" not in vars(obj):
        return None
    parameters = signature(obj.__init__, bound_method=True)
    return stringify_signature(parameters, show_annotation=False), None


def check(app: Any, env: Any) -> None:
    """Fail if a public name has no entry."""
    known = {name for name, *_ in env.get_domain("py").get_objects()}
    public = [f"{room}.{own}" for room in ROOMS for own, _ in _exported(room)]
    missing = [name for name in public if name not in known]
    if missing:
        msg = f"the reference lacks {', '.join(missing)}"
        raise ExtensionError(msg)
    logging.getLogger(__name__).info("reference: %d names", len(known))


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("html-collect-pages", forget_missing_sources, priority=100)
    app.connect("autodoc-process-signature", of_init)
    app.connect("viewcode-follow-imported", source_of)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
