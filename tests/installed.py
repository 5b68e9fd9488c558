"""pytest in a process of its own, in a project where xbp seems to be installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_pytest(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in `project`, which finds xbp and its plugin as after `pip install`."""
    metadata = project / "site" / "xbackprop-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: xbackprop\nVersion: 0\n")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = declared["entry-points"]["pytest11"].items()
    lines = "".join(f"{name} = {module}\n" for name, module in entries)
    (metadata / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    unwanted = {"XBP_BACKEND", "PYTEST_ADDOPTS", "PYTEST_PLUGINS"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(metadata.parent), str(ROOT)]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",  # no line of the summary is cut
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
