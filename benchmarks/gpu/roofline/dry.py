"""The launches of a recorded training step, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

import xbp
from xbp.accelerators.cuda.ahead import Recorder, computed_by
from xbp.accelerators.shared import stored
from xbp.backend.graphs import Graph
from xbp.benchmarks.networks import DATA, NETWORKS, input_shape, make_model
from xbp.benchmarks.side_xbp import OPTIMIZERS
from xbp.benchmarks.workloads import WORKLOADS
from xbp.training import capture, recordings

GEMM = "gemm (cuBLAS)"
STEPS = 3


@dataclass
class Launch:
    """A launch of a kernel, or a product by cuBLAS.

    Attributes
    ----------
    file, name : str
    macros : dict
    grid : (int, int)
        Blocks.
    threads : int
        Of a block.
    task : ctypes.Structure
        Its argument.
    arrays : list of (str, array)
        What it reads and writes, by the names of the argument's members.
    """

    file: str
    name: str
    macros: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] = (0, 0)
    threads: int = 0
    task: Any = None
    arrays: list[tuple[str, Any]] = field(default_factory=list)

    def array(self, name: str) -> Any:
        """The first array of this name."""
        return next(array for its, array in self.arrays if its == name)


class Watcher(Recorder):
    """A machine that computes nothing and notes each launch.

    Attributes
    ----------
    launches : list of Launch
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.launches: list[Launch] = []
        self.given: dict[int, Any] = {}  # arrays by address, which stay alive

    def address(self, array: Any) -> int:
        place = int(array.ctypes.data)
        self.given[place] = array
        return place

    def launch(
        self,
        kernel: tuple[str, str],
        macros: dict[str, Any],
        grid: tuple[int, int],
        threads: int,
        task: ctypes.Structure,
    ) -> None:
        super().launch(kernel, macros, grid, threads, task)
        found = {place: name for name, place in pointers(task) if place in self.given}
        arrays = [(name, self.given[place]) for place, name in found.items()]
        self.launches.append(Launch(*kernel, dict(macros), grid, threads, task, arrays))

    def multiply(self, a: Any, b: Any, c: Any, rounded: str = "") -> bool:
        if stored(a) is None or stored(b) is None:
            return False
        arrays = [("a", a), ("b", b), ("c", c)]
        self.launches.append(Launch("", GEMM, arrays=arrays))
        return True


def pointers(task: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The names and values of all pointers in a structure."""
    if isinstance(task, ctypes.Array):
        for each in task:
            yield from pointers(each, name)
    elif isinstance(task, ctypes.Structure):
        for key, kind in task._fields_:  # type: ignore[misc]
            if key == "rider":  # a row of results, not its table
                continue
            value = getattr(task, key)
            if kind is ctypes.c_void_p:
                if value:
                    yield key, value
            else:
                yield from pointers(value, key)


class Dry(Graph):
    """A graph that computes nothing and notes the launches of the recorded step."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def record(self, function: Callable[[], object]) -> None:
        self.watcher.launches.clear()
        function()

    def replay(self) -> None:
        pass


def data_of(workload: str, batch: int) -> tuple[Any, Any]:
    """Random samples for some steps, as `xbp bench` draws them; those of digits are random, too."""
    model, rng = WORKLOADS[workload].model, np.random.default_rng(0)
    if (kind := NETWORKS[model[0]].data) in DATA:
        return DATA[kind].draw(rng, STEPS * batch)
    x = rng.standard_normal((STEPS * batch, *input_shape(*model)), np.float32)
    return x, rng.integers(10, size=STEPS * batch)


def trainer_of(workload: str, precision: str = "float32") -> xbp.Trainer:
    """The network, loss and optimizer of a workload."""
    it = WORKLOADS[workload]
    network, loss = make_model(*it.model, rng=0), NETWORKS[it.model[0]].loss()
    rule = OPTIMIZERS[it.optimizer](network.parameters(), 1e-3)
    return xbp.Trainer(network, loss, rule, rng=0, precision=precision)


def launches_of(workload: str, batch: int, architecture: str) -> list[Launch]:
    """The launches of a workload's recorded step, in their order."""
    watcher = Watcher(architecture)
    run(workload, batch, watcher)
    return watcher.launches


def run(
    workload: str,
    batch: int,
    watcher: Watcher,
    functions: Any = None,
    precision: str = "float32",
) -> None:
    """Let a machine watch a workload's recorded step.

    Raises
    ------
    RuntimeError
        The step was not recorded.
    """

    def graph_for(array: Any) -> Dry:
        return Dry(watcher)

    with (
        xbp.use_backend("numpy"),
        computed_by(watcher, functions),
        mock.patch.object(capture, "graph_for", graph_for),
        mock.patch.object(recordings, "graph_for", graph_for),
    ):
        trainer, (x, y) = trainer_of(workload, precision), data_of(workload, batch)
        trainer.fit(x, y, epochs=1, batch_size=batch, verbose=False)
    if not any(launch.name == "take" for launch in watcher.launches):
        msg = f"the step of {workload} was not recorded"
        raise RuntimeError(msg)
