"""Public names stay, and code that calls them goes on working; see docs/stability.md."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from public_names import FROZEN, incompatible, lines

import xbp

ROOT = Path(__file__).parents[1]


def test_what_was_published_is_still_there() -> None:
    """A removal, a renamed or reordered parameter, a new one without a default is a new major
    version, or has been deprecated for two minor ones."""
    pytest.importorskip("sklearn")
    found = incompatible(FROZEN.read_text(encoding="utf-8").splitlines(), list(lines()))
    assert not found, (
        f"{found}; if this is meant: {__doc__} python tests/public_names.py > {FROZEN}"
    )


@pytest.mark.parametrize("name", ["CITATION.cff", "conda/recipe.yaml"])
def test_the_version_is_that_of_xbp(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.search(r"^ *version: (\d\S*)$", text, re.MULTILINE)[1] == xbp.__version__


def test_the_conda_recipe_needs_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = (ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    wanted = {f"python{project['requires-python']}", *project["dependencies"]}
    needed = recipe.partition("  run:\n")[2].partition("\n\n")[0]
    assert {line.strip(" -").replace(" ", "") for line in needed.splitlines()} == wanted
