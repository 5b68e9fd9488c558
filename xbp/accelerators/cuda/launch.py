"""Compilation and launch of kernels, and their arguments.

A wrapper sees the device only through `Machine`, so that the same Python code and the same CUDA
source run on a GPU through CuPy and, in the tests, in an emulation on numpy arrays.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from xbp.accelerators.cuda import cublas, dependent
from xbp.accelerators.shared import Array, Shape
from xbp.backend.graphs import side_by_side
from xbp.errors import InputError

REALS = {"float32": "float", "float64": "double"}
"""The dtypes of the kernels, and their types in C."""
MOST_ENTRIES = 2**31 - 2**16
"""The limit of indices in an int, with room for threads beyond the last entry."""
MOST_ROWS = 2**16 - 1
"""The most blocks along the second axis of a grid."""
INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
PROCESSORS = 132
"""The multiprocessors of an H100 or H200.

A constant rather than a property of the device, so that rules split sums by shapes alone, with
equal results on every GPU; measured choices differ by GPU, and XBP_TUNED=0 leaves them out.
"""
FILL = 128 * PROCESSORS
"""Threads that keep a GPU busy."""
MOST_COUNTERS, COUNTER = 1024, 4
"""Counters of a stream, beyond which a launch gets none; and the bytes of one."""


class Machine(Protocol):
    """A device that runs kernels."""

    def empty(self, shape: Shape, dtype: Any) -> Array:
        """Memory for an array, in row-major order."""

    def address(self, array: Array) -> int:
        """The address of an array's first entry."""

    def architecture(self) -> str:
        """The device's compute capability, such as "90"; "" for what is no GPU."""

    def counters(self, count: int) -> int:
        """The address of `count` counters (int32) at 0, which the next launch leaves at 0.

        Launches that may run at the same time have different ones. 0 if there are none.
        """

    def launch(
        self,
        kernel: tuple[str, str],
        macros: dict[str, Any],
        grid: tuple[int, int],
        threads: int,
        task: ctypes.Structure,
    ) -> None:
        """Launch a kernel, (file, name), compiled with macros; `task` is its only argument."""

    def multiply(self, a: Array, b: Array, c: Array, rounded: str = "") -> bool:
        """c ← a b by cuBLAS, of matrices or of two stacks of them; see `cublas.Handle.multiply`.

        False without cuBLAS, or if it cannot read an operand.
        """

    def multiplies_short(self, name: str) -> bool:
        """Whether cuBLAS, on this device, multiplies numbers of a format of 16 bits."""

    def strided(self, array: Array, shape: Shape, strides: Shape) -> Array:
        """A view of an array's memory, whose rows may overlap."""

    def side_by_side(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """The results of two independent functions; see `xbp.backend.graphs.side_by_side`."""


class CuPy:
    """Cached kernels, compiled by NVRTC at first use; CuPy's memory pool and current stream."""

    def __init__(self) -> None:
        import cupy

        self.cupy: Any = cupy
        self.functions: dict[Any, Any] = {}
        self.handles, self.workspaces = cublas.Handles(), cublas.Workspaces(cublas.WORKSPACE)
        self.counted = cublas.Workspaces(COUNTER * MOST_COUNTERS)
        self.dependent = dependent.Launcher(cupy) if dependent.wanted() else None

    def empty(self, shape: Shape, dtype: Any) -> Array:
        return self.cupy.empty(shape, dtype)

    def address(self, array: Array) -> int:
        """The address, of an array on the current device.

        A kernel reads another device's memory only by peer access, which CuPy asks for in its own
        operations. Elsewhere it is an error that ends all work of the process on this device.
        """
        data, device = array.data, self.cupy.cuda.runtime.getDevice()
        if data.device_id != device:
            msg = (
                f"a kernel on CuPy's device {device} cannot use an array of device "
                f"{data.device_id}; call it within `with cupy.cuda.Device({data.device_id}):`"
            )
            raise InputError(msg)
        return int(data.ptr)

    def architecture(self) -> str:
        return str(self.cupy.cuda.Device().compute_capability)  # which CuPy remembers

    def counters(self, count: int) -> int:
        """The stream's own, as its launches run one after the other; see `cublas.Workspaces`.

        They are set to 0 once, which must not be recorded instead of done.
        """
        cuda = self.cupy.cuda
        stream = cuda.get_current_stream()

        def zeros(size: int) -> Any:
            if stream.is_capturing():
                return None
            memory = cuda.alloc(size)
            memory.memset_async(0, size, stream)
            return memory

        if count > MOST_COUNTERS:
            return 0
        return self.counted.get(cuda.runtime.getDevice(), stream, zeros)

    def launch(
        self,
        kernel: tuple[str, str],
        macros: dict[str, Any],
        grid: tuple[int, int],
        threads: int,
        task: ctypes.Structure,
    ) -> None:
        key = (*kernel, *macros.items())
        function = self.functions.get(key)
        if function is None:
            file, name = kernel
            function = self.functions[key] = self.module(file, macros).get_function(name)
        # CuPy passes a numpy array of one entry by value, for any dtype.
        import numpy as np

        argument = np.frombuffer(bytes(task), f"V{ctypes.sizeof(task)}")
        as_always = partial(function, grid, (threads,), (argument,))
        if self.dependent is None:
            as_always()
        else:
            self.dependent.launch(function, grid, threads, task, as_always)

    def side_by_side(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        return side_by_side(first, second)

    def module(self, file: str, macros: dict[str, Any]) -> Any:
        """A `cupy.RawModule`, which CuPy compiles at first use and caches on disk."""
        more = (dependent.OPTION,) if self.dependent else ()
        return self.cupy.RawModule(code=source(file), options=(*options(macros), *more))

    def multiply(self, a: Array, b: Array, c: Array, rounded: str = "") -> bool:
        blas, cuda = cublas.library(), self.cupy.cuda
        if blas is None:
            return False
        device = cuda.runtime.getDevice()
        stream = cuda.get_current_stream()
        workspace = self.workspaces.get(device, stream, cuda.alloc)
        handle, of = self.handles.get(device, blas), stream.ptr
        return handle.multiply(of, workspace, a, b, c, self.address, rounded=rounded)

    def multiplies_short(self, name: str) -> bool:
        if name not in cublas.SHORT or cublas.library() is None:
            return False
        return int(self.architecture()) >= cublas.LEAST_CAPABILITY[name]

    def strided(self, array: Array, shape: Shape, strides: Shape) -> Array:
        return self.cupy.lib.stride_tricks.as_strided(array, shape, strides)


def options(macros: dict[str, Any]) -> tuple[str, ...]:
    """NVRTC's options: macros, C++17, no relaxed arithmetic."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in macros.items()))


@cache
def source(file: str) -> str:
    """The text of a .cu file, and in it that of the files it includes."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return INCLUDE.sub(lambda line: source(line[1]), text)


machines: dict[str, Machine] = {}
"""Machines by the package of the arrays; CuPy's is made at its first use."""


def machine_of(array: Array) -> Machine:
    """The machine of an array."""
    return machine_for(type(array).__module__.partition(".")[0])


def machine_for(package: str) -> Machine:
    """The machine for arrays of a package."""
    if package not in machines:
        machines.setdefault(package, CuPy())  # another thread may be here, too
    return machines[package]


# --- arrays --------------------------------------------------------------------------------------


def fits(first: Array, *others: Array | None) -> bool:
    """Whether all arrays have one dtype with kernels, and sizes within the range of indices."""
    arrays = [array for array in (first, *others) if array is not None]
    return first.dtype.name in REALS and all(
        array.dtype == first.dtype and 0 < array.size < MOST_ENTRIES for array in arrays
    )


def dense(array: Array) -> Array:
    """`array`, or a copy, in row-major order."""
    return array if array.flags.c_contiguous else array.copy(order="C")


def batch_innermost(x: Array) -> Array:
    """Images (N, C, H, W) as a dense array (C, H, W, N); a view if stored in that order."""
    return dense(x.transpose(1, 2, 3, 0))


def as_nchw(memory: Array) -> Array:
    """(C, H, W, N) → (N, C, H, W), as a view."""
    return memory.transpose(3, 0, 1, 2)


def lanes(dtype: Any, size: int, *places: int | None) -> int:
    """The numbers of a load: 16 bytes, if rows of `size` numbers at these addresses allow it."""
    most: int = 16 // dtype.itemsize
    whole = size % most == 0 and all(not place or place % 16 == 0 for place in places)
    return most if whole else 1


def blocks(entries: int, threads: int) -> int:
    """The number of blocks with one thread for each entry."""
    return -(-entries // threads)


# --- arguments of kernels ------------------------------------------------------------------------


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """A struct of a .cu file, with its members in order."""
    return type(name, (ctypes.Structure,), {"_fields_": tuple(fields.items())})


pointer = ctypes.c_void_p
