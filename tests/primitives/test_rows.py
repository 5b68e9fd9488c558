"""Writing a row whose index is on the device."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.primitives import write_row
from xbp.testing import assert_no_host_sync


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("shape", [(), (3,), (1,), (4, 3), (2, 4, 3)])
def test_a_row_is_written_in_place_and_the_others_left_alone(
    backend: xbp.Backend, shape: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    host = rng.integers(-9, 9, (4, *shape)).astype(dtype)
    rows = xbp.asarray(host.copy(), dtype=dtype)
    for index in (2, 0, 3):
        host[index] = value = rng.integers(-9, 9, shape).astype(dtype)
        with assert_no_host_sync():
            write_row(rows, xbp.asarray([index]), xbp.asarray(value, dtype=dtype))
        assert np.array_equal(xbp.to_numpy(rows), host)


def test_what_is_not_a_number_stays_in_its_row() -> None:
    rows = np.array([[np.nan, 1.0], [2.0, 3.0]])
    write_row(rows, np.array([0]), np.array([5.0, 6.0]))
    assert rows.tolist() == [[5, 6], [2, 3]]
    write_row(rows, np.array([1]), np.array([np.inf, np.nan]))
    assert rows[0].tolist() == [5, 6]
