"""The calls of CUDA for recording, transfers and memory, with stand-ins and without a GPU.

Whether CUDA accepts them is not tested here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp.backend import (
    LIBRARIES,
    CuPyGraph,
    TorchGraph,
    asked_for,
    fetch,
    graph_for,
    out_of_memory,
)
from xbp.backend.graphs import side_by_side

Said = list[str]


@pytest.fixture
def said() -> Said:
    return []


@contextmanager
def between(said: Said, name: str) -> Iterator[None]:
    said.append(f"{name} [")
    try:
        yield
    finally:
        said.append(f"] {name}")


class OnDevice(np.ndarray):
    """An array with a device."""

    device: Any = None


class Stream:
    """A stand-in for CuPy."""

    def __init__(self, said: Said, name: str, *, broken: bool = False) -> None:
        self.said, self.name, self.broken = said, name, broken

    def record(self) -> Any:
        done = SimpleNamespace(done=False, synchronize=lambda: self.said.append("wait"))
        self.said.append(f"{self.name} marked")
        return done

    def wait_event(self, event: Any) -> None:
        self.said.append(f"{self.name} waits")

    def begin_capture(self) -> None:
        self.said.append("record")

    def end_capture(self) -> Any:
        self.said.append("end")
        if self.broken:
            raise RuntimeError("the recording is spoilt")
        return SimpleNamespace(launch=lambda: self.said.append("launch"))

    def __enter__(self) -> None:
        self.said.append(f"{self.name} [")

    def __exit__(self, *error: object) -> None:
        self.said.append(f"] {self.name}")


@pytest.fixture
def cupy(said: Said, monkeypatch: pytest.MonkeyPatch) -> Any:
    outside = Stream(said, "outside")
    pool = SimpleNamespace(
        malloc=len,
        free_all_blocks=lambda: said.append("free all"),
        set_limit=lambda *, size: said.append(f"limit {size}"),
    )

    def using(malloc: Any) -> Any:
        assert malloc is len
        return between(said, "pool")

    names = iter(("aside", "branch"))

    def stream(*, non_blocking: bool) -> Stream:
        assert non_blocking
        return Stream(said, next(names))

    def memory(size: int) -> int:
        said.append(f"take {size}")
        if said.count(f"take {size}") <= size:  # the number of failures
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        return size

    def memory_pool(allocator: Any) -> Any:
        pool.allocator = allocator
        return pool

    class CUDARuntimeError(RuntimeError):
        pass

    cuda = SimpleNamespace(
        MemoryPool=memory_pool,
        Memory=memory,
        MemoryPointer=lambda memory, offset: memory,
        Stream=stream,
        using_allocator=using,
        get_current_stream=lambda: outside,
        runtime=SimpleNamespace(memGetInfo=lambda: (123, 456), CUDARuntimeError=CUDARuntimeError),
    )
    common = SimpleNamespace(free_all_blocks=lambda: said.append("free all in common"))
    module = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: common)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def cupy_graph(said: Said, cupy: Any) -> CuPyGraph:
    class Device:
        def __enter__(self) -> None:
            said.append("device [")

        def __exit__(self, *error: object) -> None:
            said.append("] device")

    graph = LIBRARIES["cupy"].graph(Device())
    assert isinstance(graph, CuPyGraph)
    assert said == ["device [", "limit 0", "] device"]
    said.clear()
    return graph


BEFORE = ["device [", "outside marked", "aside waits", "pool [", "aside ["]
AFTER = ["] aside", "] pool", "aside marked", "outside waits", "] device"]


def test_cupy_warms_up_and_records_aside_and_replays_where_one_is(cupy: Any, said: Said) -> None:
    graph = cupy_graph(said, cupy)
    graph.warm_up(lambda: said.append("work"))
    assert said == [*BEFORE, "work", *AFTER]
    said.clear()
    graph.record(lambda: said.append("work"))
    assert said == [*BEFORE, "record", "work", "end", *AFTER]
    said.clear()
    graph.replay()
    assert said == ["device [", "launch", "] device"]


FORK, JOIN = ["aside marked", "branch waits"], ["branch marked", "aside waits"]


def test_a_graph_of_cupy_has_branches(cupy: Any, said: Said) -> None:
    def work(name: str) -> str:
        said.append(name)
        return name.upper()

    def both() -> tuple[str, str]:
        return side_by_side(lambda: work("one"), lambda: work("other"))

    assert both() == ("ONE", "OTHER")
    assert said == ["one", "other"]
    said.clear()
    graph, found = cupy_graph(said, cupy), list[Any]()
    for run, begin, end in ((graph.warm_up, [], []), (graph.record, ["record"], ["end"])):
        run(lambda: found.append(both()))
        branches = [*FORK, "branch [", "one", "] branch", "other", *JOIN]
        assert said == [*BEFORE, *begin, *branches, *end, *AFTER]
        said.clear()
    assert found == [("ONE", "OTHER")] * 2
    both()
    assert said == ["one", "other"]


def test_a_branch_is_not_divided_and_the_rest_is(cupy: Any, said: Said) -> None:
    graph = cupy_graph(said, cupy)

    def twice(name: str) -> Any:
        return side_by_side(lambda: said.append(f"{name} 1"), lambda: said.append(f"{name} 2"))

    graph.warm_up(lambda: side_by_side(lambda: twice("one"), lambda: twice("other")))
    one = ["branch [", "one 1", "one 2", "] branch"]
    other = [*FORK, "branch [", "other 1", "] branch", "other 2", *JOIN]
    assert said == [*BEFORE, *FORK, *one, *other, *JOIN, *AFTER]


@pytest.mark.parametrize("which", [0, 1])
def test_branches_of_cupy_are_joined_after_an_error(which: int, cupy: Any, said: Said) -> None:
    graph = cupy_graph(said, cupy)
    works = [lambda: said.append("work"), lambda: said.append("work")]
    works[which] = lambda: 1 // 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        graph.warm_up(lambda: side_by_side(*works))
    assert [it for it in said if it != "work"] == [
        *(*BEFORE, *FORK, "branch [", "] branch", *JOIN, *AFTER)
    ]
    said.clear()
    side_by_side(lambda: None, lambda: None)
    assert said == []


def test_a_graphs_pool_frees_nothing_where_there_is_too_little_memory(
    cupy: Any, said: Said
) -> None:
    """CuPy's pool frees its unused blocks when its allocator raises a CUDARuntimeError."""
    take = cupy_graph(said, cupy).pool.allocator
    assert take(0) == 0
    assert said == ["take 0"]
    assert take(1) == 1
    assert said[1:] == ["take 1", "free all in common", "take 1"]
    with pytest.raises(MemoryError) as caught:
        take(2)
    assert out_of_memory(caught.value)
    assert asked_for(caught.value) == 2
    assert not isinstance(caught.value, cupy.cuda.runtime.CUDARuntimeError)
    assert "free all" not in said


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_of_cupy_that_fails_is_ended(cupy: Any, said: Said, broken: bool) -> None:
    graph = cupy_graph(said, cupy)
    graph.stream.broken = broken
    with pytest.raises(ZeroDivisionError):
        graph.record(lambda: 1 // 0)
    assert said == [*BEFORE, "record", "end", *AFTER]
    assert not hasattr(graph, "graph")


def test_cupy_fetches_without_a_wait(
    cupy: Any, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = LIBRARIES["cupy"]
    pinned: list[Any] = []

    def empty_pinned(shape: Any, dtype: Any) -> Any:
        pinned.append(np.zeros(shape, dtype))
        return pinned[0]

    def asarray(array: Any, *, order: str) -> Any:
        assert order == "C"
        copied = lambda to, size: said.append(f"{size} bytes to {to == pinned[0].ctypes.data}")  # noqa: E731
        return SimpleNamespace(data=SimpleNamespace(copy_to_host_async=copied), nbytes=8)

    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(empty_pinned=empty_pinned))
    monkeypatch.setattr(library, "namespace", lambda: SimpleNamespace(asarray=asarray))
    array = np.ones(2, np.float32).view(OnDevice)
    array.device = between(said, "device")
    found = library.fetch(array)
    assert said == ["device [", "8 bytes to True", "outside marked", "] device"]
    assert not found.done()
    assert found.values() is pinned[0]
    assert said[4:] == ["wait"]


def test_free_memory_of_a_gpu(cupy: Any, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIBRARIES["cupy"].free_memory(between(said, "device")) == 123
    assert said == ["device [", "free all in common", "] device"]
    cuda = SimpleNamespace(
        empty_cache=lambda: said.append("empty"), mem_get_info=lambda device: (7, 8)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert LIBRARIES["torch"].free_memory(SimpleNamespace(type="cuda")) == 7
    assert said[-1] == "empty"
    host = LIBRARIES["torch"].free_memory(SimpleNamespace(type="cpu"))
    assert host is None or host > 8


@pytest.fixture
def torch_cuda(said: Said, monkeypatch: pytest.MonkeyPatch) -> Any:
    device = SimpleNamespace(type="cuda")

    def stream(name: str) -> Any:
        other = lambda outer: said.append(f"{name} waits for {outer.name}")  # noqa: E731
        event = SimpleNamespace(query=lambda: False, synchronize=lambda: said.append("wait"))
        return SimpleNamespace(name=name, wait_stream=other, record_event=lambda: event)

    def current(of: Any) -> Any:
        assert of is device
        return outside

    def recording(graph: Any, *, stream: Any) -> Any:
        assert stream.name == "aside"
        assert graph is made
        return between(said, "graph")

    outside = stream("outside")
    made = SimpleNamespace(replay=lambda: said.append("launch"))
    cuda = SimpleNamespace(
        CUDAGraph=lambda: made,
        Stream=lambda of: stream("aside") if of is device else None,
        current_stream=current,
        set_stream=lambda stream: said.append(f"on {stream.name}"),
        stream=lambda stream: between(said, stream.name),
        graph=recording,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, empty=empty))
    return device


def empty(shape: Any, *, dtype: Any, pin_memory: bool) -> Any:
    assert pin_memory
    host = np.zeros(shape, dtype)

    def copy(array: Any, *, non_blocking: bool) -> None:
        assert non_blocking
        host[...] = array.values

    return SimpleNamespace(copy_=copy, numpy=lambda: host)


def test_torch_warms_up_and_records_aside(torch_cuda: Any, said: Said) -> None:
    graph = LIBRARIES["torch"].graph(torch_cuda)
    assert isinstance(graph, TorchGraph)
    graph.warm_up(lambda: said.append("work"))
    waits = ["aside waits for outside", "outside waits for aside"]
    assert said == [waits[0], "aside [", "work", "] aside", waits[1]]
    said.clear()
    graph.record(lambda: said.append("work"))
    assert said == ["graph [", "work", "] graph", "on outside"]
    said.clear()
    graph.replay()
    assert said == ["launch"]
    said.clear()
    with pytest.raises(ZeroDivisionError):
        graph.record(lambda: 1 // 0)
    assert said == ["graph [", "] graph", "on outside"]


def test_torch_fetches_without_a_wait(torch_cuda: Any, said: Said) -> None:
    array = SimpleNamespace(shape=(2,), dtype="float32", device=torch_cuda, values=[1.0, 2.0])
    found = LIBRARIES["torch"].fetch(array)
    assert not found.done()
    assert found.values().tolist() == [1.0, 2.0]
    assert said == ["wait"]


def test_what_lies_on_the_host_is_fetched_at_once(backend: xbp.Backend) -> None:
    if backend.name == "cupy":
        pytest.skip("it does not lie on the host")
    found = fetch(xbp.asarray([1.0, 2.0]))
    assert found.done()
    assert found.values().tolist() == [1.0, 2.0]
    assert fetch([3.0]).values().tolist() == [3.0]


def test_without_a_gpu_only_numpy_records(backend: xbp.Backend) -> None:
    if backend.name == "cupy":
        pytest.skip("there it is")
    graph = graph_for(xbp.asarray([1.0]))
    assert graph is None or (graph.on_host and backend.name == "numpy")
    assert graph_for([1.0]) is None


def test_a_kind_of_graph_defines_how_to_record() -> None:
    graph, ran = xbp.backend.Graph(), list[int]()
    graph.warm_up(lambda: ran.append(1))
    assert ran == [1]
    for use in (graph.replay, lambda: graph.record(len)):  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError):
            use()
