"""Facts about this machine: versions, commit, processor, devices.

`xbp info`, certificates, records of runs and benchmarks all take them from here.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from xbp._version import __version__
from xbp.backend import brief, find_backend

ROOT = Path(__file__).parents[1]
"""The root of the checkout, if xbp runs from one."""

LIBRARIES = (
    *("numpy", "array-api-compat", "array-api-strict", "torch"),
    *("cupy-cuda12x", "cupy-cuda13x", "cupy"),
)
"""The distributions of array libraries."""


def surroundings() -> dict[str, str]:
    """All versions, the commit if xbp runs from a checkout, system and processor."""
    known = {"xbp": __version__, "commit": commit(), "python": platform.python_version()}
    known |= versions(LIBRARIES)
    known |= {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
    }
    return {name: value for name, value in known.items() if value}


# --- versions ------------------------------------------------------------------------------------


def version(distribution: str) -> str:
    """The version of a distribution; empty if it is not installed, or incompletely."""
    try:
        return str(metadata.version(distribution) or "")
    except Exception:  # broken metadata may raise anything
        return ""


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of the distributions that are installed."""
    found = {name: version(name) for name in distributions}
    return {name: number for name, number in found.items() if number}


def commit(digits: int = 40) -> str:
    """The commit of the checkout that xbp runs from, and whether files have changed since.

    Empty if xbp is installed, even if the installation lies within another repository.
    """
    if not (ROOT / ".git").exists():
        return ""
    found = output("git", "-C", str(ROOT), "rev-parse", "HEAD")[:digits]
    changed = found and output("git", "-C", str(ROOT), "status", "--porcelain", "--", "xbp")
    return f"{found}, with changes to xbp" if changed else found


# --- processor and devices -----------------------------------------------------------------------


def processor() -> str:
    """The model name of the processor."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def cpus() -> list[int]:
    """The processors that this process may use; empty if the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def load() -> float | None:
    """The load average of the last minute; None if the system does not tell."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


@dataclass(frozen=True)
class Device:
    """A CUDA device: its name, compute capability and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        major, minor = self.capability
        memory = f"{self.memory / 2**30:.0f} GiB"
        return f"{self.name}, compute capability {major}.{minor}, {memory}"


def cuda_version(number: int) -> str:
    """CUDA's version number in its usual form.

    >>> cuda_version(12080)
    '12.8'
    """
    return f"{number // 1000}.{number % 1000 // 10}"


def facts_of(name: str) -> dict[str, str]:
    """Facts about the default device of a backend: name, driver, runtime."""
    backend = find_backend(name)
    facts = {"device": str(getattr(backend.device, "_device", backend.device))}
    try:
        if name == "cupy":
            facts |= _cuda_facts(backend.device.id)
        elif name == "torch":
            facts |= _torch_facts(backend.device)
    except Exception as error:  # a certificate without these facts is better than none
        facts["more"] = f"cannot be told ({brief(error)})"
    return facts


def _cuda_facts(index: int) -> dict[str, str]:
    runtime = importlib.import_module("cupy").cuda.runtime
    found = runtime.getDeviceProperties(index)
    capability = found["major"], found["minor"]
    facts = {"device": str(Device(found["name"].decode(), capability, found["totalGlobalMem"]))}
    driver = _driver()
    if driver:
        facts["driver"] = driver
    facts["CUDA of the driver"] = cuda_version(runtime.driverGetVersion())
    facts["CUDA runtime"] = cuda_version(runtime.runtimeGetVersion())
    return facts


def _torch_facts(device: Any) -> dict[str, str]:
    torch = importlib.import_module("torch")
    if device.type != "cuda":
        return {"threads": str(torch.get_num_threads())}
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    facts = {"device": f"{name}, compute capability {major}.{minor}"}
    return facts | {"driver": _driver() or "unknown", "CUDA runtime": str(torch.version.cuda)}


def _driver() -> str:
    """The version of NVIDIA's driver; empty if unknown."""
    answer = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0].strip() if answer else ""


def output(*command: str) -> str:
    """The output of a program; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
