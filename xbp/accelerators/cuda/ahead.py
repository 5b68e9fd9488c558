"""Kernels compiled before they are needed, by several threads.

A network's kernels and their macros depend on shapes alone. A dry run on numpy arrays, by a
`Machine` that computes nothing, therefore lists them without a GPU. NVRTC compiles without holding
Python's lock, and CuPy caches results on disk (``~/.cupy/kernel_cache``, or ``CUPY_CACHE_DIR``) by
source, macros, architecture and version, for later processes.

The gain by threads depends on NVRTC, which may compile one program at a time: on two busy cores,
NVRTC 13.5 compiled the 18 programs of the benchmarks no sooner with four threads than with one, in
a third of a second of processor time each. Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from xbp import registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import cublas, launch
from xbp.accelerators.shared import Array, Shape

Program: TypeAlias = "tuple[str, tuple[tuple[str, Any], ...]]"
"""A file and its macros: what NVRTC compiles at once."""


class Recorder:
    """A `launch.Machine` that computes nothing and records the programs to compile.

    Parameters
    ----------
    device : str
        The compute capability for which kernels are divided.

    Attributes
    ----------
    seen : dict
        The names of the launched kernels of each `Program`.
    """

    def __init__(self, device: str = "") -> None:
        self.device, self.seen = device, dict[Program, set[str]]()

    def architecture(self) -> str:
        return self.device

    def empty(self, shape: Shape, dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def address(self, array: Array) -> int:
        return 0

    def counters(self, count: int) -> int:
        return int(count <= launch.MOST_COUNTERS)

    def launch(
        self,
        kernel: tuple[str, str],
        macros: dict[str, Any],
        grid: tuple[int, int],
        threads: int,
        task: ctypes.Structure,
    ) -> None:
        file, name = kernel
        self.seen.setdefault((file, tuple(macros.items())), set()).add(name)

    def multiply(self, a: Array, b: Array, c: Array, rounded: str = "") -> bool:
        return bool(a.itemsize == 2)  # else no cuBLAS, so that a kernel multiplies

    def multiplies_short(self, name: str) -> bool:
        return name in cublas.SHORT

    def strided(self, array: Array, shape: Shape, strides: Shape) -> Array:
        return np.lib.stride_tricks.as_strided(array, shape, strides)

    def side_by_side(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        return first(), second()


def programs(run: Callable[[], object], architecture: str | None = None) -> dict[Program, set[str]]:
    """The programs that CuPy would compile in `run`, a function of numpy arrays, by first use.

    Meanwhile results on numpy arrays are meaningless in all threads; use it at the start of a
    process.

    Parameters
    ----------
    run : callable
    architecture : str, optional
        The compute capability, such as "90", for which kernels are divided; by default that of
        CuPy's current device, and without one what rules choose.

    Examples
    --------
    >>> from xbp import nn
    >>> layer, x = nn.ReLU(), np.ones((2, 3), "float32")
    >>> for (file, macros), kernels in programs(lambda: layer.forward(x)[1](x)).items():
    ...     print(file, dict(macros)["ACTIVATION"], sorted(kernels))
    activations.cu rectify ['activate', 'activate_to_input']
    """
    recorder = Recorder(here() if architecture is None else architecture)
    with computed_by(recorder):
        run()
    return recorder.seen


@contextmanager
def computed_by(
    machine: launch.Machine, functions: Iterable[Callable[..., Any]] | None = None
) -> Iterator[None]:
    """Within the block, in all threads, a machine computes primitives of numpy arrays.

    Parameters
    ----------
    machine : launch.Machine
    functions : iterable of callable, optional
        The accelerators; by default all.
    """
    tables: tuple[dict[Any, Any], ...] = (registry._tables, launch.machines)
    before = [dict(table) for table in tables]
    registry.register(np.ndarray, cuda.implementations() if functions is None else functions)
    launch.machines["numpy"] = machine
    try:
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


def here() -> str:
    """The compute capability of CuPy's current device; "" without CuPy or a device."""
    try:
        return launch.machine_for("cupy").architecture()
    except Exception:  # no CuPy, or one of its own errors, which cannot be named without it
        return ""


def compile_ahead(wanted: Iterable[Program], threads: int | None = None) -> int:
    """Compile programs for CuPy's current device, and load them; returns their number.

    Parameters
    ----------
    wanted : iterable of (file, macros)
        As from `programs`.
    threads : int, optional
        The most at a time; by default the number of cores.
    """
    import cupy

    device, machine = cupy.cuda.Device(), launch.machine_for("cupy")
    assert isinstance(machine, launch.CuPy)

    def compile_one(program: Program) -> None:
        file, macros = program
        with device:  # the current device is thread-local
            machine.module(file, dict(macros)).compile()

    with ThreadPoolExecutor(threads or os.cpu_count()) as executor:
        return len(list(executor.map(compile_one, wanted)))
