"""cuBLAS by a handle of our own, whose calls can be captured into a CUDA graph.

CuPy's own handle has no workspace, so that cuBLAS might allocate one during a capture, which CuPy
therefore refuses. A handle with a workspace and a stream meets the conditions in CUDA's manual
(cuBLAS, section "CUDA Graphs Support"). Calls go by ctypes to the library that CuPy has loaded, to
ten functions whose signatures have not changed since CUDA 11. (nvmath-python's bindings of the
same calls are marked experimental, and would be a further dependency.)
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from xbp.accelerators.shared import Array, stored

Numbers: TypeAlias = "tuple[int, ...]"
WORKSPACE = 32 << 20
"""Bytes, cuBLAS's own default on a Hopper GPU, used by one product at a time."""
PER_THREAD = 2  # cudaStreamPerThread
ORDINARY, TF32 = 0, 3  # math modes, as in cublas_api.h, where 0 and 1 also say whether an
# operand is transposed
SUM_OF_FLOAT32, SUM_OF_TF32, DEFAULT = 68, 77, -1
"""CUBLAS_COMPUTE_32F and CUBLAS_COMPUTE_32F_FAST_TF32: how numbers are multiplied whose sums are
float32's; and CUBLAS_GEMM_DEFAULT, by which cuBLAS chooses the algorithm."""
FLOAT32 = 0
SHORT = {"float16": 2, "bfloat16": 14}
"""Formats of 16 bits, and their cudaDataType, as in library_types.h: CUDA_R_16F, CUDA_R_16BF."""
LEAST_CAPABILITY = {"float16": 70, "bfloat16": 80}
"""Ten times the compute capability from which tensor cores multiply numbers of a format."""


@cache
def library() -> ctypes.CDLL | None:
    """The library that CuPy uses, found as CuPy finds it; None if there is none."""
    try:
        pathfinder: Any = importlib.import_module("cuda.pathfinder")
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError):
        return None


