"""Programmatic dependent launch: what a stand-in for CUDA's driver is told, without a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerators import test_cuda_on_cupy as on_cupy
from accelerators.emulation import machine as emulation

from xbp.accelerators.cuda import dependent, launch, passes

STAND_IN = Path(__file__).parent / "cuda_driver.cpp"
TOOLKIT = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
FILES = sorted(path.name for path in Path(launch.__file__).parent.glob("*.cu"))
BEGINS = re.compile(
    r"__global__ void __launch_bounds__\([^)]*\) (\w+)\(const \w+ \w+\) \{[\s\\]*"
    r"await_earlier_kernels\(\);"
)


class CuPy(on_cupy.CuPy):
    """The stand-in for the module cupy, with handles of kernels: 1000, and the device's number."""

    def __init__(self) -> None:
        super().__init__()
        self.version, self.contexts = 12030, 0
        runtime: Any = self.cuda.runtime
        runtime.driverGetVersion = lambda: self.version
        runtime.memGetInfo = self.make_context
        self.cuda.Device = lambda number=0: SimpleNamespace(compute_capability=self.capability)
        self.fault: Exception | None = None

    def make_context(self) -> None:
        self.contexts += 1

    def get_function(self, name: str) -> Any:
        usual = super().get_function(name)
        outer = self

        class Kernel:
            @property
            def kernel(self) -> Any:
                return SimpleNamespace(ptr=1000 + outer.device)

            def __call__(self, *arguments: Any) -> None:
                if outer.fault:
                    raise outer.fault
                usual(*arguments)

        return Kernel()


class Driver:
    """The stand-in for libcuda, and what it has been told."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.cuLaunchKernelEx = library.cuLaunchKernelEx

    def of(self, name: str, kind: Any = ctypes.c_int) -> Any:
        return kind.in_dll(self.library, name)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if emulation.compiler() is None:
        pytest.skip("it needs Linux and a C++ compiler")
    target = tmp_path_factory.mktemp("driver") / "libcuda.so"
    options = [f"-DCUDA_HEADER={int((TOOLKIT / 'cuda.h').exists())}", f"-I{TOOLKIT}"]
    command = [str(emulation.compiler()), "-shared", "-fPIC", *options, str(STAND_IN)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def driver(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(library)
    for name in ("launches", "status", "allowed"):
        found.of(name).value = 0
    monkeypatch.setattr(dependent, "library", lambda: found)
    return found


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> CuPy:
    module = CuPy()
    monkeypatch.setitem(__import__("sys").modules, "cupy", module)
    monkeypatch.setattr(launch, "machines", {})
    monkeypatch.setenv("XBP_DEPENDENT_LAUNCH", "1")
    return module


def step(device: int = 0) -> tuple[Any, Any]:
    """An update of an array by one kernel."""
    p, g = (on_cupy.on(device, np.ones(300, "f4")) for _ in range(2))
    passes.add_scaled(p, 0.25, g)
    return p, g


def test_structs_are_those_of_cudas_header(library: ctypes.CDLL) -> None:
    whole, part = dependent.Configuration, dependent.Attribute
    names = ("grid", "block", "shared", "stream", "attributes", "count")
    found = [ctypes.sizeof(whole), *(getattr(whole, name).offset for name in names)]
    found += [ctypes.sizeof(part), part.id.offset, part.value.offset]  # type: ignore[attr-defined]
    assert found == [*(ctypes.c_size_t * 10).in_dll(library, "layout")]


def test_a_launch(driver: Driver, cupy: CuPy) -> None:
    size = ctypes.sizeof(passes.Pass)
    driver.of("size", ctypes.c_size_t).value = size
    p, g = step()
    ((code, options),) = cupy.compiled
    assert code == launch.source("passes.cu")
    assert options == ("-std=c++17", "-Dreal=float", dependent.OPTION)
    assert cupy.launched == [] and cupy.contexts == 1
    assert driver.of("launches").value == driver.of("allowed").value == 1
    assert [*driver.of("sizes", ctypes.c_uint * 7)] == [2, 1, 1, 256, 1, 1, 0]
    assert driver.of("function", ctypes.c_size_t).value == 1000
    assert driver.of("stream", ctypes.c_size_t).value == cupy.stream.ptr
    sent = passes.Pass.from_buffer_copy(bytes(driver.of("task", ctypes.c_char * size)))
    assert (sent.of[0].to, sent.of[0].a, sent.of[0].size) == (p.ctypes.data, g.ctypes.data, 300)
    assert (sent.s.at, sent.s.value) == (None, 0.25)
    cupy.device, cupy.stream = 1, on_cupy.Stream(88)
    step(1)
    assert driver.of("function", ctypes.c_size_t).value == 1001  # a kernel's handle is a device's
    assert driver.of("stream", ctypes.c_size_t).value == 88
    assert cupy.contexts == 2 and len(cupy.compiled) == 1


def test_it_is_off_by_default(driver: Driver, cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XBP_DEPENDENT_LAUNCH")
    step()
    assert cupy.compiled[0][1] == ("-std=c++17", "-Dreal=float")
    assert len(cupy.launched) == 1 and driver.of("launches").value == 0


@pytest.mark.parametrize("lacks", ["instructions", "graphs", "driver"])
def test_without_it_kernels_are_launched_as_always(
    lacks: str, driver: Driver, cupy: CuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks == "instructions":
        cupy.capability = "89"
    elif lacks == "graphs":
        cupy.version = 12020
    else:
        monkeypatch.setattr(dependent, "library", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
    assert len(cupy.launched) == 1 and driver.of("launches").value == 0


def test_a_refusal_is_one_warning_for_a_device(driver: Driver, cupy: CuPy) -> None:
    driver.of("status").value = 801
    with pytest.warns(RuntimeWarning, match=r"device 0 \(status 801"):
        step()
    driver.of("status").value = 0
    step()
    assert len(cupy.launched) == 2 and driver.of("launches").value == 0
    cupy.device = 1
    step(1)
    assert len(cupy.launched) == 2 and driver.of("launches").value == 1


def test_what_an_earlier_kernel_has_done_is_no_refusal(driver: Driver, cupy: CuPy) -> None:
    driver.of("status").value = 700
    cupy.fault = RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="ILLEGAL_ADDRESS"):
            step()
    driver.of("status").value, cupy.fault = 0, None
    step()
    assert driver.of("launches").value == 1


def test_the_driver_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole, old = SimpleNamespace(cuLaunchKernelEx=1), SimpleNamespace()

    def load(name: str, found: Any) -> Any:
        asked.append(name)
        if isinstance(found, Exception):
            raise found
        return found

    for found, expected in ((whole, whole), (old, None), (OSError("none"), None)):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, found=found: load(name, found))
        assert dependent.library.__wrapped__() is expected
    assert set(asked) <= {"libcuda.so.1", "nvcuda.dll"}


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_first_waits(file: str) -> None:
    """Before any access to memory: a kernel launched so may run while those before it do."""
    text = launch.source(file)
    assert text.count("__global__") == len(BEGINS.findall(text)) > 0
    assert set(BEGINS.findall(text)) - {"name"} <= set(emulation.kernels(text))
