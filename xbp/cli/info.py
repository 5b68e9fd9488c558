"""``xbp info``: what is installed, and what works."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from typing import Any

import typer
from rich import box
from rich.table import Table

import xbp
from xbp.backend import LIBRARIES, Backend, find_backend
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
            backends[name] = ready(name)
            table.add_row(name, "yes", str(backends[name].device))
        except BackendError as error:
            table.add_row(name, "no", "")
            reasons.append(f"{name}: {error}")
    show(table)
    for line in reasons + (_cuda_devices() if "cupy" in backends else []):
        typer.echo(line)


def ready(name: str, device: Any = None) -> Backend:
    """`find_backend`, for an installation that may be broken in any way.

    Raises
    ------
    BackendError
        Whatever the library did on its import.
    """
    try:
        return find_backend(name, device=device)
    except BackendError:
        raise
    except (Exception, SystemExit) as error:
        msg = f"the {name!r} backend is installed but broken ({_brief(error)}); install it again"
        raise BackendError(msg) from error


def _versions() -> Table:
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_row("xbp", xbp.__version__)
    table.add_row("python", platform.python_version())
    table.add_row("platform", platform.platform())
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
        return [f"cupy: the CUDA devices cannot be listed ({_brief(error)})"]
    return lines


def _brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
