"""The calls of CuPy and cuBLAS, recorded by stand-ins, without a GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import compiler

import xbp
from xbp import primitives, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import cublas, launch, passes, product, short
from xbp.errors import InputError
from xbp.primitives.reduced import PRECISIONS

needs_compiler = pytest.mark.skipif(compiler() is None, reason="it needs Linux and a C++ compiler")


class Array(np.ndarray):
    """An array like CuPy's: its address is that of its `data`, and so is its device."""

    lies_on = 0

    def __array_finalize__(self, other: Any) -> None:
        self.lies_on = getattr(other, "lies_on", 0)

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data, device_id=self.lies_on)


Array.__module__ = "cupy"


def on(device: int, numbers: Any) -> Any:
    """An array of CuPy's on a device."""
    array = numbers.view(Array)
    array.lies_on = device
    return array


class Stream:
    def __init__(self, ptr: int, *, capturing: bool = False) -> None:
        self.ptr, self.capturing = ptr, capturing

    def is_capturing(self) -> bool:
        return self.capturing


class CuPy:
    """A stand-in for the module cupy."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.launched: list[tuple[str, Any, Any, Any]] = []
        self.allocated: list[Any] = []
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDevice=lambda: self.device),
            alloc=self.alloc,
            get_current_stream=lambda: self.stream,
            Device=lambda: SimpleNamespace(compute_capability=self.capability),
        )
        self.capability = "90"
        self.lib = np.lib
        self.stream, self.device = Stream(77), 0

    def empty(self, shape: Any, dtype: Any) -> Any:
        return on(self.device, np.zeros(shape, dtype))

    def alloc(self, size: int) -> Any:
        self.allocated.append(memory := np.full(size, 255, np.uint8))

        def memset_async(value: int, size: int, stream: Stream) -> None:
            assert stream is self.stream
            memory[:size] = value

        return SimpleNamespace(ptr=memory.ctypes.data, memset_async=memset_async)

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        self.compiled.append((code, options))
        return SimpleNamespace(get_function=self.get_function)

    def get_function(self, name: str) -> Callable[..., None]:
        def function(grid: Any, block: Any, arguments: Any) -> None:
            self.launched.append((name, grid, block, arguments))

        return function


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> CuPy:
    module = CuPy()
    monkeypatch.setitem(__import__("sys").modules, "cupy", module)
    monkeypatch.delitem(launch.machines, "cupy", raising=False)
    monkeypatch.setattr(launch, "machines", {})
    return module


def test_kernels_stand_in_for_primitives_on_cupys_arrays(cupy: CuPy) -> None:
    names = {function.__name__ for function in cuda.implementations()}
    assert {name for name in names if registry.find(name, Array)} == names
    assert all(hasattr(primitives, name) for name in names)
    del registry._tables[Array]


def test_a_launch(cupy: CuPy) -> None:
    p, g = (np.ones(300, "f4").view(Array) for _ in range(2))
    passes.add_scaled(p, 0.25, g)
    ((code, options),) = cupy.compiled
    assert code == launch.source("passes.cu")
    assert options == ("-std=c++17", "-Dreal=float")
    ((name, grid, block, (task,)),) = cupy.launched
    assert (name, grid, block) == ("add_scaled", (2, 1), (256,))
    # Structs are passed by value: a numpy array of one entry with the struct's bytes.
    assert type(task) is np.ndarray and task.size == 1
    assert task.itemsize == ctypes.sizeof(passes.Pass)
    sent = passes.Pass.from_buffer_copy(task.tobytes())
    assert (sent.of[0].to, sent.of[0].a, sent.of[0].size) == (p.ctypes.data, g.ctypes.data, 300)
    assert (sent.s.at, sent.s.value) == (None, 0.25)
    passes.add_scaled(p, 0.5, g)
    assert len(cupy.compiled) == 1 and len(cupy.launched) == 2
    q = np.ones(300, "f8").view(Array)
    passes.add_scaled(q, 0.5, q)
    assert cupy.compiled[1][1] == ("-std=c++17", "-Dreal=double")
    found = launch.machine_of(p).empty((2, 3), "f4")
    assert found.shape == (2, 3) and type(found) is Array


def test_each_stream_has_counters_of_its_own_that_begin_at_0(cupy: CuPy) -> None:
    machine = launch.machine_for("cupy")

    def counters(stream: Stream, count: int = launch.MOST_COUNTERS) -> int:
        cupy.stream = stream
        return machine.counters(count)

    main, branch = Stream(77), Stream(78)
    first, second = counters(main), counters(branch)
    assert first and second and first != second
    assert (counters(main, 1), counters(branch, 1)) == (first, second)
    assert [memory.size for memory in cupy.allocated] == [4 * launch.MOST_COUNTERS] * 2
    assert not any(memory.any() for memory in cupy.allocated)
    assert counters(main, launch.MOST_COUNTERS + 1) == 0
    # A recorded step would set them to 0 in each replay, but not now.
    assert counters(Stream(79, capturing=True)) == 0 and len(cupy.allocated) == 2
    assert counters(Stream(77, capturing=True)) == first


def test_an_array_of_another_device_than_the_current_one_is_refused(cupy: CuPy) -> None:
    """A kernel would read memory that is not its device's, which ends all work of a process."""
    p, g = on(1, np.ones(300, "f4")), on(0, np.ones(300, "f4"))
    for pair in ((p, p), (g, p)):
        with pytest.raises(InputError, match=r"device 0 cannot use an array of device 1;"):
            passes.add_scaled(pair[0], 0.25, pair[1])
    assert cupy.launched == []
    cupy.device = 1
    passes.add_scaled(p, 0.25, p)
    assert len(cupy.launched) == 1


