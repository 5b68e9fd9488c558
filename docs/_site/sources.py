"""The code of a function or class, as the pages show it."""

from __future__ import annotations

import ast
import textwrap
from typing import Any


def code_of(source: str, name: str) -> str:
    """The code of a name such as ``Linear.operation``, dedented, without docstrings.

    Raises
    ------
    KeyError
        There is none.
    """
    found: Any = ast.parse(source)
    for part in name.split("."):
        named = {getattr(node, "name", ""): node for node in found.body}
        found = named[part]
    lines: dict[int, str] = dict(enumerate(source.splitlines(), 1))
    first = min([found.lineno, *(node.lineno for node in found.decorator_list)])
    dropped: set[int] = set()
    for node in ast.walk(found):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            doc = node.body[0]
            dropped |= {*range(doc.lineno, (doc.end_lineno or 0) + 1)}
            if not lines[(doc.end_lineno or 0) + 1].strip():
                dropped.add((doc.end_lineno or 0) + 1)
    kept = [lines[k] for k in range(first, found.end_lineno + 1) if k not in dropped]
    return textwrap.dedent("\n".join(kept)) + "\n"
