"""Checks that the stand-in behaves as a GPU, and of xbp on its two devices.

Run by `python tests/cupy_on_cpu`; pytest does not collect this file by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np
import pytest

import xbp
from xbp import nn, optim, primitives, registry
from xbp.accelerators import cuda
from xbp.accelerators.cuda import cublas, dependent, launch, product, short, whole_run
from xbp.backend.graphs import CuPyGraph, side_by_side
from xbp.errors import InputError

double = cupy.RawKernel(
    'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }', "twice"
)
UNSUPPORTED, INVALIDATED = (f"StreamCapture{it}" for it in ("Unsupported", "Invalidated"))


@contextmanager
def stream() -> Iterator[Any]:
    with cupy.cuda.Stream(non_blocking=True) as made:
        yield made
    assert not made.is_capturing()


# --- the stand-in --------------------------------------------------------------------------------


def test_it_is_the_stand_in() -> None:
    assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"CUDA on a CPU"
    assert cupy.cuda.runtime.getDeviceCount() == 2


FUNCTIONS = (
    *("sqrt", "exp", "log", "tanh", "sin", "floor", "rint", "log1p", "expm1", "abs", "square"),
    *("cumsum", "argmax", "sum", "mean", "max", "var", "prod", "sort", "argsort", "flip", "diff"),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cupys_own_kernels_compute(function: str, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 700)).astype(dtype)
    found, wanted = getattr(cupy, function)(cupy.asarray(x)).get(), getattr(np, function)(x)
    assert found.dtype == wanted.dtype
    # 2100 terms in another order; the products are near 0.
    np.testing.assert_allclose(found, wanted, rtol=2100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)), ((2, 5, 7), (7, 3))])
def test_products(shapes: Any, dtype: str) -> None:
    a, b = (np.random.default_rng(0).integers(-4, 5, shape).astype(dtype) for shape in shapes)
    for back in (1, -1):
        found = cupy.asarray(a)[..., ::back] @ cupy.asarray(b)
        np.testing.assert_array_equal(found.get(), a[..., ::back] @ b)  # exact: small integers


def test_sums_along_an_axis_use_shared_memory_of_a_size_that_the_launch_says() -> None:
    x = np.random.default_rng(0).integers(-9, 10, (3, 700)).astype("float64")
    found = cupy.cumsum(cupy.asarray(x), axis=1)
    np.testing.assert_array_equal(found.get(), np.cumsum(x, axis=1))


def test_new_memory_is_nan_and_too_much_is_refused() -> None:
    with cupy.cuda.using_allocator(cupy.cuda.memory._malloc):
        assert np.isnan(cupy.empty(16, "f4").get()).all()
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(1 << 34, "u1")


def test_a_copy_says_truly_where_it_goes() -> None:
    host, device = np.zeros(4, "f4"), cupy.zeros(4, "f4")
    runtime = cupy.cuda.runtime
    with pytest.raises(runtime.CUDARuntimeError, match="InvalidValue"):
        runtime.memcpy(device.data.ptr, host.ctypes.data, 16, runtime.memcpyDeviceToDevice)
    with pytest.raises(runtime.CUDARuntimeError, match="InvalidValue"):
        runtime.memcpy(host.ctypes.data, device.data.ptr, 16, runtime.memcpyHostToDevice)


def test_a_capture_computes_nothing_until_it_is_launched() -> None:
    x = cupy.ones(4, "f4")
    double((1,), (4,), (x,))  # compiled now
    with stream() as s:
        s.begin_capture()
        double((1,), (4,), (x,))
        graph = s.end_capture()
    assert x.get().tolist() == [2] * 4
    graph.launch()
    graph.launch()
    assert x.get().tolist() == [8] * 4


def test_scalars_are_frozen_in_a_capture() -> None:
    x, step = cupy.zeros(4, "f4"), 1.0
    x += step
    with stream() as s:
        s.begin_capture()
        x += step
        graph = s.end_capture()
    step = 100.0
    graph.launch()
    assert x.get().tolist() == [2] * 4


@pytest.mark.parametrize("wait", ["stream", "device", "question"])
def test_a_wait_ends_a_capture(wait: str) -> None:
    with stream() as s:
        s.begin_capture()
        if wait == "question":
            assert not s.done  # CuPy takes the error for "no"
        else:
            with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=UNSUPPORTED):
                (s if wait == "stream" else cupy.cuda.Device()).synchronize()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=INVALIDATED):
            s.end_capture()
        s.synchronize()


def branched(x: Any, y: Any, *, join: bool = True) -> Any:
    """A captured x ← 2x on a second stream, at the same time as x ← x + y on the first."""
    side = cupy.cuda.Stream(non_blocking=True)
    with stream() as s:
        s.begin_capture()
        side.wait_event(s.record())
        with side:
            double((1,), (4,), (x,))
            assert side.is_capturing()
        x += y
        if join:
            s.wait_event(side.record())
        y *= 5
        return s.end_capture()


def test_a_second_stream_joins_a_capture_and_comes_late() -> None:
    """So that branches that depend on one another compute something else than eager work."""
    x, y = cupy.ones(4, "f4"), cupy.full(4, 10, "f4")
    y *= 1
    double((1,), (4,), (cupy.ones(4, "f4"),))
    graph = branched(x, y)
    assert (x.get()[0], y.get()[0]) == (1, 10)
    graph.launch()
    assert (x.get().tolist(), y.get()[0]) == ([22] * 4, 50)


def test_a_branch_that_is_not_joined_is_an_error() -> None:
    x = cupy.ones(4, "f4")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnjoined"):
        branched(x, x, join=False)
    double((1,), (4,), (x,))
    assert x.get().tolist() == [2] * 4


REFUSED = {
    "asarray": lambda x: cupy.asarray([1.0, 2.0]),
    "get": lambda x: x.get(),
    "float": lambda x: float(x[0]),
    "mask": lambda x: x[x > 0],
    "stack": lambda x: cupy.stack([x] * 9),
    "product": lambda x: x.reshape(2, 2) @ x.reshape(2, 2),
}


@pytest.mark.parametrize("what", REFUSED)
def test_cupy_refuses_in_a_capture(what: str) -> None:
    x = cupy.ones(4, "f4")
    REFUSED[what](x)
    with stream() as s:
        s.begin_capture()
        with pytest.raises((RuntimeError, NotImplementedError)):
            REFUSED[what](x)
        s.end_capture()  # the capture has continued


def test_a_blocking_stream_does_not_bear_the_default_one() -> None:
    x = cupy.ones(4, "f4")
    with cupy.cuda.Stream() as s:
        s.begin_capture()
        with cupy.cuda.Stream.null, pytest.raises(Exception, match="CAPTURE_IMPLICIT"):
            x += 1
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=INVALIDATED):
            s.end_capture()


def test_a_device_has_its_own_memory_and_streams() -> None:
    x = cupy.ones(4, "f4")
    with cupy.cuda.Device(1):
        assert cupy.zeros(2).device.id == 1
        with pytest.raises(ValueError, match="device"):
            x + 1


# --- xbp -----------------------------------------------------------------------------------------


Bits = dict[str, bytes]


def recurrent(name: str) -> nn.Layer:
    return nn.Sequential(getattr(nn, name)(5, 4, rng=0), nn.LastTimeStep())


def run(
    capture: bool,
    model: nn.Layer | None = None,
    loss: Any = None,
    optimizer: Any = optim.SGD,
    shape: tuple[int, ...] = (18, 5),
    precision: str = "float32",
) -> Bits:
    """The bits of parameters and optimizer state after two epochs on the current device."""
    model = model or nn.Linear(5, 3, rng=0)
    updates = optimizer(model.parameters(), lr=0.01)
    how = {"rng": 1, "capture": capture, "precision": precision}
    trainer = xbp.Trainer(model, loss or nn.MSELoss(), updates, **how)
    x = np.random.default_rng(2).normal(size=shape).astype("float32")
    trainer.fit(x, xbp.to_numpy(model(xbp.asarray(x))) + 1, epochs=2, batch_size=4)
    found = {**model.state_dict(), **updates.state_dict()}
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


@pytest.fixture(autouse=True)
def _on_cupy() -> None:
    xbp.set_backend("cupy")


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.L1Loss, nn.HuberLoss])
def test_losses_are_captured(loss: Any) -> None:
    assert run(True, loss=loss()) == run(False, loss=loss())


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_long_recurrences_are_captured(name: str) -> None:
    shape = (18, 12, 5)
    eager, captured = (run(how, recurrent(name), shape=shape) for how in (False, True))
    assert captured == eager


def convolutions() -> nn.Layer:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1, rng=1), nn.Conv2d(6, 3, 1, rng=2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(27, 8, rng=3), nn.ReLU(), nn.Linear(8, 3, rng=4)),
    )


def test_branches_share_no_memory() -> None:
    """Captured, work of a branch is done after that of the other; eagerly, before it."""
    eager, captured = (
        run(how, convolutions(), optimizer=optim.Adam, shape=(18, 2, 8, 8)) for how in (False, True)
    )
    assert captured == eager


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_branch_reads_is_kept(kept: bool) -> None:
    """As `side_by_side` demands; without that, the other branch gets its memory."""
    x, found = cupy.arange(300, dtype="f4"), cupy.zeros((2, 300), "f4")
    graph = CuPyGraph(cupy.cuda.Device())

    def work() -> None:
        read = [x * 2]
        side_by_side(lambda: cupy.add(read[0] if kept else read.pop(), 1, out=found[0]),
                     lambda: cupy.add(x * 3, 1, out=found[1]))  # fmt: skip

    graph.warm_up(work)
    graph.record(work)
    graph.replay()
    two, three = (found.get() - 1) / np.arange(300).clip(1)
    assert (three[1:] == 3).all()
    assert (two[1:] == 2).all() == kept


def convolutional() -> nn.Layer:
    """Kernels for few channels and for many, the latter with each stride, dilation and group."""
    wide = [
        nn.Conv2d(4, 32, 3, padding=1, rng=1),
        *(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(32, 32, 3, stride=2, padding=2, groups=2, rng=2),
        nn.Conv2d(32, 20, 3, padding=2, dilation=2, rng=3),
    ]
    return nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.ReLU(), *wide, nn.Flatten())


def test_convolutions_are_captured() -> None:
    eager, captured = (run(how, convolutional(), shape=(10, 1, 12, 12)) for how in (False, True))
    assert captured == eager


def test_small_networks_whole_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their loss, in two launches a step; the last batch of an epoch is smaller."""
    monkeypatch.setenv("XBP_WHOLE", "all")
    table = registry.named(cuda.implementations())
    monkeypatch.setitem(registry._tables, cupy.ndarray, table)
    computed: list[Any] = []
    step = whole_run.Run.step
    monkeypatch.setattr(
        whole_run.Run, "step", lambda *given: (computed.append(given[1].size), step(*given))[1]
    )
    x = np.random.default_rng(2).normal(size=(10, 1, 9, 9)).astype("f4")
    losses = []
    for capture in (True, False):
        conv, linear = nn.Conv2d(1, 3, 3, padding=1, rng=0), nn.Linear(48, 5, rng=1)
        model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear)
        adam = optim.Adam(model.parameters())
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), adam, rng=0, capture=capture)
        losses.append(trainer.fit(x, np.arange(10, dtype="u1") % 5, epochs=2, batch_size=4)["loss"])
    assert losses[0] == losses[1]
    assert computed == [4, 4, 2, 2, *2 * (4, 4, 2)]  # warm up and record, then eager steps


