"""``xbp info``: what is installed, and what works."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata

import typer
from rich import box
from rich.table import Table

import xbp
from xbp import accelerators
from xbp.backend import LIBRARIES, Backend, brief, find_backend
from xbp.cli.report import new_table, show
from xbp.errors import BackendError

REQUIRED = ("numpy", "array-api-compat", "safetensors", "rich", "typer")
OPTIONAL = (
    *("cupy-cuda12x", "cupy-cuda13x", "cupy", "torch", "array-api-strict"),
    *("matplotlib", "scipy"),
)


def info() -> None:
    """Say which versions are installed, and which backends and devices work here."""
    show(_versions())
    table, reasons = new_table("backend", "usable", "default device", left=3), []
    backends: dict[str, Backend] = {}
    for name in LIBRARIES:
        try:
            backends[name] = find_backend(name)
            table.add_row(name, "yes", str(backends[name].device))
        except BackendError as error:
            table.add_row(name, "no", "")
            reasons.append(f"{name}: {error}")
    show(table)
    for line in reasons + (_cuda_devices() if "cupy" in backends else []):
        typer.echo(line)


def _versions() -> Table:
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_row("xbp", xbp.__version__)
    table.add_row("python", platform.python_version())
    table.add_row("platform", platform.platform())
    table.add_row("accelerators", accelerators.status())
    table.add_row("XBP_BACKEND", os.environ.get("XBP_BACKEND") or "not set, so numpy")
    for name in (*REQUIRED, *OPTIONAL):
        version = _version(name)
        if version or name in REQUIRED:
            table.add_row(name, version or "not found")
    return table


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except Exception:  # not installed, or half so
        return None


def _cuda_devices() -> list[str]:
    """A line for each CUDA device, or one that says why they cannot be listed."""
    try:
        runtime = importlib.import_module("cupy").cuda.runtime
        lines = []
        for index in range(runtime.getDeviceCount()):
            device = runtime.getDeviceProperties(index)
            memory = device["totalGlobalMem"] / 2**30
            lines.append(f"cuda:{index}: {device['name'].decode()}, {memory:.0f} GiB")
    except Exception as error:
        return [f"cupy: the CUDA devices cannot be listed ({brief(error)})"]
    return lines
