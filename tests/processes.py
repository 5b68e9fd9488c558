"""Processes of tests: they find the same xbp, and load no foreign pytest plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def search_path(*first: Path) -> str:
    """A PYTHONPATH: `first`, this checkout, and this process's own, as absolute paths.

    xbp and numpy need not be installed: both may have been found by PYTHONPATH alone, or in
    the current folder.
    """
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    folders = [*map(str, first), str(ROOT), *map(os.path.abspath, inherited)]
    return os.pathsep.join(dict.fromkeys(folders))


def without_foreign_plugins(*wanted: str) -> list[str]:
    """Options of pytest that leave out every installed plugin but xbp's and those named.

    What others do in a run within a run, such as the warning by which pytest-benchmark tells that
    pytest-xdist is there, is not under test.
    """
    found = {plugin.name for plugin in metadata.entry_points(group="pytest11")}
    foreign = sorted(found - {"pytest_xbp", *wanted})
    return [option for name in foreign for option in ("-p", f"no:{name}")]


def run_pytest(
    project: Path, *arguments: str, plugins: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run pytest in `project`, which finds xbp and its plugin as after `pip install`.

    Of the other plugins that are installed here, the run has those in `plugins`.
    """
    folder = project / "site" / "xbackprop-0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: xbackprop\nVersion: 0\n")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = declared["entry-points"]["pytest11"].items()
    lines = "".join(f"{name} = {module}\n" for name, module in entries)
    (folder / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "XBP_BACKEND" and not name.startswith("PYTEST_")
    }
    environment |= {
        "PYTHONPATH": search_path(folder.parent),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",  # long lines in the summary
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *without_foreign_plugins(*plugins), *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
