"""``xbp info``: what is installed, and what works."""

from __future__ import annotations

import os
import platform
import warnings

import typer
from rich import box
from rich.table import Table

import xbp
from xbp import accelerators
from xbp.accelerators.cuda import tuned
from xbp.backend import LIBRARIES, find_backend
from xbp.cli import drivers
from xbp.cli.display import new_table, show
from xbp.errors import BackendError
from xbp.machine import facts_of, version

REQUIRED = ("numpy", "array-api-compat", "safetensors", "rich", "typer")
OPTIONAL = (
    *(*drivers.WHEELS, "torch", "array-api-strict"),
    *("ndonnx", "onnxruntime", "matplotlib", "scipy"),
)


def info() -> None:
    """Say which versions are installed, which backends and devices work here, and why not."""
    facts = drivers.look()
    show(_versions(facts.driver))
    table, remarks = new_table("backend", "usable", "default device", left=3), []
    for name in LIBRARIES:
        try:
            with warnings.catch_warnings():  # about two CuPy wheels, which `diagnose` reports
                warnings.filterwarnings("ignore", r"(?s).*CuPy may not function correctly")
                device = find_backend(name).device
            table.add_row(name, "yes", str(device))
            if name == "cupy":
                said = facts_of(name)
                remarks.append(f"cupy: {', '.join(map(' '.join, said.items()))}")
                remarks.append(f"cupy: {tuned.status(tuned.architecture_in(said['device']))}")
        except BackendError as error:
            table.add_row(name, "no", "")
            remarks.append(f"{name}: {error}")
    show(table)
    devices = facts.driver.devices if facts.driver else ()
    for line in (
        *remarks,
        *(f"cuda:{index}: {device}" for index, device in enumerate(devices)),
        *(f"GPU: {line}" for line in drivers.diagnose(facts)),
    ):
        typer.echo(line)


def _versions(driver: drivers.Driver | None) -> Table:
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_row("xbp", xbp.__version__)
    table.add_row("python", platform.python_version())
    table.add_row("platform", platform.platform())
    table.add_row("accelerators", accelerators.status())
    table.add_row("XBP_BACKEND", os.environ.get("XBP_BACKEND") or "not set, so numpy")
    for name in (*REQUIRED, *OPTIONAL):
        found = version(name)
        if found or name in REQUIRED:
            table.add_row(name, found or "not found")
    if driver:
        table.add_row("CUDA of the driver", f"up to {driver.version}")
    return table