# --- cuBLAS --------------------------------------------------------------------------------------

STAND_IN = Path(__file__).parent / "cublas.cpp"


@pytest.fixture(scope="module")
def blas(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("blas") / "libcublas.so"
    command = [str(compiler()), "-shared", "-fPIC", str(STAND_IN), "-o", str(target)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


@needs_compiler
@pytest.mark.parametrize("dtype", launch.REALS)
@pytest.mark.parametrize("left", ["as such", "transposed", "in a larger one"])
@pytest.mark.parametrize("right", ["as such", "transposed", "in a larger one"])
def test_cublas(
    left: str, right: str, dtype: str, blas: ctypes.CDLL, cupy: CuPy, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cublas, "library", lambda: blas)
    rng = np.random.default_rng(0)

    def draw(rows: int, columns: int, stored: str) -> Any:
        shape = {"as such": (rows, columns), "transposed": (columns, rows)}
        a = rng.normal(size=shape.get(stored, (rows + 2, columns + 3))).astype(dtype).view(Array)
        return {"as such": a, "transposed": a.T, "in a larger one": a[1:-1, 2:-1]}[stored]

    a, b = draw(5, 7, left), draw(7, 3, right)
    machine = launch.machine_of(a)
    for _ in range(2):
        c = machine.empty((5, 3), dtype)
        assert machine.multiply(a, b, c)
        # Sums of seven products of order 1.
        np.testing.assert_allclose(c, a @ b, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14)
    assert ctypes.c_int.in_dll(blas, "stream").value == cupy.stream.ptr
    assert ctypes.c_size_t.in_dll(blas, "workspace").value == cublas.WORKSPACE
    assert [memory.size for memory in cupy.allocated] == [cublas.WORKSPACE]
    gaps = a[:, :1].repeat(14, 1)[:, ::2]
    for unfit in (a[:, ::-1], a[::-1], np.broadcast_to(a[0], (5, 7)), gaps):
        assert not machine.multiply(unfit, b, c)
        assert not machine.multiply(b.T, unfit.T, c)


@needs_compiler
@pytest.mark.parametrize("dtype", launch.REALS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_stacks_of_matrices(
    order: tuple[int, ...], dtype: str, blas: ctypes.CDLL, cupy: CuPy, monkeypatch: Any
) -> None:
    """CuPy's own handle refuses to be recorded; matrices with gaps are copied first."""
    monkeypatch.setattr(cublas, "library", lambda: blas)
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        memory = rng.normal(size=[shape[axis] for axis in order]).astype(dtype).view(Array)
        return memory.transpose(np.argsort(order))

    for a, b in (
        (draw(4, 5, 7), draw(4, 7, 3)),
        (draw(6, 1, 2).reshape(2, 3, 1, 2), draw(6, 2, 1).reshape(2, 3, 2, 1)),
        (draw(4, 5, 7), np.flip(draw(4, 7, 3), -1)),
    ):
        c = product.matmul(a, b)
        assert c.dtype == dtype and c.shape == (*a.shape[:-1], b.shape[-1])
        # Sums of seven products of order 1.
        np.testing.assert_allclose(c, a @ b, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14)
    with monkeypatch.context() as patch:
        patch.setattr(product, "dense", None)  # what cuBLAS can read is not copied
        a = rng.normal(size=(4, 7, 5)).astype(dtype).view(Array).transpose(0, 2, 1)
        product.matmul(a, a.transpose(0, 2, 1))
    assert product.matmul(draw(4, 5, 7), draw(1, 7, 3)) is NotImplemented
    monkeypatch.setattr(cublas, "library", lambda: None)
    assert product.matmul(draw(4, 5, 7), draw(4, 7, 3)) is NotImplemented


@needs_compiler
def test_each_stream_has_a_workspace_as_long_as_it_lives(
    blas: ctypes.CDLL, cupy: CuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cublas, "library", lambda: blas)
    machine = launch.machine_of(np.ones(1).view(Array))

    def used(stream: Stream, device: int = 0, *, thread: bool = False) -> int:
        """The address of a product's workspace."""
        cupy.stream, cupy.device = stream, device
        a = on(device, np.ones((2, 2)))
        if thread:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(machine.multiply, a, a, machine.empty((2, 2), "f8")).result()
        else:
            assert machine.multiply(a, a, machine.empty((2, 2), "f8"))
        return ctypes.c_size_t.in_dll(blas, "at").value

    null, aside, own = Stream(0), Stream(123), Stream(cublas.PER_THREAD)
    first = used(null)
    assert used(null, thread=True) == first  # one stream: one product after the other
    others = [used(aside), used(null, 1), used(own), used(own, thread=True)]
    assert len({first, *others}) == 5
    assert used(aside, thread=True) == used(aside) == others[0]
    assert len(machine.workspaces.of) == 5
    cupy.stream = null
    del aside
    gc.collect()
    assert len(machine.workspaces.of) == 4


@needs_compiler
def test_a_thread_that_has_ended_leaves_its_handles_to_others(
    blas: ctypes.CDLL, cupy: CuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cublas, "library", lambda: blas)
    made = ctypes.c_int.in_dll(blas, "made")
    made.value = 0
    machine = launch.machine_of(np.ones(1).view(Array))

    def product(device: int) -> bool:
        a = on(device, np.ones((2, 2)))
        return machine.multiply(a, a, machine.empty((2, 2), "f8"))

    def of_a_thread(*devices: int) -> None:
        for cupy.device in devices:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(product, cupy.device).result()
            gc.collect()

    of_a_thread(0, 0, 0)
    assert made.value == 1
    of_a_thread(1, 0, 1)
    assert made.value == 2
    cupy.device = 0
    assert product(0) and made.value == 2
    of_a_thread(0)  # at the same time as this thread's
    assert made.value == 3


@needs_compiler
@pytest.mark.parametrize(("wanted", "mode"), [(None, 0), ("0", 0), ("1", 3)])
def test_tf32_as_cupy_is_told(
    wanted: str | None, mode: int, blas: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUPY_TF32", raising=False)
    if wanted is not None:
        monkeypatch.setenv("CUPY_TF32", wanted)
    ctypes.c_int.in_dll(blas, "mode").value = 0
    cublas.Handle(blas)
    assert ctypes.c_int.in_dll(blas, "mode").value == mode


@needs_compiler
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("shapes", [((6, 5), (5, 4)), ((3, 6, 5), (3, 5, 4))], ids=["one", "many"])
def test_rounded_factors_are_for_tensor_cores(
    shapes: Any, name: str, blas: ctypes.CDLL, cupy: CuPy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large products of a block of `precision`, and no others: in TF32, or of 16 bits."""
    monkeypatch.delenv("CUPY_TF32", raising=False)
    monkeypatch.setattr(cublas, "library", lambda: blas)
    monkeypatch.setattr(product, "LEAST_LARGE", 0)
    monkeypatch.setattr(short, "LEAST", 0)
    factors, compute = (ctypes.c_int.in_dll(blas, key) for key in ("factors", "compute"))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype("f4").view(Array) for shape in shapes)

    def round_to(x: Any, name: str) -> Any:
        return primitives.round_to.reference(np.asarray(x), name).view(Array)  # type: ignore[attr-defined]

    def shorten(x: Any, name: str) -> Any:
        near = round_to(x, name)
        bits = near.astype("f2").view("u2") if name == "float16" else near.view("u2")[..., 1::2]
        return np.ascontiguousarray(bits).view(Array)

    monkeypatch.setattr(short, "shorten", shorten)
    registry.register(Array, [product.matmul, round_to, short.rounded_matmul])
    old, tf32 = (0, 0), (0, 77)
    try:
        for capability in ("90", "75", "61"):
            cupy.capability = capability
            kinds = {"90": {"float16": (2, 68), "bfloat16": (14, 68)}, "75": {"float16": (2, 68)}}
            with xbp.precision(name):
                factors.value, compute.value = old
                c = primitives.matmul(a, b)
            usual = old if name == "float32" else tf32
            assert (factors.value, compute.value) == kinds.get(capability, {}).get(name, usual)
            near = (a, b) if name == "float32" else [round_to(x, name) for x in (a, b)]
            # Sums of five products of order 1.
            np.testing.assert_allclose(c, near[0] @ near[1], rtol=0, atol=1e-5)
            factors.value, compute.value = old
            primitives.matmul(a, b)
            assert (factors.value, compute.value) == old
    finally:
        del registry._tables[Array]


@needs_compiler
def test_views_of_which_rows_overlap(cupy: CuPy) -> None:
    x = np.arange(12.0).view(Array)
    found = launch.machine_of(x).strided(x, (3, 4), (16, 8))
    assert found.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]


def test_an_error_of_cublas_is_one_sentence(blas: ctypes.CDLL) -> None:
    fails = ctypes.c_int.in_dll(blas, "fails")
    fails.value = 3
    with pytest.raises(RuntimeError, match="cublasCreate_v2 failed with status 3"):
        cublas.Handle(blas)
    fails.value = 0


def test_without_cublas(cupy: CuPy, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.ones((2, 2)).view(Array)
    monkeypatch.setattr(cublas, "library", lambda: None)
    assert not launch.machine_of(a).multiply(a, a, a)


def test_cublas_is_found_as_cupy_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys
    from importlib import import_module as real

    def finder(path: str) -> Any:
        loaded = SimpleNamespace(abs_path=path)
        return SimpleNamespace(load_nvidia_dynamic_lib={"cublas": loaded}.__getitem__)

    broken = tmp_path / "libcublas.so"
    broken.write_bytes(b"this is no library")
    for found, works in ((ctypes.util.find_library("c") or "", True), (str(broken), False)):
        if not found and sys.platform != "linux":
            continue
        monkeypatch.setattr(
            "importlib.import_module",
            lambda name, found=found: finder(found) if name == "cuda.pathfinder" else real(name),
        )
        assert (cublas.library.__wrapped__() is not None) is works

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    assert cublas.library.__wrapped__() is None
