"""Kernels that only recorded steps call: rows of tables, and the loop over calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xbp import primitives
from xbp.accelerators.cpu import native, recorded, replay
from xbp.backend import RECORDING, ReplayError
from xbp.backend.host_graph import HostGraph
from xbp.backend.recorded import RecordedArray
from xbp.errors import InputError

if native.library() is None:
    pytest.skip("no kernels", allow_module_level=True)


def graph_of(function: Callable[..., object], *arrays: Any) -> HostGraph:
    graph = HostGraph()
    graph.record(lambda: function(*map(graph.lend, arrays)))
    return graph


def tables(rows: int) -> list[Any]:
    rng = np.random.default_rng(rows)
    return [
        rng.normal(size=(rows, 3)),
        rng.normal(size=(rows, 2, 5)).astype("float32"),
        rng.integers(0, 9, rows),
        rng.integers(0, 255, (rows, 7)).astype("uint8"),
    ]


def test_a_row_of_several_tables() -> None:
    index, found = np.asarray([0]), []
    given = tables(6)
    graph = graph_of(lambda i, *t: found.extend(primitives.take_row(i, *t)), index, *given)
    assert len(graph.calls) == 1
    for row in (4, 0, 5):
        index[0] = row
        graph.replay()
        for own, table in zip(found, given, strict=True):
            assert own.values.dtype == table.dtype
            assert np.array_equal(own.values, table[row])


@pytest.mark.parametrize("span", [(0, 4, 1), (1, 6, 2), (2, 3, 1), (0, 7, 3)])
def test_the_samples_of_a_batch(span: tuple[int, int, int]) -> None:
    given, found = tables(11), []
    order, start = np.random.default_rng(0).permutation(11), np.asarray(0)

    def function(order: Any, start: Any, *arrays: Any) -> None:
        found.extend(primitives.gather(order, start, span, *arrays))

    graph = graph_of(function, order, start, *given)
    for first in (4, 0, 2):
        start[...] = first
        graph.replay()
        reference = primitives.gather(order, start, span, *given)
        for own, expected in zip(found, reference, strict=True):
            assert own.values.dtype == expected.dtype
            assert np.array_equal(own.values, expected)


def test_results_are_appended() -> None:
    index, given = np.asarray([1]), tables(4)
    values = [np.array(table[0]) for table in tables(9)]
    mine, theirs = ([table.copy() for table in given] for _ in range(2))
    graph = graph_of(primitives.append_row, index, *mine, *values)
    assert index.tolist() == [1]
    for old, new in zip(given, mine, strict=True):
        assert np.array_equal(old, new)  # a recording changes nothing
    other = index.copy()
    for step in range(3):
        for value in values:
            value += 1
        graph.replay()
        primitives.append_row(other, *theirs, *values)
        assert index.tolist() == other.tolist() == [2 + step]
        for own, expected in zip(mine, theirs, strict=True):
            assert np.array_equal(own, expected)


def test_values_of_another_dtype_or_shape_are_left_to_the_reference() -> None:
    index, table = np.asarray([0]), np.zeros((4, 2))
    for value in (np.ones(2, np.float32), np.ones(1)):
        before = table.copy()
        graph = graph_of(primitives.append_row, index, table, value)
        assert len(graph.calls) > 1
        assert np.array_equal(table, before)
        index[0] = 2
        graph.replay()
        assert table[2].tolist() == [1, 1]
        assert table.sum() == 2
        index[0], table[...] = 0, 0.0


@pytest.mark.parametrize("row", [-1, 4, 2**40])
def test_no_row_beyond_a_table_is_read_or_written(row: int) -> None:
    order = np.zeros(8, np.int64)[2:6]  # beside it are rows of the table
    order[:] = 3, 2, 1, 0
    index, start = np.asarray([0]), np.asarray(0)
    table, value, found = np.arange(8.0).reshape(4, 2), np.zeros(2), []
    taken = graph_of(lambda i, t: primitives.take_row(i, t), index, table)
    appended = graph_of(primitives.append_row, index, table, value)

    def batch(order: Any, start: Any, table: Any) -> None:
        found.extend(primitives.gather(order, start, (0, 2, 1), table))

    gathered = graph_of(batch, order, start, table)
    before, held = table.copy(), found[0].values.copy()
    index[0] = row
    for graph in (taken, appended):
        with pytest.raises(ReplayError):
            graph.replay()
    assert index[0] == row
    start[...] = row if row < 0 else row - 1  # one of the two is inside for 4
    with pytest.raises(ReplayError):
        gathered.replay()
    start[...], order[:2] = 0, (1, row)
    with pytest.raises(ReplayError):
        gathered.replay()
    assert np.array_equal(table, before)
    assert np.array_equal(found[0].values, held)
    with pytest.raises(InputError, match="out of range"):
        graph_of(batch, order, start, table)


def product(a: Any, b: Any) -> Any:
    return [primitives.matmul(a, b)]


def slope(x: Any, dy: Any) -> Any:
    y, gradients = primitives.logistic(x)
    return [y, *gradients(dy)]


def affine(x: Any, weight: Any, dy: Any) -> Any:
    y, gradients = primitives.affine(x, weight)
    return [y, *gradients(dy)[:2]]


def loss(logits: Any, labels: Any) -> Any:
    return list(primitives.cross_entropy(logits, labels, 0.1))


KERNELS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "multiply_direct": (product, ((64, 128), (128, 64))),
    "pass_task": (slope, ((40, 50), (40, 50))),
    "affine": (affine, ((20, 100), (30, 100), (20, 30))),
    "affine of another order": (affine, ((20, 100), (30, -100), (20, -30))),
    "cross_entropy": (loss, ((40, 5), (40,))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_in_a_replay_computes_what_it_computes(name: str, dtype: str) -> None:
    function, shapes = KERNELS[name]
    rng, found = np.random.default_rng(1), []
    given: list[Any] = [
        rng.normal(size=shape if min(shape) > 0 else (-shape[1], shape[0])).astype(dtype)
        for shape in shapes
    ]
    given = [a if min(s) > 0 else a.T for a, s in zip(given, shapes, strict=True)]
    if function is loss:
        given[1] = rng.integers(0, 5, 40)
    graph = graph_of(lambda *lent: found.extend(function(*lent)), *given)
    for scale in (2, -1):
        for array in given:
            array[...] = rng.permuted(array, axis=0) * (1 if array.ndim == 1 else scale)
        graph.replay()
        for own, expected in zip(found, function(*given), strict=True):
            assert own.dtype == expected.dtype
            assert np.array_equal(own.values, expected)


def test_a_failing_call_is_the_last_one() -> None:
    """Calls of a loop: the first fails with memory order 1, the second would write."""
    index, table, value = np.asarray([0]), np.zeros((4, 2)), np.ones(2)

    def function(index: Any, table: Any, value: Any) -> None:
        primitives.take_row(index, table)
        primitives.append_row(index, table, value)

    graph = graph_of(function, index, table, value)
    assert len(graph.calls) == 1
    graph.replay()
    assert table.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    index[0] = 4
    with pytest.raises(ReplayError, match="xbp_take_rows_run has failed"):
        graph.replay()
    assert index[0] == 4
    assert table.sum() == 2


def test_all_arrays_of_a_task_must_be_named() -> None:
    from xbp.accelerators.cpu.calls import address, run

    x, y = np.ones((4, 16), np.float32), np.empty((4, 16), np.float32)
    task = native.Rows(x=address(x), y=address(y), n=4, c=16, threads=1)

    def function(lent: Any) -> None:
        run("softmax", x.dtype, task, (x,), (x,))

    with pytest.raises(InputError, match=r"^softmax reads or writes 'y', which is not"):
        graph_of(function, x)
    assert RECORDING.tape is None


def test_every_accelerator_of_numpy_has_a_recorded_one() -> None:
    from xbp.accelerators import cpu

    theirs = {function.__name__ for function in cpu.implementations()}
    mine = {function.__name__ for function in recorded.implementations()}
    assert mine - theirs == {"take_row", "gather", "append_row", "end_unless_finite"}
    assert theirs <= mine


def test_numbers_of_an_update_are_read_in_each_replay() -> None:
    """A coefficient, 0-d in memory, and a constant."""
    p, g, rate = np.ones(40, np.float32), np.full(40, 2.0, np.float32), np.asarray(0.5, np.float32)

    def function(p: Any, g: Any, rate: Any) -> None:
        primitives.add_scaled(p, rate, g)
        primitives.add_scaled([p], -0.25, [g])

    graph = graph_of(function, p, g, rate)
    for value in (0.5, 3.0, -1.0):
        p[...], rate[...] = 1.0, value
        graph.replay()
        assert p.tolist() == [1 + 2 * value - 0.5] * 40
    assert isinstance(replay.number(0.1, np.dtype("float32")), np.ndarray)
    assert replay.number(RecordedArray(rate), rate.dtype) is rate


def test_numbers_of_an_adaptive_step_are_read_in_each_replay(dtype: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [np.abs(rng.normal(size=(3, 40))).astype(dtype) for _ in range(4)]
    before, rate = [array.copy() for array in arrays], np.asarray(0.5, dtype)

    def function(rate: Any, *arrays: Any) -> None:
        p, m, v, g = ([array[i, ...] for i in range(3)] for array in arrays)
        primitives.adaptive_step(p, m, v, g, 0.9, 0.99, rate, 1.5, 1e-3)

    graph = graph_of(function, rate, *arrays)
    assert len(graph.calls) == 1
    for value in (0.5, 3.0):
        expected = [array.copy() for array in before]
        for array, copy in zip(arrays, before, strict=True):
            array[...] = copy
        rate[...] = value
        graph.replay()
        primitives.adaptive_step(*expected, 0.9, 0.99, value, 1.5, 1e-3)
        for own, other in zip(arrays, expected, strict=True):
            assert own.tobytes() == other.tobytes()
