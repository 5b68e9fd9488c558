"""Kernels compiled ahead: the list for a network, without a GPU; compilation in threads, on one."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerators.emulation import machine as emulation

from xbp import accelerators, models, nn, optim, primitives, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import launch
from xbp.accelerators.cuda.ahead import compile_ahead, programs


def step(batch: int = 8) -> None:
    """A training step of LeNet-5 by Adam."""
    model = models.LeNet5(rng=0)
    optimizer = optim.Adam(model.parameters())
    logits, backward = model.forward(np.ones((batch, 1, 28, 28), "f4"), training=True)
    labels = np.arange(batch, dtype=np.uint8) % 10
    nn.for_parameters(backward)(nn.CrossEntropyLoss()(logits, labels)[1])
    optimizer.step()


class Watched(emulation.Emulation):
    """The emulation, with a record of the sources of its programs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, set[str]] = {}

    def launch(
        self, kernel: tuple[str, str], macros: dict[str, Any], grid: Any, threads: int, task: Any
    ) -> None:
        self.seen.setdefault((kernel[0], tuple(macros.items())), set()).add(kernel[1])
        super().launch(kernel, macros, grid, threads, task)


@pytest.mark.skipif(emulation.compiler() is None, reason="it needs Linux and a C++ compiler")
def test_programs_are_those_that_a_step_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    found = programs(step)
    machine = Watched()
    monkeypatch.setitem(launch.machines, "numpy", machine)
    table = {function.__name__: function for function in cuda.implementations()}
    monkeypatch.setitem(registry._tables, np.ndarray, table)
    step()
    assert found == machine.seen
    assert {"convolution.cu", "product.cu", "cross_entropy.cu", "passes.cu"} == {
        f for f, _ in found
    }


def test_kernels_are_divided_as_for_the_device_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XBP_TUNED", raising=False)
    x, weight = np.ones((2048, 84), "f4"), np.ones((10, 84), "f4")

    def columns(**given: Any) -> list[int]:
        found = programs(lambda: primitives.affine(x, weight), **given)
        return [dict(macros)["TILE_COLUMNS"] for _, macros in found]

    measured = columns(architecture="90")
    assert measured != columns(architecture="")
    monkeypatch.setitem(launch.machines, "cupy", SimpleNamespace(architecture=lambda: "90"))
    assert columns() == measured
    monkeypatch.setitem(launch.machines, "cupy", SimpleNamespace())
    assert columns() == columns(architecture="")


@pytest.mark.parametrize("fails", [False, True])
def test_numpy_computes_afterwards_as_before(fails: bool) -> None:
    before = accelerators.find("convolve", np.ndarray), dict(launch.machines)

    def run() -> None:
        step()
        assert not fails

    if fails:
        with pytest.raises(AssertionError):
            programs(run)
    else:
        programs(run)
    assert (accelerators.find("convolve", np.ndarray), launch.machines) == before


class Device:
    """A stand-in for CuPy's device: the current one belongs to the thread, and is 0 at first."""

    current = threading.local()

    def __init__(self, index: int | None = None) -> None:
        self.id = getattr(Device.current, "id", 0) if index is None else index

    def __enter__(self) -> Device:
        self.before, Device.current.id = getattr(Device.current, "id", 0), self.id
        return self

    def __exit__(self, *_: object) -> None:
        Device.current.id = self.before


def test_all_are_compiled_by_threads_on_the_current_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[tuple[str, tuple[str, ...], int]] = []
    together = threading.Barrier(3, timeout=30)  # opens only for three threads at a time

    def module(*, code: str, options: tuple[str, ...]) -> Any:
        def compile_() -> None:
            together.wait()
            compiled.append((code, options, Device().id))

        return SimpleNamespace(compile=compile_)

    fake = SimpleNamespace(RawModule=module, cuda=SimpleNamespace(Device=Device))
    monkeypatch.setitem(__import__("sys").modules, "cupy", fake)
    monkeypatch.setattr(launch, "machines", {})
    wanted = list(programs(lambda: step(64)))
    wanted = wanted[: len(wanted) // 3 * 3]
    with Device(1):
        assert compile_ahead(wanted, threads=3) == len(wanted) >= 9
    expected = [(launch.source(file), launch.options(dict(m)), 1) for file, m in wanted]
    assert sorted(compiled) == sorted(expected)
