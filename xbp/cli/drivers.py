"""Reasons why a GPU cannot be used: drivers, wheels and CUDA's libraries.

`look` collects facts about this machine, the driver's by ctypes, so that it works even if CuPy
cannot be imported; `diagnose` explains them. Not yet run with a GPU: the driver's answers follow
its documentation.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path
from typing import Any

from xbp.machine import Device, cuda_version, versions

OLDEST_CUPY = 14
OLDEST_DRIVER = {12: "525", 13: "580"}
"""The oldest drivers for each major version of CUDA on Linux, from NVIDIA's tables."""

WHEELS = (
    *("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"),
    *("cupy-rocm-5-0", "cupy-rocm-7-0", "cupy-rocm-7-1"),
)
NEEDED = ("cudart", "nvrtc", "cublas")
"""The CUDA libraries that training uses."""

# Results of cuInit: cuda.h, enum cudaError_enum.
NO_DEVICE, NOT_READY, MISMATCH = 100, 802, 803


@dataclass(frozen=True)
class Driver:
    """Facts from NVIDIA's driver.

    Attributes
    ----------
    cuda : int
        The newest CUDA version that it supports, such as 12080 for 12.8.
    error : int
        The result of its initialization; 0 means success.
    error_name : str
    devices : tuple of Device
        The devices that this process may use.
    """

    cuda: int
    error: int = 0
    error_name: str = ""
    devices: tuple[Device, ...] = ()

    @property
    def major(self) -> int:
        return self.cuda // 1000

    @property
    def version(self) -> str:
        return cuda_version(self.cuda)


@dataclass(frozen=True)
class Facts:
    """Facts for `diagnose`.

    Attributes
    ----------
    driver : Driver or None
        None if there is none.
    hardware : bool
        Whether an NVIDIA GPU is visible without a driver; False if unknown.
    wheels : dict
        Installed distributions of CuPy, and their versions.
    visible : str or None
        CUDA_VISIBLE_DEVICES.
    missing : tuple of str
        The CUDA libraries that CuPy needs and does not find.
    torch : str or None
        The CUDA version that PyTorch was built for; empty if for CPUs only, None if not installed.
    """

    driver: Driver | None = None
    hardware: bool = False
    wheels: dict[str, str] = field(default_factory=dict)
    visible: str | None = None
    missing: tuple[str, ...] = ()
    torch: str | None = None


# --- judging -------------------------------------------------------------------------------------


def diagnose(facts: Facts) -> list[str]:
    """A sentence with advice for each problem; none if no GPU is expected.

    >>> diagnose(Facts())
    []
    """
    return [*_of_wheels(facts), *_of_driver(facts), *_of_libraries(facts)]


def _of_wheels(facts: Facts) -> Iterator[str]:
    wheels, driver = facts.wheels, facts.driver
    if len(wheels) > 1:
        yield (
            f"{_listed(list(wheels))} are installed at once, and each has overwritten files of the "
            f"other: pip uninstall -y {' '.join(wheels)}, then {_install(driver)}"
        )
        return
    for name, version in wheels.items():
        if "rocm" in name:
            yield (
                f"{name} is for AMD's GPUs, and xbp knows CUDA alone: pip uninstall -y {name}, "
                f"then {_install(driver)}"
            )
        elif _major(version) < OLDEST_CUPY:
            yield (
                f"{name} {version} is too old, xbp needs CuPy {OLDEST_CUPY} or later: "
                f"pip uninstall -y {name}, then {_install(driver)}"
            )


def _of_driver(facts: Facts) -> Iterator[str]:
    driver, wheel = facts.driver, _cuda_of_wheel(facts)
    if driver is None:
        if facts.hardware:
            yield (
                "there is an NVIDIA GPU but no driver for it: install NVIDIA's driver, or start "
                "the container with the GPU (docker run --gpus all)"
            )
        elif facts.wheels:
            yield (
                "CuPy is installed, but there is neither an NVIDIA driver nor a GPU to be seen: "
                "without them it is of no use, and does no harm"
            )
        return
    if wheel and driver.major < wheel:
        smaller = f", or {_install(driver)} in its place" if driver.major in OLDEST_DRIVER else ""
        yield (
            f"the driver knows CUDA {driver.version} at most, and cupy-cuda{wheel}x needs "
            f"{wheel}.0: update the driver to {OLDEST_DRIVER[wheel]} or later{smaller}"
        )
    if driver.error == NO_DEVICE or not (driver.error or driver.devices):
        if facts.visible is not None:
            yield (
                f"CUDA_VISIBLE_DEVICES is {facts.visible!r}, which hides every GPU: unset it, or "
                "set it to 0"
            )
        else:
            yield (
                "there is an NVIDIA driver but no GPU for it: see whether nvidia-smi lists one, "
                "and whether the container got it (docker run --gpus all)"
            )
    elif driver.error:
        todo = {
            NOT_READY: "a machine with NVSwitch needs nvidia-fabricmanager of the same version",
            MISMATCH: "its library and its kernel module differ, restart after an update; a "
            "container must not bring a library of its own",
        }.get(driver.error, "see what nvidia-smi says; restart after an update of the driver")
        yield f"the NVIDIA driver does not start ({driver.error_name or driver.error}): {todo}"
    for index, device in enumerate(driver.devices):
        if wheel and wheel >= 13 and device.capability < (7, 5):
            capability = ".".join(map(str, device.capability))
            yield (
                f"CUDA 13 no longer runs on cuda:{index} ({device.name}, compute capability "
                f"{capability}): pip uninstall -y cupy-cuda13x, then {_pip(12)}"
            )


