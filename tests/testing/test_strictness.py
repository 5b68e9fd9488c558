"""array_api_strict as strict as CuPy: devices, dtypes, numpy arrays, the current device, values."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn
from xbp.backend import LIBRARIES, find_backend, graph_for
from xbp.errors import BackendError
from xbp.testing import (
    RecordingError,
    as_strict_as_cupy,
    assert_no_host_sync,
    emulated_graphs,
)
from xbp.testing.cupy_rules import SILENTLY_NUMPY, UPLOADS_NUMPY

pytest.importorskip("array_api_strict")


@pytest.fixture
def xp() -> Iterator[Any]:
    with xbp.use_backend("array_api_strict") as backend, as_strict_as_cupy():
        yield backend.xp


def host(array: Any) -> Any:
    return xbp.to_numpy(array).tolist()


# --- devices and dtypes ---


def test_a_device_is_compared_and_nothing_else(xp: Any) -> None:
    x, y = xp.zeros(1), xp.ones(1)
    assert x.device == y.device
    assert x.device is not x.device
    assert x.device != "device1"
    assert x.device != 1
    reference = weakref.ref(x.device)
    assert reference() is None
    for use in (hash, lambda d: {d}, lambda d: {d: 1}):
        with pytest.raises(TypeError, match="unhashable"):
            use(x.device)  # type: ignore[operator]
    with pytest.raises(AttributeError):
        x.device.id = 1


def test_dtypes_equal_numpys(xp: Any) -> None:
    x = xp.zeros(1, dtype=xp.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert x.dtype == np.float32 == x.dtype
        assert np.dtype("float32") == x.dtype
        assert x.dtype != np.float64
        assert hash(x.dtype) == hash(np.dtype("float32"))
        assert x.dtype != "nothing"


def test_a_numpy_scalar_takes_part_in_promotion(xp: Any) -> None:
    x = xp.asarray([1.0, 2.0], dtype=xp.float32)
    assert (2.0 * x).dtype == xp.float32
    assert (np.float64(2) * x).dtype == (x * np.float64(2)).dtype == xp.float64
    with pytest.raises(TypeError):
        x *= np.float64(2)


def test_a_backend_has_a_hash(xp: Any) -> None:
    assert hash(xbp.get_backend()) == hash(find_backend("array_api_strict"))


# --- numpy arrays ---


@pytest.mark.parametrize("name", SILENTLY_NUMPY)
def test_some_functions_make_numpy_of_numpy(name: str, xp: Any) -> None:
    given: dict[str, tuple[Any, ...]] = {
        "astype": (np.ones((1, 2)), "int64"), "broadcast_arrays": (np.ones(2), np.ones(2)),
        "permute_dims": (np.ones((1, 2)), (1, 0)), "repeat": (np.ones(2), 2),
        "reshape": (np.ones(2), (2, 1)), "squeeze": (np.ones((1, 2)), 0),
        "take": (np.ones(2), np.zeros(1, int)),
    }  # fmt: skip
    result = getattr(xp, name)(*given.get(name, (np.ones((1, 2)),)))
    assert isinstance(result, np.ndarray | np.generic | tuple | list)


@pytest.mark.parametrize("name", UPLOADS_NUMPY)
def test_some_functions_place_numpy(name: str, xp: Any) -> None:
    more = (0.5,) if name == "full_like" else ((2, 1),) if name == "tile" else ()
    result = getattr(xp, name)(np.ones((2, 2), complex if name == "imag" else float), *more)
    assert type(result) is type(xp.zeros(1))
    assert result.device == xp.zeros(1).device
    with emulated_graphs(), pytest.raises(RecordingError, match="copies from the host"):
        graph_of(xp).record(lambda: getattr(xp, name)(np.ones((2, 2)), *more))


def graph_of(xp: Any) -> Any:
    graph = graph_for(xp.zeros(1))
    assert graph is not None
    return graph


REFUSED: list[tuple[type[Exception], Callable[[Any, Any], Any]]] = [
    (TypeError, lambda xp, x: x + np.ones(2)),
    (TypeError, lambda xp, x: np.ones(2) + x),
    (TypeError, lambda xp, x: x.__iadd__(np.ones(2))),
    (TypeError, lambda xp, x: x * np.array(2.0)),
    (TypeError, lambda xp, x: np.exp(x)),
    (TypeError, lambda xp, x: xp.exp(np.ones(2))),
    (TypeError, lambda xp, x: xp.maximum(x, np.ones(2))),
    (ValueError, lambda xp, x: x.__setitem__(..., np.ones(2))),
]


@pytest.mark.parametrize(("kind", "mix"), REFUSED)
def test_all_else_refuses_numpy(kind: type[Exception], mix: Any, xp: Any) -> None:
    with pytest.raises(kind):
        mix(xp, xp.asarray([1.0, 2.0]))


def test_a_numpy_gradient_is_refused(xp: Any) -> None:
    """A numpy gradient with the parameter's dtype and shape is accepted, as on CuPy."""
    parameter = nn.Parameter(xp.asarray([1.0, 2.0]))
    with pytest.raises(BackendError):
        parameter.add_grad(np.ones(2))


