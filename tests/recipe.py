"""The conda recipe, as far as it can be tried with packages from PyPI.

    python tests/recipe.py

renders ``conda/recipe.yaml`` for each system by rattler-build's own library, which refuses unknown
or misspelt fields. Then it does here, with virtual environments in place of conda's, what
``rattler-build build --recipe conda/recipe.yaml`` does with packages of conda-forge: the script of
the recipe, in a copy of the sources and with the packages of "host" alone; then, with those of
"run", the tests of the recipe. Exit status 1 if something fails.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from wheels import ROOT, copy_of_sources, python_of, run

TOOLS = "py-rattler-build>=0.73"
PLATFORMS = ("linux-64", "linux-aarch64", "osx-64", "osx-arm64", "win-64")
RENDER = """
import json, sys
from rattler_build import PlatformConfig, RenderConfig, Stage0Recipe
recipe = Stage0Recipe.from_file(sys.argv[1])
found = {}
for name in sys.argv[2:]:
    platform = PlatformConfig(target_platform=name, build_platform=name, host_platform=name)
    (variant,) = recipe.render(render_config=RenderConfig(platform))
    found[name] = variant.recipe.to_dict()
print(json.dumps(found))
"""
PYTHON = ("python", "pip")
"""Packages of conda that a virtual environment has anyway."""


def from_pip(requirements: list[str]) -> list[str]:
    """The requirements of a recipe as those of pip: ``numpy >=2.1`` is ``numpy>=2.1``.

    >>> from_pip(["python >=3.11", "pip", "numpy >=2.1"])
    ['numpy>=2.1']
    """
    named = (requirement.partition(" ") for requirement in requirements)
    return [name + bounds.strip() for name, _, bounds in named if name not in PYTHON]


def commands(tests: list[dict[str, Any]], python: Path) -> list[list[str | Path]]:
    """The commands of the recipe's tests."""
    found: list[list[str | Path]] = []
    for test in tests:
        imports = test.get("python", {}).get("imports", [])
        found += [[python, "-c", f"import {name}"] for name in imports]
        found += [line.split() for line in test.get("script", [])]
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = python_of(work / "tools")
        run(tools, "-m", "pip", "install", "-q", TOOLS)
        said = run(tools, "-c", RENDER, ROOT / "conda" / "recipe.yaml", *PLATFORMS)
        rendered = json.loads(said)
        for platform, recipe in rendered.items():
            compiler = ", ".join(recipe["requirements"]["build"])
            sys.stdout.write(f"{platform:15}{recipe['build']['string']:15}{compiler}\n")
        recipe = rendered["linux-64"]
        needs, sources = recipe["requirements"], copy_of_sources(work / "sources")
        python = python_of(work / "host")
        run(python, "-m", "pip", "install", "-q", *from_pip(needs["host"]))
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        script = recipe["build"]["script"].replace("${{ PYTHON }}", str(python))
        run(*script.split(), where=sources, PATH=path)
        run(python, "-m", "pip", "install", "-q", *from_pip(needs["run"]))
        for command in commands(recipe["tests"], python):
            said = run(*command, where=work, PATH=path)
            if "not built" in said:
                raise SystemExit(f"the kernels are missing\n{said}")
    sys.stdout.write("passed\n")


if __name__ == "__main__":
    main()
