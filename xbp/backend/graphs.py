"""CUDA graphs: work of a device, captured once and replayed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from xbp.backend.memory import out_of_memory


class Graph:
    """Work for a device, recorded once and replayed on the same memory, as a CUDA graph.

    A replay runs no Python: numbers, shapes and calls are frozen. So values that change between
    replays are read from, and written to, arrays that existed before the recording.
    """

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

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Call `function` on the graph's own stream, as the default one cannot be captured."""
        with self.device:
            outside = self.cuda.get_current_stream()
            self.stream.wait_event(outside.record())
            try:
                with self.cuda.using_allocator(self.pool.malloc), self.stream:
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
