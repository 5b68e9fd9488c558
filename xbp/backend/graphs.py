"""Work that a device repeats: recorded once, replayed as one CUDA graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from xbp.backend.memory import out_of_memory


class Graph:
    """Work for a device, recorded once and repeated on the same memory, as one CUDA graph.

    What Python does meanwhile is not repeated: numbers, shapes and calls are frozen as they were.
    So everything that changes from one time to the next is read from arrays, and kept in arrays
    that were there before.
    """

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run `function` for once, where it will be recorded: compile, load, find memory."""
        function()

    def record(self, function: Callable[[], object]) -> None:
        """Take down what `function` asks of the device, which does nothing of it yet.

        Memory that it takes is the graph's own. Whatever refuses to be recorded raises.
        """
        raise NotImplementedError

    def replay(self) -> None:
        """Let the device do what was recorded, after all that it was asked before."""
        raise NotImplementedError


class CuPyGraph(Graph):
    """A CUDA graph by CuPy, with a stream and a memory pool of its own."""

    def __init__(self, device: Any) -> None:
        cupy = importlib.import_module("cupy")
        self.cuda, self.device = cupy.cuda, device
        with device:
            self.pool = self.cuda.MemoryPool(partial(_memory_for_a_graph, cupy))
            self.pool.set_limit(size=0)  # at a limit, too, a pool frees its unused blocks
            self.stream = self.cuda.Stream(non_blocking=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, as the default one cannot be recorded, with memory of its own."""
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
                with suppress(Exception):  # it says that the recording failed, which is known
                    self.stream.end_capture()
                raise
            self.graph = self.stream.end_capture()

    def replay(self) -> None:
        with self.device:
            self.graph.launch()  # on the current stream


def _memory_for_a_graph(cupy: Any, size: int) -> Any:
    """Memory from the device for the pool of a graph.

    Where there is none, CuPy's pool would free its own unused blocks and ask again. But the graph
    uses those, at the addresses that were recorded. So in their place the unused blocks of the
    common pool are freed; and if that does not help, the error is one which CuPy's pool lets pass.

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
            self.cuda.set_stream(outside)  # which torch forgets where the recording fails

    def replay(self) -> None:
        self.graph.replay()
