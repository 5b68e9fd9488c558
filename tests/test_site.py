"""The sources of the site, as far as they can be checked without building it."""

import importlib
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from nightly import NIGHTLY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COPIES = ("about.md", "changelog.md", "contributing.md", "security.md")
"""Pages that the build makes of files outside `docs`."""
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if path.relative_to(DOCS).parts[0] not in ("build", "measured", "_site")
    and path.name not in COPIES
)
MADE = {"measured/index.md", "reference/index.rst", "reference/xbp.data.rst", "start/about.md"}
MADE |= {"zh/start/about.md"}


@pytest.fixture(autouse=True)
def _site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(DOCS))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "_site"]:
        del sys.modules[name]


def names(pattern: str) -> list[tuple[str, ...]]:
    """What a pattern finds in the pages, each with its page."""
    return [
        (path.relative_to(DOCS).as_posix(), *found.groups())
        for path in PAGES
        for found in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("page", "file", "name"), names(r"\{code-of\} (\S+) (\S+)"))
def test_the_code_that_a_page_shows_is_there(page: str, file: str, name: str) -> None:
    from _site.sources import code_of

    code = code_of((ROOT / file).read_text(encoding="utf-8"), name)
    assert f"{name.rpartition('.')[2]}(" in code
    assert '"""' not in code


def test_pages_lead_to_files_that_exist() -> None:
    missing = []
    for page, link in names(r"\]\((?!\w+:|#)([^)\s#]+)"):
        target = (DOCS / page).parent / link
        inside = target.resolve().is_relative_to(DOCS)
        known = inside and target.resolve().relative_to(DOCS).as_posix() in MADE
        if not target.exists() and not known:
            missing.append(f"{page}: {link}")
    assert not missing


def test_links_of_the_forge_become_pages_of_the_site() -> None:
    from _site.links import relinked

    page = DOCS / "gpu.md"
    text = (
        "[parity](../benchmarks/results/gpu_nvidia_h200_parity.md) [`x`](../xbp/testing) "
        "[a](#a) [changes](../CHANGELOG.md) [other](https://example.org/a.md) [b](backends.md#b)"
    )
    assert relinked(text, page, page) == (
        "[parity](measured/gpu_nvidia_h200_parity.md) `x` "
        "[a](#a) [changes](project/changelog.md) [other](https://example.org/a.md) "
        "[b](backends.md#b)"
    )


DOCSTRING = """y = |x| for x_, and **options.

    y  = 1
    y′ = 2

With `x - 1` and `name`.

Parameters
----------
*args : int or a_
    A | b.

Returns
-------
array (*shape of x)
"""


def test_docstrings_are_escaped_and_formulas_keep_their_lines() -> None:
    from _site.docstrings import rst

    made = "\n".join(rst(DOCSTRING.splitlines()))
    assert r"y = \|x\| for x\_, and \*\*options." in made
    assert "::\n\n        y  = 1\n        y′ = 2\n" in made
    assert "With ``x - 1`` and `name`." in made
    assert r"array (\*shape of x)" in made
    assert "*args : int or a\\_\n    A \\| b." in made  # numpydoc escapes a name itself


@pytest.mark.skipif(not NIGHTLY, reason="python docs/build.py runs the cells")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent in (DOCS, DOCS / "learn")], ids=lambda p: p.stem
)
def test_the_cells_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page.parent)
    scope: dict[str, object] = {}
    for cell in re.findall(r"```\{code-cell\}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        exec(re.sub(r"\A(:.*\n)+", "", cell), scope)


def test_addresses_are_asked_for_and_those_without_success_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()

        def do_HEAD(self) -> None:
            self.send_response({"/gone": 404, "/no-head": 405}.get(self.path, 200))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    links = importlib.import_module("links")
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}"
    try:
        assert links.answer(f"{home}/there") == links.answer(f"{home}/no-head") == ""
        assert links.answer(f"{home}/gone").startswith("404")
    finally:
        server.shutdown()
        server.server_close()
    assert links.answer(f"{home}/").startswith("no answer")
    monkeypatch.setattr(links, "PAUSE", 0)
    monkeypatch.setattr(links, "answer", lambda address: "404 gone" if "semver" in address else "")
    monkeypatch.setattr(sys, "argv", ["links.py"])
    assert links.main() == 1
    said = capsys.readouterr().out
    assert "https://semver.org  404 gone  docs/stability.md" in said and "1 broken" in said
    del sys.modules["links"]
