"""Rows whose numbers are on the device: written, and taken."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.primitives import append_row, gather, take_row
from xbp.testing import assert_no_host_sync


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (3,), (1,), (4, 3), (2, 4, 3)])
def test_a_row_is_written_in_place_and_the_others_left_alone(
    backend: xbp.Backend, shape: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    tables = [rng.integers(-9, 9, (4, *shape)).astype(dtype), rng.normal(size=(5, 2))]
    given = [xbp.asarray(table.copy(), dtype=table.dtype.name) for table in tables]
    index = xbp.asarray([1])
    for k in (1, 2, 3):
        values = rng.integers(-9, 9, shape).astype(dtype), rng.normal(size=2)
        for table, value in zip(tables, values, strict=True):
            table[k] = value
        with assert_no_host_sync():
            now = [xbp.asarray(np.asarray(value), dtype=value.dtype.name) for value in values]
            append_row(index, *given, *now)
        for found, table in zip(given, tables, strict=True):
            assert np.array_equal(xbp.to_numpy(found), table)
        assert xbp.to_numpy(index).tolist() == [k + 1]


def test_what_is_not_a_number_stays_in_its_row() -> None:
    rows, index = np.array([[np.nan, 1.0], [2.0, 3.0]]), np.array([0])
    append_row(index, rows, np.array([5.0, 6.0]))
    assert rows.tolist() == [[5, 6], [2, 3]]
    append_row(index, rows, np.array([np.inf, np.nan]))
    assert rows[0].tolist() == [5, 6]


@pytest.mark.parametrize("index", [0, 4])
def test_a_row_of_several_tables(backend: xbp.Backend, index: int) -> None:
    rng = np.random.default_rng(0)
    tables = [
        rng.integers(-9, 9, (5, *shape)).astype(dtype)
        for shape, dtype in (((3,), "int64"), ((), "float32"), ((2, 4), "float64"))
    ]
    given = [xbp.asarray(table, dtype=table.dtype.name) for table in tables]
    with assert_no_host_sync():
        found = take_row(xbp.asarray([index]), *given)
    for row, table in zip(found, tables, strict=True):
        assert np.array_equal(xbp.to_numpy(row), table[index])
        assert xbp.to_numpy(row).dtype == table.dtype


@pytest.mark.parametrize("span", [(0, 4, 1), (1, 5, 2), (2, 3, 1)])
def test_samples_of_a_batch_are_gathered(backend: xbp.Backend, span: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    order = rng.integers(0, 6, 13)
    arrays = [
        rng.integers(0, 9, (6, *shape)).astype(dtype)
        for shape, dtype in (((3, 5), "float32"), ((), "int64"), ((7,), "uint8"))
    ]
    given = [xbp.asarray(array, dtype=array.dtype.name) for array in arrays]
    numbers = xbp.asarray(order), xbp.asarray(np.asarray(8))
    with assert_no_host_sync():
        found = gather(*numbers, span, *given)
    for rows, array in zip(found, arrays, strict=True):
        assert np.array_equal(xbp.to_numpy(rows), array[order[8 + np.arange(*span)]])
        assert xbp.to_numpy(rows).dtype == array.dtype
