"""The CUDA kernels on numpy arrays: their source, compiled by a C++ compiler.

`Emulation` is a `Machine` (see `xbp.accelerators.cuda.launch`), and stricter than a GPU:

- the memory that it allocates, and that `guarded` copies to, is filled with nan and lies between
  guards of nan, which must be unchanged after each launch;
- threads and blocks run in a chosen order;
- an index beyond the end of an array in shared memory or registers ends the process, and nightly
  also a load or store of several numbers at an address that is no multiple of their size;
- so does reading beyond the end of other memory, if the machine is `fenced`.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from nightly import NIGHTLY
from numpy.typing import NDArray

from xbp.accelerators.cuda import cublas, launch
from xbp.accelerators.shared import stored

HEADER = Path(__file__).parent / "emulation.h"
CHECKED = "bounds,alignment" if NIGHTLY else "bounds"  # a sixth more time to compile
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", f"-fsanitize={CHECKED}"),
    *("-fsanitize-undefined-trap-on-error", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", "-Wno-sign-compare", "-Wno-unused-function", "-Wno-vla"),
)
KERNEL = re.compile(r'extern "C" __global__ void \w+\([\w, ]*\) (\w+)\(const (\w+) \w+\)')
PASS = re.compile(r"^PASS\((\w+),", re.MULTILINE)
FIXED = (
    *("real", "LABEL", "TILE_M", "TILE_N", "SUMS_M", "SUMS_N", "VECTOR"),
    *("TILE_ROWS", "TILE_COLUMNS", "TALL", "WIDE", "DEPTH", "THREADS", "WIDTH"),
    *("MASKED", "FIRST", "SECOND", "ACTIVATION", "FORMAT"),
    *("CELL", "HIDDEN", "SAMPLES", "PARTS", "HELD"),
    *("IMAGES", "VECTORS", "WANTS_DX", "SHARED"),
)
"""Macros that must be constants; all others are variables here, so that one library serves all
shapes. `Emulation(fixed=True)` makes constants of them, as NVRTC sees it."""
GUARD = 64
"""Bytes on each side of an array."""
USER = os.getuid() if hasattr(os, "getuid") else 0
MEMORY = Path(tempfile.gettempdir()) / f"xbp-emulation-{USER}"


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of the usual names on the path; only on Linux."""
    if sys.platform != "linux":
        return None
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def kernels(text: str) -> dict[str, str]:
    """The names of the kernels of a .cu file, and of their argument structs."""
    found = {name: task for name, task in KERNEL.findall(text) if name != "name"}
    return found | dict.fromkeys(PASS.findall(text), "pass")


def program(text: str, macros: dict[str, Any], fixed: bool) -> str:
    """A .cu file as C++."""
    lines = ['#include "emulation.h"']
    for name, value in macros.items():
        if fixed or name in FIXED:
            lines.append(f"#define {name} {value}")
        else:
            lines.append(f'extern "C" {{ int size_{name}; }}\n#define {name} size_{name}')
    entries = [f"EMULATED({name}, {task})" for name, task in kernels(text).items()]
    return "\n".join([*lines, text, *entries, ""])