# --- the current device ---


CREATIONS: list[Callable[[Any, Any], Any]] = [
    lambda xp, d: xp.zeros(2, device=d),
    lambda xp, d: xp.arange(2, device=d),
    lambda xp, d: xp.full((2,), 1.0, device=d),
    lambda xp, d: xp.asarray([1.0], device=d),
    lambda xp, d: xp.eye(2, device=d),
]


@pytest.mark.parametrize("create", CREATIONS)
def test_creation_ignores_the_device_asked_for(create: Any, xp: Any) -> None:
    other = xp.Device("device2")
    assert create(xp, other).device == xp.Device("device1")
    with xbp.use_backend("array_api_strict", device="device2"):
        assert create(xp, xp.Device("device1")).device == other
        assert xbp.asarray([1.0]).device == other
    assert create(xp, other).device == xp.Device("device1")


def test_a_result_lies_on_the_current_device_and_a_view_stays(xp: Any) -> None:
    other = xp.Device("device2")
    x = find_backend("array_api_strict", device="device2").asarray(np.ones((2, 2)))
    assert x.device == x[0, ...].device == x.T.device == xp.reshape(x, (4,)).device == other
    assert (2 * x).device == xp.exp(x).device == xp.zeros_like(x).device == xp.Device("device1")
    with pytest.raises(ValueError, match="different devices"):
        x += 2 * x


def test_a_thread_begins_with_the_first_device() -> None:
    found = []
    with xbp.use_backend("array_api_strict", device="device2") as backend, as_strict_as_cupy():
        xp, x = backend.xp, xbp.asarray([1.0])
        thread = threading.Thread(target=lambda: found.append((2 * x).device))
        thread.start()
        thread.join()
        assert (2 * x).device == xp.Device("device2")
    assert found == [xp.Device("device1")]


def test_what_lies_on_the_host_stays_there() -> None:
    with xbp.use_backend("array_api_strict", device="CPU_DEVICE") as backend, as_strict_as_cupy():
        x = xbp.asarray([1.0])
        assert (2 * x).device == backend.xp.zeros(1).device == backend.device
        assert float(x[0]) == 1.0


# --- other values ---


def test_indices_out_of_range_wrap(xp: Any) -> None:
    x = xp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    three, row = xp.asarray([3, -1, 4]), xp.asarray([2])
    assert host(xp.take(x, three, axis=1)) == [[1, 3, 2], [4, 6, 5]]
    assert host(xp.take_along_axis(x, xp.asarray([[5], [3]]), axis=1)) == [[3], [4]]
    assert host(x[row, row]) == [3]
    assert host(x[..., 1][three]) == [5, 5, 2]
    with pytest.raises(IndexError):
        x[0, 3]


def test_argmax_finds_any_nan(xp: Any) -> None:
    nan = float("nan")
    x = xp.asarray([[nan, 1.0, nan, 2.0], [1.0, 3.0, 3.0, 0.0]])
    assert host(xp.argmax(x, axis=1)) == [2, 1]
    assert host(xp.argmin(x, axis=1, keepdims=True)) == [[2], [3]]
    assert host(xp.argmax(x)) == 2


