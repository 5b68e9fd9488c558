"""Links of the pages that are also read on a forge, and pages made of files from elsewhere.

A page in ``docs`` links to files of the repository by relative paths. On the site, a file that has
a page becomes that page, any other file a download, and a folder its name. A page in the other
language is another build's, to which a link leads by its address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(((?!\w+:|#)[^)\s#]+)(#[^)\s]*)?\)")
OUTSIDE = {"README.md": "start/about", "CHANGELOG.md": "project/changelog"}
OUTSIDE |= {"README.zh-CN.md": "zh/start/about"}
OUTSIDE |= {"CONTRIBUTING.md": "project/contributing", "SECURITY.md": "project/security"}


def page_of(path: Path) -> Path | None:
    """The page of the site, in ``docs``, that shows a file."""
    if path.is_relative_to(DOCS) and path.suffix == ".md":
        return path
    if path.parent == RESULTS and path.suffix in (".md", ".txt"):
        return DOCS / "measured" / f"{path.stem}.md"
    own = OUTSIDE.get(path.relative_to(ROOT).as_posix())
    return None if own is None else DOCS / f"{own}.md"


def _chinese(path: Path) -> bool:
    """Whether it is a page of the build in Chinese."""
    return path.is_relative_to(DOCS / "zh")


def relinked(text: str, read_from: Path, shown_at: Path) -> str:
    """A page's text with links that hold on the site.

    Parameters
    ----------
    text : str
    read_from : Path
        The file of the text, to which its links are relative.
    shown_at : Path
        The page that shows it.
    """

    def new(match: re.Match[str]) -> str:
        label, link, anchor = match.groups()
        target = Path(os.path.normpath(read_from.parent / link))
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[0]
        if target.is_dir():
            return label[1:-1]
        page = page_of(target)
        if _chinese(shown_at) and target.suffix == ".rst":
            page = target
        if page is not None and _chinese(page) != _chinese(shown_at):
            address = Path(os.path.relpath(page, shown_at.parent)).with_suffix(".html").as_posix()
            return f"{label}({address}{anchor or ''}){{.external}}"
        if page is None and target.suffix == ".md":
            name = label[1:-1].strip("`")
            return f"{{download}}`{name} <{os.path.relpath(target, shown_at.parent)}>`"
        return f"{label}({os.path.relpath(page or target, shown_at.parent)}{anchor or ''})"

    return LINK.sub(new, text)


def read(app: Any, name: str, source: list[str]) -> None:
    """Mend the links of a page that Sphinx reads."""
    path = Path(app.srcdir) / f"{name}.md"
    if path.exists():
        source[0] = relinked(source[0], path, path)


def made() -> Iterator[tuple[str, str]]:
    """Pages of files outside ``docs``: their names, and their text."""
    for file, page in OUTSIDE.items():
        path = ROOT / file
        yield page, relinked(path.read_text(encoding="utf-8"), path, DOCS / f"{page}.md")
    names = []
    for path in sorted(RESULTS.iterdir()):
        page = page_of(path)
        if page is None:
            continue
        text, title = path.read_text(encoding="utf-8"), path.stem.replace("_", " ")
        if path.suffix == ".txt":
            text = f"```text\n{text}\n```"
        text = re.sub(r"\A# (.*)\n", r"**\1**\n", text)
        names.append((path.stem, title))
        yield f"measured/{path.stem}", relinked(f"# {title}\n\n{text}", path, page)
    yield (
        "measured/index",
        MEASURED
        + "".join(f"- [{title}]({name}.md)\n" for name, title in names)
        + (
            "\n```{toctree}\n:hidden:\n"
            + "".join(f"{title} <{name}>\n" for name, title in names)
            + "```\n"
        ),
    )


MEASURED = """# Measured

What benchmarks and certificates said, as they were committed, each with its machine, its versions
and its commit. `xbp bench` and `xbp parity` print such files for a machine of your own; those of a
GPU come from `python -m benchmarks.gpu`.

"""


def write(app: Any) -> None:
    """Write the pages; those that have not changed keep their time."""
    for name, text in made():
        path = DOCS / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
