"""The site, English and Chinese: ``python docs/build.py [FOLDER]``, by default ``docs/build/site``.

    python3 -m venv .venv && .venv/bin/pip install ".[docs]" && .venv/bin/python docs/build.py

    npm install --prefix docs/build onnxruntime-web@1.30.0   # optional, for start/browser.md

Runs every cell of the pages once (one compiles a C function by `cc`), makes the reference from the
docstrings, and fails at a warning, a dead link within the site, or anything that a page would fetch
from elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

DOCS = Path(__file__).parent
FROM_ELSEWHERE = re.compile(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)")
QUIET = "c.IPKernelApp.log_level = 'ERROR'\n"  # it warns of its own connection
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """The anchors, links and fetched files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given.get("id") or "", given.get("name") or ""}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"] or "")
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.fetched.add(given[FETCHED[tag]] or "")


def problems(folder: Path) -> list[str]:
    """Dead links within a site, and what its pages and style sheets fetch from elsewhere."""
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        for link in sorted(page.links | page.fetched):
            place, anchor = urldefrag(link)
            if urlsplit(place).scheme or place.startswith("//"):
                if link in page.fetched and not place.startswith("data:"):
                    found.append(f"{name} fetches {link}")
                continue
            target = path if not place else (path.parent / unquote(urlsplit(place).path)).resolve()
            if not target.exists():
                found.append(f"{name}: {link} leads nowhere")
            elif target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{name}: {link} has no such place")
    for path in folder.rglob("*.css"):
        urls = FROM_ELSEWHERE.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.name} fetches {url}" for url in urls]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DOCS / "build" / "site")
    parser.add_argument("--clean", action="store_true", help="build all pages anew")
    options = parser.parse_args()
    from jupyter_cache import get_cache
    from sphinx.cmd.build import main as sphinx_build

    folder, cache = options.folder.resolve(), DOCS / "build" / "doctrees"
    cells = DOCS / "build" / "cells"
    for old in (folder, cache, cells) if options.clean else (cells,):
        shutil.rmtree(old, ignore_errors=True)
    get_cache(cells).db  # noqa: B018  made before several processes write to it
    os.environ["PYTHONPATH"] = str(DOCS.parent)  # for the cells, which run in other processes
    profile = DOCS / "build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(QUIET, encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)
    logging.getLogger("traitlets").setLevel(logging.WARNING)  # it tells of each kernel
    flags = ["--fail-on-warning", "--keep-going", "--quiet", "--jobs", "auto", "--doctree-dir"]
    for language in ("", "zh"):
        places = (cache / (language or "en"), DOCS / language, folder / language)
        status = sphinx_build([*flags, *map(str, places)])
        if status:
            return status
    found = problems(folder)
    print(*found, f"{folder / 'index.html'}: {len(found)} dead links or fetches", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
