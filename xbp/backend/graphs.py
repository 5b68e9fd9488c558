"""CUDA graphs: work of a device, captured once and replayed."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from xbp.backend.memory import out_of_memory
from xbp.errors import XBPError

First = TypeVar("First")
Second = TypeVar("Second")


class _Current(threading.local):
    graph: CuPyGraph | None = None


_CURRENT = _Current()
"""The graph for which this thread issues work, outside of its branches."""


def side_by_side(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of two independent functions, which a graph computes at the same time if it can.

    Neither changes memory that the other reads or changes. The caller, or the functions themselves,
    refer to all arrays that they read; see `CuPyGraph.side_by_side`.
    """
    graph = _CURRENT.graph
    return (first(), second()) if graph is None else graph.side_by_side(first, second)


@contextmanager
def _issued_for(graph: CuPyGraph | None) -> Iterator[None]:
    """Within the block, this thread's work is that of `graph`, or of no graph that can branch."""
    before, _CURRENT.graph = _CURRENT.graph, graph
    try:
        yield
    finally:
        _CURRENT.graph = before


class _Recording(threading.local):
    tape: Any = None


RECORDING = _Recording()
"""``RECORDING.tape`` is the tape (`xbp.backend.host_graph.Tape`) of this thread, if it records."""


class NotMadeError(Exception):
    """A replay on the host ended at a loss that is not finite, before it changed anything."""


class ReplayError(XBPError):
    """A replay on the host has failed, and the arrays that a step changes are half changed."""


class Graph:
    """Work for a device, recorded once and replayed on the same memory, as a CUDA graph.

    A replay runs no Python: numbers, shapes and calls are frozen. So values that change between
    replays are read from, and written to, arrays that existed before the recording.
    """

    on_host = False
    """Whether it records calls on arrays that it is lent, and ends at a loss that is not finite."""

    def check_size(self, size: int) -> None:
        """Refuse a recording of a step that keeps at least `size` bytes, if that is not worth it.

        Raises
        ------
        InputError
        """

    def lend(self, array: Any) -> Any:
        """An array that existed before the recording, as the recorded function may use it."""
        return array

    def take_back(self, array: Any) -> Any:
        """An array that the recorded function has used or made, for everybody else."""
        return array

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run `function` once on the capture stream, to compile and allocate now."""
        function()

    def record(self, function: Callable[[], object]) -> None:
        """Record the work that `function` issues to the device, without running it.

        Memory that it allocates belongs to the graph. An operation that cannot be recorded raises.
        """
        raise NotImplementedError

    def replay(self) -> None:
        """Launch the recorded work, after all work issued before."""
        raise NotImplementedError


class CuPyGraph(Graph):
    """A CUDA graph by CuPy, with a CUDA stream and a memory pool of its own."""

    def __init__(self, device: Any) -> None:
        cupy = importlib.import_module("cupy")
        self.cuda, self.device = cupy.cuda, device
        with device:
            self.pool = self.cuda.MemoryPool(partial(_memory_for_a_graph, cupy))
            self.pool.set_limit(size=0)  # a pool also frees its unused blocks at a limit
            self.stream = self.cuda.Stream(non_blocking=True)
            self.branch = self.cuda.Stream(non_blocking=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Call `function` on the graph's own stream, as the default one cannot be captured."""
        with self.device:
            outside = self.cuda.get_current_stream()
            self.stream.wait_event(outside.record())
            try:
                with (
                    self.cuda.using_allocator(self.pool.malloc),
                    self.stream,
                    _issued_for(self),
                ):
                    yield
            finally:
                outside.wait_event(self.stream.record())

    def warm_up(self, function: Callable[[], object]) -> None:
        with self._aside():
            function()

    def record(self, function: Callable[[], object]) -> None:
        with self._aside():
            self.stream.begin_capture()
            try:
                function()
            except BaseException:
                with suppress(Exception):  # it raises as the recording failed, which is known
                    self.stream.end_capture()
                raise
            self.graph = self.stream.end_capture()

    def side_by_side(
        self, first: Callable[[], First], second: Callable[[], Second]
    ) -> tuple[First, Second]:
        """Issue the work of `first` to a second stream, that of `second` to the graph's stream.

        The fork and the join are events, which a capture makes dependencies of the graph. Memory
        is not used by both branches at once, since CuPy's pool gives a freed block only to the
        stream that it was allocated on (`_Chunk.arena`; CuPy 14):

        - Blocks of the graph's stream that `first` reads are not freed before the join, as the
          functions and their caller refer to them. So `second` does not get them.
        - Blocks of the second stream are allocated by `first` alone. Whoever used such a block
          before it was freed, on either stream, did so before the fork, and `first` issues all of
          its work after the fork.
        - What `first` returns is used after the join.
        """
        self.branch.wait_event(self.stream.record())
        try:
            with self.branch, _issued_for(None):  # a branch is not divided further
                one = first()
            other = second()
        finally:
            self.stream.wait_event(self.branch.record())
        return one, other

    def replay(self) -> None:
        with self.device:
            self.graph.launch()  # on the current stream


def _memory_for_a_graph(cupy: Any, size: int) -> Any:
    """Device memory for the memory pool of a graph.

    When memory runs out, CuPy's pool would free its own unused blocks and try again. But the graph
    uses these blocks, at recorded addresses. So the unused blocks of the default pool are freed
    instead; if that is not enough, the error is of a class that CuPy's pool does not catch.

    Raises
    ------
    MemoryError
    """
    cuda = cupy.cuda
    for last in (False, True):
        try:
            return cuda.MemoryPointer(cuda.Memory(size), 0)
        except (MemoryError, cuda.runtime.CUDARuntimeError) as error:
            if last or not out_of_memory(error):
                msg = f"Out of memory allocating {size:,} bytes for a graph"
                raise (MemoryError(msg) if out_of_memory(error) else error) from None
            cupy.get_default_memory_pool().free_all_blocks()
    raise AssertionError


class TorchGraph(Graph):
    """A CUDA graph by torch. Not yet run on a GPU."""

    def __init__(self, device: Any) -> None:
        self.cuda, self.device = importlib.import_module("torch").cuda, device
        self.graph, self.stream = self.cuda.CUDAGraph(), self.cuda.Stream(device)

    def warm_up(self, function: Callable[[], object]) -> None:
        outside = self.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with self.cuda.stream(self.stream):
            function()
        outside.wait_stream(self.stream)

    def record(self, function: Callable[[], object]) -> None:
        outside = self.cuda.current_stream(self.device)
        try:
            with self.cuda.graph(self.graph, stream=self.stream):
                function()
        finally:
            self.cuda.set_stream(outside)  # torch does not restore it if the recording fails

    def replay(self) -> None:
        self.graph.replay()
