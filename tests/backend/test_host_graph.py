"""Graphs of the host: what is recorded is replayed on the same memory, anything else is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import primitives
from xbp.backend import (
    RECORDING,
    NotMadeError,
    ReplayError,
    array_namespace,
    backend_of,
    check_beside,
    graph_for,
    is_lost,
    on_host,
)
from xbp.backend.host_graph import MOST_BYTES, HostGraph
from xbp.backend.recorded import CREATION, FUNCTIONS, NAMESPACE, RecordedArray
from xbp.errors import BackendError, InputError


def recorded(function: Callable[..., object], *arrays: Any) -> HostGraph:
    """A recording of a function of arrays that it is lent."""
    graph = graph_for(arrays[0])
    assert isinstance(graph, HostGraph)
    graph.record(lambda: function(*map(graph.lend, arrays)))
    return graph


def a_matrix() -> Any:
    return np.random.default_rng(0).normal(size=(3, 4))


# --- what is recorded ---


def everything(xp: Any, x: Any, i: Any) -> list[Any]:
    """Operators, functions, views, changes in place."""
    y = xp.zeros(x.shape, dtype=x.dtype)
    y[...] = 2 * x - 1 / (x + 9)
    y[1:, 0] += 3.0
    y *= -x
    rows = xp.take(y, i, axis=0)
    rows[0, ...] = xp.where(x[0, ...] > 0, 1.0, rows[0, ...])
    parts = xp.unstack(xp.permute_dims(y, (1, 0)))
    total = xp.sum(rows) + xp.max(x, axis=1)
    total += xp.asarray(0.5)
    return [
        *(y, rows, parts[2], total, abs(-x), x @ xp.matrix_transpose(y), xp.reshape(y, (2, 6))),
        *(xp.concat([x, y]), xp.stack([x, y], axis=1), xp.astype(x > 0, xp.int64) % 2),
        *(xp.argmax(x, axis=1), xp.sort(x, axis=1), xp.expand_dims(x, axis=0), x.T.mT),
        *(xp.full((2, 2), 7.0), xp.cumulative_sum(x, axis=0), x**2, (x < 0) | (x == x)),
        xp.broadcast_to(x[:, :1], (3, 4)),
    ]


def test_a_replay_computes_what_numpy_computes_bit_for_bit() -> None:
    x, i = a_matrix(), np.asarray([2, 0])
    found: list[Any] = []
    graph = recorded(lambda x, i: found.extend(everything(array_namespace(x), x, i)), x, i)
    for new in (a_matrix(), -a_matrix(), 1e3 * a_matrix()):
        x[...], i[...] = new, i[::-1].copy()
        graph.replay()
        for own, expected in zip(found, everything(np, x, i), strict=True):
            assert own.dtype == expected.dtype
            assert np.array_equal(graph.take_back(own), expected)


def test_every_function_that_is_listed_is_numpys() -> None:
    for name in FUNCTIONS | CREATION:
        assert callable(getattr(np, name))
        assert getattr(NAMESPACE, name).args[0] is getattr(np, name)


def test_a_recording_changes_nothing_and_keeps_its_memory() -> None:
    x, y = a_matrix(), a_matrix()

    def function(x: Any, y: Any) -> None:
        y += x
        y[0, 0] = 5.0
        y *= 2.0

    graph = recorded(function, x, y)
    assert np.array_equal(y, a_matrix())
    graph.replay()
    after = (a_matrix() + x) * 2
    after[0, 0] = 10.0
    assert np.array_equal(y, after)
    addresses = [array.ctypes.data for array in graph.kept]
    for _ in range(5):
        graph.replay()
    assert [array.ctypes.data for array in graph.kept] == addresses


def test_a_replay_ends_before_its_changes_where_the_loss_is_not_finite() -> None:
    loss, parameter = np.asarray(1.0), np.zeros(2)

    def function(loss: Any, parameter: Any) -> None:
        assert not is_lost(loss)
        parameter += 1.0

    graph = recorded(function, loss, parameter)
    for value, made in ((2.0, True), (math.nan, False), (-math.inf, False), (0.0, True)):
        loss[...], parameter[...] = value, 0.0
        if made:
            graph.replay()
        else:
            with pytest.raises(NotMadeError):
                graph.replay()
        assert parameter.tolist() == [made, made]
    loss[...] = math.inf
    with pytest.raises(NotMadeError):
        recorded(function, loss, parameter)
    assert not on_host(RecordedArray(loss))


def test_a_call_that_fails_is_no_step_that_can_be_made_again() -> None:
    x, y = np.ones(2), np.ones(2)
    graph = recorded(lambda x, y: y.__iadd__(x), x, y)
    graph.calls.append(lambda: [][0])
    with pytest.raises(ReplayError, match=r"^a recorded step has failed \(IndexError: .*\); train"):
        graph.replay()


# --- what is refused ---

OUTSIDE = np.ones(3)

REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "float": (lambda x: float(x[0]), "is read"),
    "int": (lambda x: int(x[0]), "is read"),
    "bool": (lambda x: 1 if x[0] > 0 else 0, "is read"),
    "index": (lambda x: [1, 2][x[0]], "is read"),
    "len": (len, "is read"),
    "iteration": (list, "is read"),
    "math": (lambda x: math.exp(x[0]), "is read"),
    "asarray": (np.asarray, "is read"),
    "to_numpy": (xbp.to_numpy, "is read"),
    "xbp.asarray": (xbp.asarray, "is read"),
    "a mask": (lambda x: x[x > 0], "an index of type RecordedArray"),
    "an array as an index": (lambda x: x[np.asarray([0])], "an index of type ndarray"),
    "a shape from values": (lambda x: NAMESPACE.arange(x[0]), "arguments of arange"),
    "nonzero": (lambda x: NAMESPACE.nonzero(x), "numpy's nonzero"),
    "repeat": (lambda x: NAMESPACE.repeat(x, x), "numpy's repeat"),
    "another array": (lambda x: x + OUTSIDE, "outside of parameters"),
    "another array first": (lambda x: OUTSIDE * x, "outside of parameters"),
    "another array of a function": (lambda x: NAMESPACE.concat([x, OUTSIDE]), "outside of param"),
    "another array of a primitive": (lambda x: primitives.add_scaled(x, 1.0, OUTSIDE), "."),
    "one made on the host": (lambda x: x + backend_of(x).asarray([1.0, 2.0, 3.0]), "outside of"),
    "one that was kept": (lambda x: x + RecordedArray(OUTSIDE), "computed unseen, or kept"),
    "one computed by numpy": (lambda x: x + RecordedArray(np.sqrt(x.values)), "computed unseen"),
    "too much memory": (lambda x: NAMESPACE.zeros(MOST_BYTES // 8 + 1), "more than 4 MiB"),
    "a look after a change": (lambda x: (x.__iadd__(1.0), is_lost(x[0])), "before its last loss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_seen_is_refused_in_a_sentence(name: str) -> None:
    function, reason = REFUSED[name]
    x = np.ones(3)
    with pytest.raises((InputError, BackendError), match=reason) as error:
        recorded(function, x)
    assert "\n" not in str(error.value)
    assert x.tolist() == [1, 1, 1]
    assert RECORDING.tape is None


@pytest.mark.parametrize("function", [np.maximum, np.add, np.multiply])
def test_functions_of_numpy_refuse_recorded_arrays(function: Any) -> None:
    with pytest.raises(TypeError, match="does not support ufuncs"):
        recorded(lambda x: function(x, 1.0), np.ones(3))


def test_a_recorded_array_is_not_one_of_numpy() -> None:
    mine, other = RecordedArray(np.ones(3)), np.ones(3)
    with pytest.raises(BackendError):
        check_beside("this", "an array", mine, "the other is", other)
    assert repr(mine) == "RecordedArray(shape=(3,), dtype=float64)"
    assert array_namespace(mine) is NAMESPACE
