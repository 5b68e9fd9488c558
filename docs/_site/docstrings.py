"""Docstrings as reStructuredText.

Docstrings here are plain text for readers of a terminal, in numpydoc's sections: formulas as they
are, between words or as indented lines, and names in backticks. This escapes what would be markup
(`*`, `|`, a final `_`), makes indented lines literal blocks, and code of backticks with spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, pairwise

UNDERLINE = re.compile(r"-{3,}$")
BORDER = re.compile(r"=+( +=+)+$")
ITEM = re.compile(r"([-*]|\d+\.) ")
SPAN = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
NAME = re.compile(r"~?[A-Za-z_][\w.]*(\(\))?$")
NAMED = {"Parameters", "Attributes", "Methods"}
TYPES = {"Returns", "Raises", "Warns", "Yields"}
"""Sections of entries: of names, which numpydoc escapes, and of types, which may have a name."""


def rst(lines: list[str]) -> list[str]:
    """A docstring's lines, converted."""
    made: list[str] = []
    section = ""
    block: list[str] = []

    def flush() -> None:
        made.extend(_section(block, section))
        block.clear()

    for line, following in pairwise([*lines, ""]):
        if UNDERLINE.match(following) and line.strip() and line[0] != " ":
            flush()
            section = line.strip()
            made.append(line)
        elif UNDERLINE.match(line) and made and made[-1].strip() == section:
            made.append(line)
        else:
            block.append(line)
    flush()
    return made


def _section(lines: list[str], section: str) -> Iterator[str]:
    """The lines of one section; in one of entries, each is a head and an indented description."""
    if section not in NAMED | TYPES:
        yield from _text(lines)
        return
    for is_head, group in groupby(lines, key=lambda line: bool(line) and line[0] != " "):
        if is_head:
            for line in group:
                name, colon, kind = line.partition(" : ")
                plain = section in NAMED or colon
                yield (name if plain else escaped(name)) + colon + escaped(kind)
        else:
            yield from _text(list(group), base=4)


def _text(lines: list[str], base: int = 0) -> Iterator[str]:
    """Paragraphs, literal blocks, doctests, lists and tables."""
    for empty, group in groupby(lines, key=lambda line: not line.strip()):
        chunk = list(group)
        if empty:
            yield ""
            continue
        indent = min(len(line) - len(line.lstrip()) for line in chunk)
        first = chunk[0].strip()
        if first.startswith(">>>"):
            yield from chunk
        elif BORDER.match(first):
            yield from (line[indent - base :] for line in _table(chunk))
        elif indent > base and not ITEM.match(first):
            yield from [" " * base + "::", ""]
            yield from ("    " + line for line in chunk)
        else:
            yield from escaped("\n".join(chunk)).split("\n")


def _table(chunk: list[str]) -> list[str]:
    """A simple table, whose columns must stay where they are: backslashes would move them."""
    return [line.replace("|", "¦") for line in chunk]


def escaped(text: str) -> str:
    """Text without markup, except for spans in backticks."""
    parts = SPAN.split(text)
    for index, part in enumerate(parts):
        if index % 2 == 0:
            part = re.sub(r"([\\*|])", r"\\\1", part)
            parts[index] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
        elif part[1] != "`" and not NAME.match(part[1:-1]):
            parts[index] = f"`{part}`"
        if index % 2 and parts[index + 1][:1].isalnum():
            parts[index + 1] = "\\ " + parts[index + 1]  # a span ends at a non-word
    return "".join(parts)
