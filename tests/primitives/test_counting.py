"""bincount against a plain count, on every backend, without a wait."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.primitives import bincount
from xbp.testing import assert_no_host_sync


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16"])
@pytest.mark.parametrize("n", [0, 1, 100])
def test_bincount_counts_what_is_in_range(backend: xbp.Backend, n: int, dtype: str) -> None:
    x = np.random.default_rng(n).integers(-3, 12, n)
    counts = bincount(xbp.asarray(x, dtype=dtype), 9)
    assert xbp.to_numpy(counts).tolist() == [np.sum(x == k) for k in range(9)]
    assert xbp.to_numpy(counts).dtype == np.int64


def test_bincount_does_not_wait_for_the_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        x = xbp.asarray([2, 0, 2])
        with assert_no_host_sync():
            counts = bincount(x, 4)
    assert xbp.to_numpy(counts).tolist() == [1, 0, 2, 0]


def test_bincount_is_exact_where_float32_is_not() -> None:
    n = 2**24 + 1
    assert int(np.float32(n)) != n
    assert bincount(np.zeros(n, np.int8), 2).tolist() == [n, 0]