def test_quotients_of_floats_are_rounded_down(xp: Any) -> None:
    x, y = xp.asarray([1.0, -7.0]), xp.asarray([0.1, 2.0])
    assert host(x // y) == host(xp.floor_divide(x, y)) == [10, -4]
    np.testing.assert_allclose(host(x % y), [1 - 10 * 0.1, 1.0])
    assert np.isnan(host(x % float("inf"))[0])
    assert host(1.0 // y) == [10, 0]
    z = xp.asarray([1.0, -7.0])
    z //= y
    assert host(z) == [10, -4]
    assert host(xp.asarray([7]) // 2) == [3]


# --- blocks ---


def test_blocks_nest_and_leave_nothing_behind() -> None:
    strict: Any = LIBRARIES["array_api_strict"].namespace()
    owners = (strict, type(strict.zeros(1)), strict.Device, LIBRARIES["array_api_strict"])
    before = [dict(vars(owner)) for owner in owners]

    def nested() -> None:
        with emulated_graphs(), as_strict_as_cupy():
            with assert_no_host_sync():
                pass
            with pytest.raises(TypeError):
                hash(strict.Device("device1"))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        nested()
    assert [dict(vars(owner)) for owner in owners] == before
    assert hash(strict.Device("device1")) == hash(strict.Device("device1"))


def test_without_array_api_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "array_api_strict", None)
    with pytest.raises(BackendError, match="not installed"), as_strict_as_cupy():
        pass


# --- recordings ---


@pytest.fixture(params=["array_api_strict", "torch"])
def recording(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip(request.param)
    with xbp.use_backend(request.param) as backend, emulated_graphs():
        yield backend.xp


def test_what_a_recording_makes_is_garbage_until_the_first_replay(recording: Any) -> None:
    x, made = xbp.asarray([1.0, 2.0]), []
    graph = graph_of(recording)
    graph.record(lambda: made.extend([2 * x, x > 1, recording.astype(x, recording.int64)]))
    assert np.isnan(host(made[0])).all()
    assert host(made[2]) != [1, 2]
    graph.replay()
    assert [host(array) for array in made] == [[2, 4], [False, True], [1, 2]]


def test_scalars_shapes_and_addresses_are_frozen(recording: Any) -> None:
    rate, holder, count = [0.5], {"p": xbp.asarray([1.0, 1.0])}, [2]
    out = xbp.asarray([0.0, 0.0])

    def step() -> None:
        holder["p"] = holder["p"] - rate[0] * holder["p"]  # changes its argument
        out[: count[0]] += rate[0]

    graph = graph_of(recording)
    first = holder["p"]
    graph.record(step)
    rate[0], count[0] = 100.0, 1
    graph.replay()
    graph.replay()
    assert host(out) == [1, 1]
    assert host(first) == [1, 1]
    assert host(holder["p"]) == [0.5, 0.5]


def test_a_refusal_leaves_the_recording_open(recording: Any) -> None:
    x = xbp.asarray([1.0, 2.0])

    def step() -> None:
        x[...] = 2 * x
        with pytest.raises(RecordingError, match="waits for the device"):
            float(x[0])
        x[...] = x + 1

    graph = graph_of(recording)
    graph.record(step)
    assert host(x) == [1, 2]
    graph.replay()
    assert host(x) == [3, 5]


@pytest.mark.parametrize("ask", ["done", "wait", "values"])
def test_a_wait_for_the_stream_ends_the_recording(ask: str, recording: Any) -> None:
    x = xbp.asarray([1.0, 2.0])
    found = xbp.backend.fetch(x)

    def step() -> None:
        x[...] = 2 * x
        with pytest.raises(RecordingError, match="waits for the device"):
            getattr(found, ask)()

    with pytest.raises(RecordingError, match="ended by a wait"):
        graph_of(recording).record(step)
    assert host(x) == [1, 2]


def test_lists_are_taken_as_they_are(recording: Any) -> None:
    parts = [xbp.asarray([1.0]), xbp.asarray([2.0])]
    out = xbp.asarray([0.0, 0.0])

    def step() -> None:
        out[...] = recording.concat(parts)
        parts.clear()

    graph = graph_of(recording)
    graph.record(step)
    graph.replay()
    assert host(out) == [1, 2]


def test_a_product_is_recorded_by_way_of_a_primitive(recording: Any) -> None:
    x = xbp.asarray(np.eye(2))
    with pytest.raises(RecordingError, match=r"write xbp\.primitives\.matmul"):
        graph_of(recording).record(lambda: recording.matmul(x, x))
    graph, out = graph_of(recording), []
    graph.record(lambda: out.append(xbp.primitives.matmul(x, x)))
    graph.replay()
    assert host(out[0]) == [[1, 0], [0, 1]]


def test_another_thread_is_not_recorded(recording: Any) -> None:
    x, read = xbp.asarray([1.0, 2.0]), []

    def step() -> None:
        thread = threading.Thread(target=lambda: read.append(host(x)))
        thread.start()
        thread.join()

    graph_of(recording).record(step)
    assert read == [[1, 2]]
