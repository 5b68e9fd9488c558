"""Rows at positions on the device, emulated on the CPU, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from accelerators.emulation.machine import Emulation
from accelerators.kernels.reference import needs_a_compiler

from xbp.accelerators.cuda import passes, rows

pytestmark = needs_a_compiler
TABLES = [((), "int64"), ((784,), "float32"), ((3, 5), "uint8"), ((7,), "float16"), ((3,), "bool")]


def tables(machine: Emulation, count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 200, (count, *shape)).astype(dtype) for shape, dtype in TABLES]
    return [machine.guarded(table) for table in made]


@pytest.mark.parametrize("index", [0, 6])
def test_take_row(index: int, machine: Emulation) -> None:
    given = tables(machine, 7)
    found = rows.take_row(machine.guarded(np.array([index])), *given)
    assert machine.launches == ["take"] and machine.grids == [(1, 5)]
    for row, table in zip(found, given, strict=True):
        assert row.dtype == table.dtype and np.array_equal(row, table[index])


@pytest.mark.parametrize("span", [(0, 128, 1), (1, 9, 3), (2, 3, 7)])
def test_gather(span: tuple[int, int, int], machine: Emulation) -> None:
    given = tables(machine, 50)
    order = machine.guarded(np.random.default_rng(1).permutation(300) % 50)
    found = rows.gather(order, machine.guarded(np.array(170)), span, *given)
    assert machine.launches == ["take"] and machine.grids == [(len(range(*span)), 5)]
    for taken, table in zip(found, given, strict=True):
        wanted = table[order[170 + np.arange(*span)]]
        assert taken.dtype == table.dtype and np.array_equal(taken, wanted)


@pytest.mark.parametrize("span", [(0, 40, 1), (1, 9, 3)])
def test_numbers_and_samples_of_a_step_in_one_launch(
    span: tuple[int, int, int], machine: Emulation
) -> None:
    rng = np.random.default_rng(0)
    places = machine.guarded(rng.integers(0, 50, (5, 3)))
    coefficients = machine.guarded(rng.normal(size=(5, 7, 2)).astype("f4"))
    images = machine.guarded(rng.normal(size=(50, 2, 7, 5)).astype("f4"))
    order = machine.guarded(rng.permutation(100) % 50)
    arrays = (images, *tables(machine, 50))
    for k in (3, 0):
        index = machine.guarded(np.array([k]))
        rows_of, batch = rows.take_step(index, order, span, (places, coefficients), arrays)
        for row, table in zip(rows_of, (places, coefficients), strict=True):
            assert row.dtype == table.dtype and np.array_equal(row, table[k])
        for taken, array in zip(batch, arrays, strict=True):
            wanted = array[order[places[k, 0] + np.arange(*span)]]
            assert taken.dtype == array.dtype and np.array_equal(taken, wanted)
    assert machine.launches == ["take"] * 2


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (1, 1, 1), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("span", [(0, 128, 1), (1, 9, 3), (2, 67, 1)])
def test_gathered_images_have_the_batch_innermost(
    shape: tuple[int, ...], span: tuple[int, int, int], dtype: str, machine: Emulation
) -> None:
    rng = np.random.default_rng(0)
    images = machine.guarded(rng.normal(size=(50, *shape)).astype(dtype))
    labels = machine.guarded(rng.integers(0, 10, 50))
    order = machine.guarded(rng.permutation(300) % 50)
    found = rows.gather(order, machine.guarded(np.array(170)), span, labels, images)
    assert machine.launches == ["take"]
    for taken, table in zip(found, (labels, images), strict=True):
        assert np.array_equal(taken, table[order[170 + np.arange(*span)]])
    assert found[1].transpose(1, 2, 3, 0).flags.c_contiguous
    (row,) = rows.take_row(np.array([3]), images)  # without a batch
    assert np.array_equal(row, images[3])


def test_rows_are_copied_in_words_that_divide_them(machine: Emulation) -> None:
    whole = machine.guarded(np.arange(8 * 48, dtype="uint8").reshape(8, 48))
    for size, first in ((48, 0), (24, 0), (12, 0), (6, 0), (3, 0), (16, 8), (16, 4), (16, 1)):
        # Rows of this size, the first at such an address.
        flat = whole.reshape(-1)[first : first + 4 * size].reshape(4, size)
        (row,) = rows.take_row(np.array([3]), flat)
        assert np.array_equal(row, flat[3])


def test_what_does_not_fit_is_declined() -> None:
    table, index = np.ones((4, 6)), np.array([1])
    assert rows.take_row(index, table) is not NotImplemented
    for wrong in [
        (np.array(1), table),
        (np.array([1], "i4"), table),
        (np.array([1, 2]), table),
        (index, table[:, ::2]),
        (index, table[:, :0]),
        (index,),
        (index, *[table] * 9),
    ]:
        assert rows.take_row(*wrong) is NotImplemented
    order, start = np.arange(4), np.array(0)
    assert rows.gather(order, start, (0, 2, 1), table) is not NotImplemented
    for given in [
        (order[::2], start, (0, 2, 1), table),
        (order.astype("i4"), start, (0, 2, 1), table),
        (order, np.array([0]), (0, 2, 1), table),
        (order, start, (0, 0, 1), table),
        (order, start, (0, 2, 1), table[::2]),
    ]:
        assert rows.gather(*given) is NotImplemented
    places, span = np.zeros((4, 3), int), (0, 2, 1)
    assert rows.take_step(index, order, span, (places,), (table,)) is not NotImplemented
    for step in [
        (np.array(1), order, span, (places,), (table,)),
        (index, order[::2], span, (places,), (table,)),
        (index, order, span, (places[:, 0],), (table,)),
        (index, order, span, (places.astype("f8"),), (table,)),
        (index, order, (0, 0, 1), (places,), (table,)),
        (index, order, span, (places,), (table[::2],)),
        (index, order, span, (places,), (table,) * 8),
    ]:
        assert rows.take_step(*step) is NotImplemented


@pytest.mark.parametrize("shape", [(), (3,), (3, 70, 5)])
def test_append_row(shape: tuple[int, ...], dtype: str, machine: Emulation) -> None:
    tables = [np.zeros((4, *shape), dtype), np.ones((9, 2), "int32")]
    tables = [machine.guarded(table) for table in tables]
    rng, index = np.random.default_rng(0), machine.guarded(np.array([1]))
    for k in (1, 2, 3):
        value = rng.normal(size=shape[::-1]).astype(dtype).T  # not row by row
        values = machine.guarded(value), machine.guarded(rng.integers(0, 9, 2).astype("int32"))
        before = [table.copy() for table in tables]
        assert rows.append_row(index, *tables, *values) is None
        for table, now, then in zip(tables, values, before, strict=True):
            then[k] = now
            assert np.array_equal(table, then)
        assert index.tolist() == [k + 1]
    assert machine.launches == ["append"] * 3


def test_what_cannot_be_appended_is_declined() -> None:
    table, index, value = np.zeros((4, 3)), np.array([1]), np.ones(3)
    for wrong in [
        (index.astype("i4"), table, value),
        (np.array([1, 2]), table, value),
        (index, table[::2], value),
        (index, table, value[None]),
        (index, table, value.astype("f4")),
        (index, table[:, :0], value[:0]),
        (index, *[table] * 9, *[value] * 9),
    ]:
        assert rows.append_row(*wrong) is NotImplemented
    assert index.tolist() == [1] and not table.any()


@pytest.mark.parametrize("size", [3, 300_001])
def test_rows_are_appended_in_the_launch_of_an_update(
    size: int, dtype: str, machine: Emulation
) -> None:
    p, q, g = (machine.guarded(np.full(size, value, dtype)) for value in (1, 3, 2))
    table, index = machine.guarded(np.zeros((4, 70), dtype)), machine.guarded(np.array([1]))
    value = machine.guarded(np.arange(70).astype(dtype))
    for count in (1, 2):
        with rows.appending(index, table, value):
            assert machine.launches == []
            for _ in range(count):
                passes.add_scaled([p, q], 0.5, [g, g])
        assert machine.launches == ["add_scaled"] * count
        machine.launches.clear()
    assert (p == 4).all() and (q == 6).all()
    assert index.tolist() == [3]
    assert np.array_equal(table, [0 * value, value, value, 0 * value])
    with rows.appending(index, table, g[0] * value):  # without an update
        pass
    assert machine.launches == ["append"] and index.tolist() == [4]
    assert np.array_equal(table[3], 2 * value)
    machine.launches.clear()
    with pytest.raises(ValueError, match="stop"), rows.appending(index, table, value):
        raise ValueError("stop")
    passes.add_scaled(p, 0.5, g)
    assert machine.launches == ["add_scaled"] and index.tolist() == [4]
    assert rows.appending(index, table[::2], value) is NotImplemented