def _of_libraries(facts: Facts) -> Iterator[str]:
    driver = facts.driver
    if driver is None or not driver.devices:
        return
    if not facts.wheels:
        yield f"there is a GPU, and no CuPy to use it with: {_install(driver)}"
    elif facts.missing:
        name, version = next(iter(facts.wheels.items()))
        yield (
            f"CuPy does not find {_listed(list(facts.missing))} of CUDA: "
            f"pip install '{name}[ctk]=={version}', which brings them, or set CUDA_PATH"
        )
    if facts.torch == "":
        yield (
            "PyTorch was built without CUDA, so it computes on the CPU next to a GPU: to compare "
            "the two there, install it as pytorch.org says for CUDA"
        )


def _install(driver: Driver | None) -> str:
    """The command that installs CuPy for a driver; for all versions if there is no driver."""
    known = [cuda for cuda in OLDEST_DRIVER if driver and cuda <= driver.major]
    return _pip(known[-1]) if known else f"{_pip(13)} (cupy-cuda12x for CUDA 12)"


def _pip(cuda: int) -> str:
    return f"pip install 'cupy-cuda{cuda}x[ctk]>={OLDEST_CUPY}'"


def _cuda_of_wheel(facts: Facts) -> int | None:
    """The major version of CUDA that the only wheel is built for."""
    if len(facts.wheels) != 1:
        return None
    match = re.fullmatch(r"cupy-cuda(\d\d)x", next(iter(facts.wheels)))
    return int(match[1]) if match and int(match[1]) in OLDEST_DRIVER else None


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


def _listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# --- looking -------------------------------------------------------------------------------------


def look() -> Facts:
    """The facts of this machine; whatever cannot be determined counts as absent."""
    driver, wheels = ask_driver(), versions(WHEELS)
    return Facts(
        driver=driver,
        hardware=_hardware(),
        wheels=wheels,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        missing=_missing() if driver and driver.devices and wheels else (),
        torch=_cuda_of_torch(),
    )


def ask_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver | None:
    """The driver's answers, through its C interface; None if it cannot be loaded."""
    try:
        cuda = load("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = _int_from(cuda.cuDriverGetVersion)
        error = cuda.cuInit(0)
    except (OSError, AttributeError):
        return None
    if error:
        name = ctypes.c_char_p()
        with suppress(AttributeError):
            cuda.cuGetErrorName(error, ctypes.byref(name))
        return Driver(version, error, (name.value or b"").decode())
    count = _int_from(cuda.cuDeviceGetCount)
    return Driver(version, devices=tuple(_device(cuda, index) for index in range(count)))


def _device(cuda: Any, index: int) -> Device:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    major, minor = (  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        _int_from(cuda.cuDeviceGetAttribute, attribute, handle) for attribute in (75, 76)
    )
    return Device(name.value.decode(errors="replace"), (major, minor), memory.value)


def _int_from(function: Any, *arguments: Any) -> int:
    """The int that a C function stores through its first argument."""
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value


def _hardware(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the PCI bus has a display or 3D controller by NVIDIA; known on Linux only."""
    for device in root.glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def _missing() -> tuple[str, ...]:
    """The missing libraries, searched like in CuPy 14, by NVIDIA's own package."""
    try:
        load = import_module("cuda.pathfinder").load_nvidia_dynamic_lib
    except ImportError:
        return ()  # an older CuPy, with its own search
    missing = []
    for name in NEEDED:
        try:
            load(name)
        except Exception:  # missing, or cannot be loaded
            missing.append(name)
    return tuple(missing)


def _cuda_of_torch() -> str | None:
    """The CUDA version in PyTorch's version file, as the import would take seconds."""
    try:
        spec = util.find_spec("torch")
        if spec is None or not spec.origin:
            return None
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, ImportError, ValueError):
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]?([\d.]*)", text, re.MULTILINE)
    return match[1] if match else None
