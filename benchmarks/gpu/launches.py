"""The launches of recorded steps, and how many of them wait for one another.

    python -m benchmarks.gpu launches
    python -m benchmarks.gpu launches lenet5-train --batch 128

CuPy writes a recorded graph in the DOT language; `layout` reads nodes and edges from it. The
longest path is the least number of launches, one after the other, that a step can take. With
``XBP_DEPENDENT_LAUNCH=1`` it also counts the dependencies that are programmatic, whose later kernel
may begin before the earlier one has ended.
"""

from __future__ import annotations

import argparse
import ctypes
import re
from collections import Counter
from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import xbp
from xbp.accelerators.cuda import dependent
from xbp.backend import CuPyGraph
from xbp.benchmarks.networks import NETWORKS, input_shape, make_model
from xbp.benchmarks.side_xbp import OPTIMIZERS
from xbp.benchmarks.workloads import WORKLOADS
from xbp.errors import BackendError

STEPS = 4
LONGEST_NAME = 40
"""What is shown of a kernel's name, in characters."""
NODE = re.compile(r'^"(\w+)"\[.*label="\d+\n(.*)$', re.MULTILINE)
EDGE = re.compile(r'^"(\w+)" -> "(\w+)"', re.MULTILINE)


class Layout(NamedTuple):
    """What is launched in a graph.

    Attributes
    ----------
    names : dict of str to str
        Of a node, the kernel, or what else is done.
    before : dict of str to set of str
        The nodes that each node waits for.
    programmatic : int or None
        How many of these dependencies are programmatic, if it is known.
    """

    names: dict[str, str]
    before: dict[str, set[str]]
    programmatic: int | None = None

    @property
    def longest(self) -> list[str]:
        """The nodes of a longest path."""
        path: dict[str, list[str]] = {}
        for node in TopologicalSorter(self.before).static_order():
            ways = (path[earlier] for earlier in self.before[node])
            path[node] = [*max(ways, key=len, default=[]), node]
        return max(path.values(), key=len, default=[])


def layout(dot: str) -> Layout:
    """A graph in the DOT language, as CUDA prints it."""
    names = dict(NODE.findall(dot))
    before: dict[str, set[str]] = {node: set() for node in names}
    for earlier, later in EDGE.findall(dot):
        before[later].add(earlier)
    return Layout(names, before)


class EdgeData(ctypes.Structure):
    """CUgraphEdgeData of cuda.h."""

    _fields_ = (
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


def programmatic(graph: int) -> int | None:
    """The number of programmatic dependencies of a CUgraph; None if they are not asked for."""
    driver = dependent.library() if dependent.wanted() else None
    if driver is None or not hasattr(driver, "cuGraphGetEdges_v2"):
        return None
    count, handle = ctypes.c_size_t(), ctypes.c_void_p(graph)
    edges: Any = None
    for _ in range(2):  # first their number
        ends = [(ctypes.c_void_p * count.value)() if count.value else None for _ in range(2)]
        edges = (EdgeData * count.value)()
        data = edges if count.value else None
        if driver.cuGraphGetEdges_v2(handle, *ends, data, ctypes.byref(count)):
            return None
    return sum(edge.type == 1 for edge in edges)  # CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC


def recorded(workload: str, batch: int) -> Layout:
    """The graph of a training step, of `STEPS` that `Trainer.fit` makes of random samples."""
    model = WORKLOADS[workload].model
    graphs: list[Any] = []
    record = CuPyGraph.record

    def record_and_keep(graph: CuPyGraph, function: Any) -> None:
        record(graph, function)
        graphs.append(graph)

    rng, shape, n = np.random.default_rng(0), input_shape(*model), batch * STEPS
    network, architecture = make_model(*model, rng=0), NETWORKS[model[0]]
    if architecture.data == "text":
        x, y = (rng.integers(0, model[1], (n, *shape)) for _ in range(2))
    else:
        x, y = rng.standard_normal((n, *shape), np.float32), rng.integers(0, 10, n)
    rule = OPTIMIZERS[WORKLOADS[workload].optimizer](network.parameters(), 0.001)
    trainer = xbp.Trainer(network, architecture.loss(), rule, rng=0)
    with mock.patch.object(CuPyGraph, "record", record_and_keep):
        trainer.fit(xbp.asarray(x), xbp.asarray(y), epochs=2, batch_size=batch, verbose=False)
    if not graphs:
        msg = f"the step of {workload} was not recorded; xbp bench says why"
        raise RuntimeError(msg)
    graph = graphs[0].graph
    return layout(graph.debug_dot_str(0))._replace(programmatic=programmatic(graph.graph))


def report(workload: str, batch: int, found: Layout) -> str:
    """The launches in words, the most frequent ones first."""
    counts = Counter(name[:LONGEST_NAME] for name in found.names.values()).most_common()
    kinds = ", ".join(f"{name} {count}" for name, count in counts)
    total, longest = len(found.names), len(found.longest)
    edges = sum(map(len, found.before.values()))
    early = f", {found.programmatic} of {edges} dependencies programmatic"
    early = "" if found.programmatic is None else early
    return (
        f"{workload}, batch {batch}: {total} launches, {longest} on the longest path{early}\n"
        f"    {kinds}"
    )


def main(arguments: Iterable[str]) -> int:
    steps = [name for name, it in WORKLOADS.items() if it.kind == "train"]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="by default all")
    parser.add_argument("--batch", type=int, help="by default the workload's first")
    given = parser.parse_args([*arguments])
    for name in given.workloads:
        if name not in steps:
            parser.error(f"there is no training step {name!r}; choose from {', '.join(steps)}")
    if given.batch is not None and given.batch < 1:
        parser.error(f"--batch must be 1 or more, got {given.batch}")
    try:
        xbp.set_backend("cupy")
    except BackendError as error:
        parser.error(str(error))
    for name in given.workloads or steps:
        batch = given.batch or WORKLOADS[name].sizes[0]
        print(report(name, batch, recorded(name, batch)), flush=True)
    return 0
