"""Programmatic dependent launch: kernels begin before those that they depend on have ended.

Usually a kernel begins when all work before it has ended and has been written to memory. A kernel
launched as here may begin when all blocks of the one before it have begun (those wait in turn), and
waits itself, before it reads or writes memory (``dependent.h``). So the time of a launch passes
while the kernel before computes. A kernel of CuPy or cuBLAS begins as always, after all others. A
CUDA graph that is recorded keeps it: its dependencies between two kernels become programmatic.

Off by default, as it was not yet run on a GPU: ``XBP_DEPENDENT_LAUNCH=1`` in the environment, when
CuPy's arrays are used for the first time, switches it on. Devices before compute capability 9.0,
and drivers before CUDA 12.3, which cannot record it, launch as always.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

LEAST_CAPABILITY, LEAST_DRIVER = 90, 12030
"""Ten times the compute capability with the instructions; the driver whose graphs have such edges
(cuGraphAddDependencies_v2)."""
OPTION = "-DDEPENDENT"
"""The option of NVRTC by which kernels wait themselves."""
PROGRAMMATIC_STREAM_SERIALIZATION = 6


class Attribute(ctypes.Structure):
    """CUlaunchAttribute of cuda.h; its value is a union of 64 bytes."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("unused", ctypes.c_char * 60),
    )


class Configuration(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


def wanted() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get("XBP_DEPENDENT_LAUNCH", "") == "1"


@cache
def library() -> ctypes.CDLL | None:
    """CUDA's driver, which has `cuLaunchKernelEx`; None if there is none."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if hasattr(driver, "cuLaunchKernelEx") else None


class Launcher:
    """Launches kernels that begin with ``await_earlier_kernels``, and no others.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.drivers: dict[int, ctypes.CDLL | None] = {}
        self.threads = threading.local()
        self.attribute = Attribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        threads: int,
        task: ctypes.Structure,
        as_always: Callable[[], None],
    ) -> None:
        """Launch a `cupy.RawKernel`, whose only argument is `task`, on CuPy's current stream.

        `as_always` launches the same without dependent launch.
        """
        cuda = self.cupy.cuda
        device = cuda.runtime.getDevice()
        driver = self.driver(device)
        if driver is None:
            as_always()
            return
        self.make_context_current(device)
        configuration = Configuration(
            (*grid, 1), (threads, 1, 1), 0, cuda.get_current_stream().ptr,
            ctypes.pointer(self.attribute), 1,
        )  # fmt: skip
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(task))
        function = ctypes.c_void_p(kernel.kernel.ptr)  # CuPy has one for each device
        status = driver.cuLaunchKernelEx(ctypes.byref(configuration), function, arguments, None)
        if status:
            as_always()  # it raises what an earlier kernel has done, which says nothing of this one
            self.drivers[device] = None
            msg = (
                f"the driver refuses dependent launches on device {device} (status {status}; see "
                "CUresult in CUDA's manual): kernels are launched as always; unset "
                "XBP_DEPENDENT_LAUNCH"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2)

    def driver(self, device: int) -> ctypes.CDLL | None:
        """The driver, if it can launch kernels so on a device."""
        if device not in self.drivers:
            cuda = self.cupy.cuda
            capable = int(cuda.Device(device).compute_capability) >= LEAST_CAPABILITY
            records = cuda.runtime.driverGetVersion() >= LEAST_DRIVER
            self.drivers[device] = library() if capable and records else None
        return self.drivers[device]

    def make_context_current(self, device: int) -> None:
        """Let CUDA's runtime make a new thread's context, which the driver does not, as CuPy does.

        Any call of the runtime would do that is allowed in a recording.
        """
        known: set[int] = self.threads.__dict__.setdefault("devices", set())
        if device not in known:
            self.cupy.cuda.runtime.memGetInfo()
            known.add(device)
