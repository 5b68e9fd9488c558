"""The emulated kernels and their references: a machine, memory orders, tolerances, convolutions."""

from __future__ import annotations

import faulthandler
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerators.emulation import machine as emulation
from accelerators.emulation.machine import Emulation
from blocks import convolution_block
from layouts import Real, contiguous, mirrored, rows_first

from xbp import registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import convolution, launch, tuned
from xbp.accelerators.cuda.attention_plan import Tile

needs_a_compiler = pytest.mark.skipif(
    emulation.compiler() is None, reason="the emulation needs Linux and a C++ compiler"
)


SMALL_TILE = Tile(16, 16, 2, 2, 16)
"""Of all attention by blocks, so that it is two programs to compile."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    here = Emulation(order=2)
    monkeypatch.setitem(launch.machines, "numpy", here)
    return here


@pytest.fixture
def tuned_by(
    machine: Emulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], None]]:
    """Kernels are divided by choices, as if they had been measured."""

    def use(choices: Any) -> None:
        told = {"format": 1, "architecture": "90", "measured": "nowhere", "choices": choices}
        path = tmp_path / "table.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        monkeypatch.setenv("XBP_TUNED", str(path))
        machine.device = "90"
        tuned.forget()

    yield use
    tuned.forget()


@pytest.fixture
def _in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated kernels stand in for the primitives on numpy arrays."""
    table = {function.__name__: function for function in cuda.implementations()}
    monkeypatch.setitem(registry._tables, np.ndarray, table)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch_innermost(x: Real) -> Real:
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)


LAYOUTS = {f.__name__: f for f in (contiguous, rows_first, batch_innermost, mirrored)}


# n, c, h, w, o, (kh, kw), stride, padding, relu, pool
CONVOLUTIONS = [
    (37, 1, 28, 28, 6, (5, 5), (1, 1), (2, 2), True, (2, 2)),
    (20, 6, 14, 14, 16, (5, 5), (1, 1), (0, 0), True, (2, 2)),
    (3, 24, 6, 7, 8, (5, 5), (1, 1), (0, 1), False, (1, 1)),
    (3, 8, 7, 6, 24, (5, 5), (1, 1), (1, 0), False, (1, 1)),
    (1, 2, 7, 6, 5, (3, 3), (1, 1), (1, 1), False, (1, 1)),
    (18, 3, 11, 9, 9, (3, 2), (2, 1), (1, 0), True, (1, 1)),
    (17, 2, 9, 10, 4, (2, 2), (3, 2), (1, 1), False, (2, 1)),
    (5, 4, 8, 8, 10, (3, 3), (1, 1), (2, 2), False, (3, 3)),
    (16, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), True, (1, 1)),
    (33, 7, 5, 5, 7, (5, 5), (1, 1), (4, 4), True, (4, 2)),
    (9, 3, 12, 4, 3, (1, 4), (4, 3), (0, 3), True, (1, 1)),
    (2, 1, 9, 33, 2, (2, 31), (2, 1), (5, 0), False, (1, 3)),
]


def convolve(machine: Emulation, case: Any, layout: str, dtype: str) -> tuple[list[Real], Any]:
    """Output and gradients, of the kernels and of the reference in double precision."""
    n, c, h, w, o, kernel, stride, padding, relu, pool = case
    rng = np.random.default_rng(0)
    x = LAYOUTS[layout](rng.normal(size=(n, c, h, w)).astype(dtype))
    weight = rng.normal(size=(o, c, *kernel)).astype(dtype)
    bias = rng.normal(size=2 * o).astype(dtype)[::2]  # with gaps
    options: dict[str, Any] = {"stride": stride, "padding": padding, "relu": relu, "pool": pool}
    given = [machine.guarded(array) for array in (x, weight, bias)]
    y, backward = convolution.convolve(*given, **options)
    double = [a.astype(np.float64) for a in (x, weight, bias)]
    truth, true_backward = convolution_block(*double, **options)
    dy = LAYOUTS[layout](rng.normal(size=y.shape).astype(dtype))
    gradients = backward(machine.guarded(dy))
    without, *others = backward(machine.guarded(dy), False)
    assert without is None
    assert all(np.array_equal(a, b) for a, b in zip(others, gradients[1:], strict=True))
    return [y, *gradients], [truth, *true_backward(dy.astype(np.float64))]


def ends_with(run: Callable[[], object]) -> int:
    """The exit status of a forked process that makes one call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons say that fork and threads are dangerous
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        faulthandler.disable()
        run()
        status = 0
    finally:
        os._exit(status)