def of_images() -> nn.Layer:
    return nn.Sequential(
        *(nn.Conv2d(8, 16, 3, padding=1, rng=0), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, stride=2, rng=1), nn.Flatten(), nn.Linear(64, 3, rng=2)),
    )


def of_sequences() -> nn.Layer:
    return nn.Sequential(
        *(nn.Conv1d(6, 16, 3, padding=1, rng=0), nn.ReLU()),
        *(nn.MultiheadAttention(8, 2, rng=2), nn.LastTimeStep(), nn.Linear(8, 3, rng=3)),
    )


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize(("make", "shape"), [(of_images, (8, 6, 6)), (of_sequences, (6, 8))])
def test_products_by_cublas_are_captured(
    make: Any, shape: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of matrices and of stacks of them, also of 16 bits, in both branches of a backward."""
    multiplied: list[int] = []

    def multiply(a: Any, b: Any, name: str) -> Any:
        multiplied.append(a.ndim)
        return plainly(a, b, name)

    plainly = short.product
    monkeypatch.setattr(short, "product", multiply)
    monkeypatch.setattr(short, "LEAST", 0)
    monkeypatch.setattr(product, "LEAST_LARGE", 0)
    eager, captured = (
        run(how, make(), shape=(10, *shape), precision=precision) for how in (False, True)
    )
    assert captured == eager
    assert set(multiplied) == ({2, 3} if precision in cublas.SHORT else set())


def rules() -> list[Any]:
    found = [it for it in vars(optim).values() if isinstance(it, type)]
    return [it for it in found if issubclass(it, optim.Optimizer) and it is not optim.Optimizer]


@pytest.mark.parametrize("rule", rules())
def test_every_optimizer_is_captured(rule: Any) -> None:
    def model() -> nn.Layer:
        return nn.Linear(5, 3, bias=rule is not optim.Muon, rng=0)  # which takes matrices alone

    assert run(True, model(), optimizer=rule) == run(False, model(), optimizer=rule)


@pytest.mark.parametrize("capture", [False, True])
def test_the_second_device(capture: bool) -> None:
    with xbp.use_backend("cupy", device=1):
        found = run(capture)
    assert found == run(capture)


@pytest.mark.parametrize("capture", [False, True])
def test_the_second_device_in_another_thread(capture: bool) -> None:
    """The setting applies to all threads."""
    found: list[Any] = []

    def there() -> None:
        try:
            found.append(run(capture))
        except Exception as error:
            found.append(error)

    wanted = run(capture)
    xbp.set_backend("cupy", device=1)
    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    assert found == [wanted]


def test_kernels_refuse_arrays_of_another_device_than_the_current_one() -> None:
    x = xbp.asarray(np.ones((3, 4), "f4"))
    with cupy.cuda.Device(1):
        with pytest.raises(InputError, match="device 1 cannot use an array of device 0"):
            primitives.tanh(x)
        layer = nn.Linear(4, 2, rng=0)  # made on the device of `set_backend`
        y, backward = layer.forward(x)
        assert y.device.id == backward(y).device.id == 0


def test_threads_of_one_device_compute_what_one_does() -> None:
    """Each with a graph of its own, at the same time."""
    wanted, found = run(True), []
    threads = [threading.Thread(target=lambda: found.append(run(True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 3


@pytest.mark.parametrize("capture", [False, True])
def test_kernels_that_begin_early(capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched by the driver itself, with its handles, streams and contexts."""
    wanted, machine = run(capture), launch.machine_for("cupy")
    launcher = dependent.Launcher(cupy)
    monkeypatch.setattr(machine, "dependent", launcher)
    assert run(capture) == wanted
    assert launcher.drivers[0] is not None
