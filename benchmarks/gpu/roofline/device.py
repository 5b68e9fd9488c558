"""What a device reaches at most, and what its kernels take of a multiprocessor."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from xbp.accelerators.cuda import launch
from xbp.accelerators.cuda.ahead import Program

EMPTY = 1.5e-6
"""Seconds of an empty kernel after another one in a graph: an estimate; `xbp bench launch` measures
it on a device."""
NVCC = "/usr/local/cuda/bin/nvcc"
USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers(.*?)$",
    re.DOTALL | re.MULTILINE,
)
SHARED = re.compile(r"(\d+) bytes smem")


class Device(NamedTuple):
    """Peaks of a device, and the limits of its multiprocessors.

    Attributes
    ----------
    name, architecture : str
    processors : int
    flop : float
        FLOP a second in float32, without tensor cores.
    bandwidth : float
        Bytes a second of its memory.
    most : dict of str to int
        See `arithmetic.occupancy`.
    """

    name: str
    architecture: str
    processors: int
    flop: float
    bandwidth: float
    most: dict[str, int]


HOPPER = {"threads": 2048, "registers": 65536, "shared": 228 << 10, "blocks": 32, "reserved": 1024}
H200 = Device("NVIDIA H200", "90", 132, 132 * 128 * 2 * 1.98e9, 4.8e12, HOPPER)
"""132 multiprocessors with 128 multiplications and additions a cycle of 1.98 GHz; 4.8 TB/s."""


def device_of(cupy: Any) -> Device:
    """The current device, by what the driver says of it."""
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    attributes = cupy.cuda.Device().attributes
    processors = found["multiProcessorCount"]
    lanes = 64 if (found["major"], found["minor"]) in ((7, 5), (8, 0)) else 128
    flop = processors * lanes * 2 * attributes["ClockRate"] * 1e3
    wires, clock = attributes["GlobalMemoryBusWidth"], attributes["MemoryClockRate"] * 1e3
    most = {
        "threads": found["maxThreadsPerMultiProcessor"],
        "registers": found["regsPerMultiprocessor"],
        "shared": found["sharedMemPerMultiprocessor"],
        "blocks": attributes.get("MaxBlocksPerMultiprocessor", 32),
        "reserved": 1024 if found["major"] >= 8 else 0,
    }
    name, architecture = found["name"].decode(), f"{found['major']}{found['minor']}"
    return Device(name, architecture, processors, flop, wires / 8 * 2 * clock, most)


class Usage(NamedTuple):
    """Of a kernel: registers of a thread, bytes of static shared memory, bytes spilled."""

    registers: int
    shared: int
    spilled: int


def usages(programs: Iterable[Program], architecture: str) -> dict[tuple[Program, str], Usage]:
    """The kernels of programs, by program and name; compiled by nvcc, or none without it."""
    nvcc = shutil.which("nvcc") or (NVCC if Path(NVCC).exists() else None)
    if nvcc is None:
        return {}
    found: dict[tuple[Program, str], Usage] = {}
    with tempfile.TemporaryDirectory(prefix="xbp.") as folder, ThreadPoolExecutor(2) as pool:

        def compile_one(numbered: tuple[int, Program]) -> tuple[Program, str]:
            number, program = numbered
            source = Path(folder) / f"{number}.cu"
            source.write_text(launch.source(program[0]), encoding="utf-8")
            command = [nvcc, "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
            command += [*launch.options(dict(program[1])), "-o", f"{source}.cubin", str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return program, done.stderr

        for program, said in pool.map(compile_one, enumerate(programs)):
            found |= {(program, name): usage for name, usage in usages_in(said).items()}
    return found


def usages_in(said: str) -> dict[str, Usage]:
    """What ptxas says of each kernel."""
    found = {}
    for name, spilled, registers, rest in USED.findall(said):
        shared = SHARED.search(rest)
        found[name] = Usage(int(registers), int(shared[1]) if shared else 0, int(spilled))
    return found