class Handle:
    """A cuBLAS handle on the current device, for the thread that makes it.

    It multiplies float32 in TF32, on tensor cores, where the factors have been rounded to a format
    of no more digits (`xbp.primitives.precision`), so that they are not rounded again; or always,
    with CUPY_TF32=1 in the environment, as CuPy does. Factors stored in 16 bits are multiplied as
    such. Neither has been run on a GPU yet.

    Parameters
    ----------
    blas : ctypes.CDLL
    """

    def __init__(self, blas: ctypes.CDLL) -> None:
        self.blas, self.handle = blas, ctypes.c_void_p()
        self.call("cublasCreate_v2", ctypes.byref(self.handle))
        usual = TF32 if os.environ.get("CUPY_TF32") == "1" else ORDINARY  # as in CuPy
        self.call("cublasSetMathMode", self.handle, usual)

    def multiply(
        self,
        stream: int,
        workspace: int,
        a: Array,
        b: Array,
        c: Array,
        address: Any,
        *,
        rounded: str = "",
    ) -> bool:
        """c ← a b, for a dense `c`; False for operands that BLAS cannot read.

        Of arrays with three axes, for each entry of the first.

        `workspace` is the address of `WORKSPACE` bytes that no other stream uses. `rounded` names
        the format to which the numbers of a and b have been rounded, if any; these are float32, or
        16 bits in arrays of uint16, and then c is float32.

        As BLAS is column-major, the call computes cᵀ = bᵀ aᵀ.
        """
        left, right, size = stored(a), stored(b), a.itemsize
        if left is None or right is None or any(step % size for step in a.strides + b.strides):
            return False
        (m, k), n = a.shape[-2:], b.shape[-1]
        kind, number = {4: ("S", ctypes.c_float), 8: ("D", ctypes.c_double)}[c.itemsize]
        one, zero = number(1), number(0)
        self.call("cublasSetStream_v2", self.handle, ctypes.c_void_p(stream))
        # cublasSetStream resets the workspace.
        where = ctypes.c_void_p(workspace)
        self.call("cublasSetWorkspace_v2", self.handle, where, ctypes.c_size_t(WORKSPACE))
        name, count = ("gemm_v2", ()) if c.ndim == 2 else ("gemmStridedBatched", c.shape[:1])
        of_factor, of_result, how = types_of(a, c, rounded)
        if how:
            kind, name = "", "GemmEx" if c.ndim == 2 else "GemmStridedBatchedEx"

        def operand(array: Array, of: Numbers, row: int) -> tuple[Any, ...]:
            pointer, itemsize = ctypes.c_void_p(address(array)), array.itemsize
            steps = [ctypes.c_longlong(step // itemsize) for step in array.strides[:-2]]
            return pointer, *of, row, *steps

        self.call(
            f"cublas{kind}{name}", self.handle, int(right[0]), int(left[0]), n, m, k,
            ctypes.byref(one), *operand(b, of_factor, right[1]), *operand(a, of_factor, left[1]),
            ctypes.byref(zero), *operand(c, of_result, n), *count, *how,
        )  # fmt: skip
        return True

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.blas, name)(*arguments)
        if status:
            msg = f"{name} failed with status {status} of cuBLAS; see cublasStatus_t in its manual"
            raise RuntimeError(msg)


def types_of(factor: Array, result: Array, rounded: str) -> tuple[Numbers, Numbers, Numbers]:
    """What ``cublasGemmEx`` is told beside the arguments of a plain product, which is told nothing.

    These are the types of factors and of the result, and how to compute.
    """
    if not rounded or result.itemsize == 8:
        return (), (), ()
    if factor.itemsize == 2:
        return (SHORT[rounded],), (FLOAT32,), (SUM_OF_FLOAT32, DEFAULT)
    return (FLOAT32,), (FLOAT32,), (SUM_OF_TF32, DEFAULT)


class Handles:
    """A handle for each device of the calling thread, as threads must not share one.

    A thread that ends leaves its handles to later threads. cuBLAS waits for the device to destroy
    one, which a recording forbids, and a handle keeps memory of the device.
    """

    def __init__(self) -> None:
        self.threads = threading.local()
        self.free: dict[int, list[Handle]] = {}

    def get(self, device: int, blas: ctypes.CDLL) -> Handle:
        """The calling thread's handle for the current device."""
        held: Held | None = self.threads.__dict__.get("held")
        if held is None:
            held = self.threads.held = Held(self.free)
        if device not in held.of:
            try:
                held.of[device] = self.free[device].pop()
            except (KeyError, IndexError):
                held.of[device] = Handle(blas)
        return held.of[device]


class Held:
    """The handles of a thread, by device."""

    def __init__(self, free: dict[int, list[Handle]]) -> None:
        self.of: dict[int, Handle] = {}
        self.free = free

    def __del__(self) -> None:
        for device, handle in self.of.items():
            self.free.setdefault(device, []).append(handle)


class Workspaces:
    """A workspace of `size` bytes for each stream, since concurrent launches must not share one.

    Those of one stream run in order, from any thread, and share its workspace. The workspace
    lives as long as the stream. A graph must own the stream of its recorded launches.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.of: dict[tuple[int, ...], Any] = {}

    def get(self, device: int, stream: Any, allocate: Callable[[int], Any]) -> int:
        """The address of the workspace for a stream of CuPy's on the current device.

        0 if there is none yet, and `allocate` returns None.
        """
        key: tuple[int, ...] = (device, stream.ptr)
        if stream.ptr == PER_THREAD:  # one handle value for a stream of each thread
            key = (*key, threading.get_ident())
        memory = self.of.get(key)
        if memory is None:
            made = allocate(self.size)
            if made is None:
                return 0
            memory = self.of.setdefault(key, made)
            weakref.finalize(stream, self.of.pop, key, None)
        return int(memory.ptr)
