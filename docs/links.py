"""Links to other servers: ``python docs/links.py``, which asks each of them.

    python docs/links.py                  # of all pages, README and docstrings
    python docs/links.py --list           # only list them, without a request

Asks for each address once, one after the other, and prints those that do not answer with success;
exit status 1 if there are any. An address that cannot be asked, as there is no network, counts as
unknown and is listed apart. Not part of the tests, as other servers have their own bad days.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "xbp", "examples", "benchmarks")
ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]}|\\]+")
NO_PAGES = ("http://www.w3.org/2000/svg", "http://127.0.0.1", "http://localhost", "https://example")
PAUSE = 0.5
"""Seconds between two requests."""


def addresses() -> dict[str, list[str]]:
    """Each address, with the files that have it."""
    found: dict[str, list[str]] = {}
    for path in sorted(_files()):
        name = path.relative_to(ROOT).as_posix()
        for address in ADDRESS.findall(path.read_text(encoding="utf-8", errors="replace")):
            address = address.rstrip(".,;:").partition("#")[0]
            if not address.startswith(NO_PAGES) and name not in found.setdefault(address, []):
                found[address].append(name)
    return found


def _files() -> Iterator[Path]:
    yield from ROOT.glob("*.md")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT).parts
            made = "build" in inside or inside[:2] in (("docs", "reference"), ("docs", "measured"))
            if path.suffix in (".md", ".py", ".html") and not made and path.name != "known.py":
                yield path  # `xbp data fetch` asks for those of data sets


def answer(address: str) -> str:
    """What is wrong with an address; empty if it answers."""
    headers = {"User-Agent": "Mozilla/5.0 (link check)"}
    for method in ("HEAD", "GET"):  # some servers refuse the first
        request = urllib.request.Request(address, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20):
                return ""
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.reason}"
        except (OSError, ValueError) as error:
            said = f"no answer ({getattr(error, 'reason', error)})"
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="only list them")
    options = parser.parse_args()
    found, broken, unknown = addresses(), 0, 0
    for address, files in found.items():
        said = "" if options.list else answer(address)
        if options.list or said:
            print(f"{address}  {said}  {', '.join(files)}")
        broken += bool(said) and not said.startswith("no answer")
        unknown += said.startswith("no answer")
        time.sleep(0 if options.list else PAUSE)
    print(f"{len(found)} addresses, {broken} broken, {unknown} without an answer")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