@cache
def library(text: str) -> ctypes.CDLL:
    """A compiled and loaded program; a cache on disk, by its digest, serves other processes."""
    what = "\n".join([text, HEADER.read_text(encoding="utf-8"), *FLAGS, str(compiler())])
    target = MEMORY / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.so"
    if not target.exists():
        MEMORY.mkdir(mode=0o700, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        command = [str(compiler()), *FLAGS, f"-I{header()}", "-x", "c++", "-", "-o", str(part)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"the emulation does not compile: {done.stderr}"
            raise RuntimeError(msg)
        part.replace(target)
    return ctypes.CDLL(str(target))


@cache
def header() -> Path:
    """The folder of the header, compiled ahead: two thirds of the work for a small program.

    GCC takes it from there if it was compiled with equal options; other compilers read the text.
    """
    text = HEADER.read_text(encoding="utf-8")
    what = "\n".join([text, *FLAGS, str(compiler())])
    folder = MEMORY / hashlib.sha256(what.encode()).hexdigest()[:32]
    if not folder.exists():
        part = Path(tempfile.mkdtemp(dir=MEMORY))
        (part / HEADER.name).write_text(text, encoding="utf-8")
        compiled = f"{part / HEADER.name}.gch"
        options = [flag for flag in FLAGS if flag != "-shared"]
        command = [str(compiler()), *options, "-x", "c++-header", HEADER.name, "-o", compiled]
        subprocess.run(command, cwd=part, capture_output=True, check=False)
        with suppress(OSError):  # where another process was faster
            part.replace(folder)
        shutil.rmtree(part, ignore_errors=True)
    return folder


def fenced(size: int) -> NDArray[np.uint8]:
    """Memory filled with nan, followed by a page without access."""
    page = mmap.PAGESIZE
    end = -(-size // page) * page
    memory = np.frombuffer(mmap.mmap(-1, end + page), np.uint8)
    memory[:end] = 0xFF
    place = ctypes.c_void_p(memory.ctypes.data + end)
    assert not ctypes.CDLL(None).mprotect(place, ctypes.c_size_t(page), 0)
    return memory[end - size : end]


def numbers(bits: Any, name: str) -> Any:
    """The numbers of a format of 16 bits, as float32."""
    if name == "float16":
        return bits.view("f2").astype("f4")
    return (bits.astype("u4") << 16).view("f4")


class Emulation:
    """Runs kernels on numpy arrays.

    Parameters
    ----------
    order : int
        The order of threads and blocks: 0 as numbered, 1 in reverse, else the seed of a shuffle.
    fixed : bool
        Whether all sizes are constants of the program.
    fenced : bool
        Whether each array ends where the process may not read on. What a kernel is given, and does
        not write to, is copied there.

    Attributes
    ----------
    launches : list of str
        The names of the kernels that ran.
    grids : list of (int, int)
        The numbers of their blocks.
    products : list of (shape, shape)
        The factors of 16 bits that were multiplied.
    device : str
        The compute capability, for tables of measured choices; "" leaves all choices to rules.
    aside : int
        The number of launches that are not on the longest path of a graph.
    """

    device = ""

    def __init__(self, order: int = 0, *, fixed: bool = False, fenced: bool = False) -> None:
        self.order, self.fixed, self.fenced = order, fixed, fenced
        self.launches: list[str] = []
        self.grids: list[tuple[int, int]] = []
        self.products: list[tuple[Any, Any]] = []
        self.given: list[NDArray[np.uint8]] = []
        self.counted = np.zeros(launch.MOST_COUNTERS, np.uint32)
        self.aside = 0

    # --- what a machine does ---

    def empty(self, shape: Any, dtype: Any) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.fenced:
            self.given.append(fenced(size))
            return self.given[-1].view(dtype).reshape(shape)
        memory = np.full(size + 2 * GUARD, 0xFF, np.uint8)  # nan, for every dtype that has one
        self.given.append(memory)
        return memory[GUARD : GUARD + size].view(dtype).reshape(shape)

    def address(self, array: Any) -> int:
        place = int(array.ctypes.data)
        if self.fenced and not any(0 <= place - it.ctypes.data < it.size for it in self.given):
            place = int(self.guarded(array).ctypes.data)
        return place

    def architecture(self) -> str:
        return self.device

    def counters(self, count: int) -> int:
        return int(self.counted.ctypes.data) if count <= self.counted.size else 0

    def launch(
        self, kernel: tuple[str, str], macros: dict[str, Any], grid: Any, threads: int, task: Any
    ) -> None:
        file, name = kernel
        text = launch.source(file)
        loaded = library(program(text, macros, self.fixed))
        for macro, value in macros.items():
            if not self.fixed and macro not in FIXED:
                ctypes.c_int.in_dll(loaded, f"size_{macro}").value = value
        assert all(size >= 1 for size in grid), (kernel, grid)
        failed = getattr(loaded, f"emulated_{name}")(ctypes.byref(task), *grid, threads, self.order)
        assert not failed, f"{name}: threads wait at different barriers"
        self.launches.append(name)
        self.grids.append(grid)
        assert not self.counted.any(), f"{name} leaves counters that are not 0"
        if self.fenced:
            return
        for memory in self.given:
            assert (memory[:GUARD] == 0xFF).all() and (memory[-GUARD:] == 0xFF).all(), (
                f"{name} writes beyond the end of an array of {memory.size - 2 * GUARD} bytes"
            )
        self.given = self.given[-64:]

    def multiply(self, a: Any, b: Any, c: Any, rounded: str = "") -> bool:
        """Of factors of 16 bits alone, as if cuBLAS knew nothing else."""
        if a.dtype != "uint16" or stored(a) is None or stored(b) is None:
            return False
        assert c.dtype == "float32" and c.flags.c_contiguous and b.dtype == a.dtype
        np.matmul(numbers(a, rounded), numbers(b, rounded), out=c)
        self.products.append((a.shape, b.shape))
        return True

    def multiplies_short(self, name: str) -> bool:
        return name in cublas.SHORT

    def strided(self, array: Any, shape: Any, strides: Any) -> Any:
        found = np.lib.stride_tricks.as_strided(array, shape, strides)
        assert np.lib.array_utils.byte_bounds(found)[1] <= np.lib.array_utils.byte_bounds(array)[1]
        return found

    def side_by_side(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """In this order, or in the other one: what they compute must not depend on it."""
        before = len(self.launches)
        one = first() if self.order % 2 == 0 else second()
        between = len(self.launches)
        other = second() if self.order % 2 == 0 else first()
        self.aside += min(between - before, len(self.launches) - between)
        return (one, other) if self.order % 2 == 0 else (other, one)

    # --- for tests ---

    def guarded(self, array: Any) -> Any:
        """A copy with the memory order of `array`, between guards."""
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        copy = self.empty([array.shape[axis] for axis in order], array.dtype)
        copy[...] = array.transpose(order)
        return copy.transpose(sorted(range(array.ndim), key=order.__getitem__))
