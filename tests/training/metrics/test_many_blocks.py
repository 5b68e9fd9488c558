"""Values and keys that wait on a device: any number of them is joined a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xbp
from xbp.backend import graph_for, joined
from xbp.testing import emulated_graphs
from xbp.training.metrics.accuracy import Accuracy
from xbp.training.metrics.averages import MOST_WAITING, Mean


@pytest.fixture(params=["array_api_strict", "torch"])
def standin(request: pytest.FixtureRequest) -> Iterator[Any]:
    pytest.importorskip(request.param)
    with xbp.use_backend(request.param) as backend, emulated_graphs():
        yield backend


@pytest.mark.parametrize("count", [1, 8, 9, 65])
def test_arrays_are_joined_in_order(count: int) -> None:
    parts = [np.arange(i, i + 2) for i in range(0, 2 * count, 2)]
    np.testing.assert_array_equal(joined(np, parts), np.arange(2 * count))


@pytest.mark.parametrize("weighted", [False, True])
def test_no_join_of_values_uploads_a_table_of_pointers(standin: Any, weighted: bool) -> None:
    """Which a recording refuses above 8 arrays."""
    mean, values = Mean("m"), [standin.asarray(float(i), dtype="float32") for i in range(40)]
    for value in values:
        mean.add(value if weighted else 1, value)
    graph_for(values[0]).record(mean._join)
    assert len(mean.waiting) == 1


def test_no_join_of_keys_uploads_a_table_of_pointers(standin: Any) -> None:
    metric = Accuracy()
    for i in range(20):
        metric.update(standin.asarray([[0.0, 1.0]]), standin.asarray([i % 2]))
    graph_for(metric._waiting[0]).record(lambda: joined(standin.xp, metric._waiting))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_blocks_that_wait_are_few_and_the_mean_is_that_of_all(backend: str, weighted: bool) -> None:
    count = 3 * MOST_WAITING + 5
    with xbp.use_backend(backend) as found:
        mean = Mean("m")
        for i in range(count):
            value = found.asarray(float(i), dtype="float64")
            mean.add(value if weighted else i, value)
            assert len(mean.waiting) < MOST_WAITING and len(mean.waiting_sizes) <= MOST_WAITING
        mean.add_all(list(range(3)), found.asarray([0.0, 0.0, 0.0])) if not weighted else None
        expected = sum(i * i for i in range(count)) / (sum(range(count)) + 3 * (not weighted))
        assert mean.compute() == pytest.approx(expected, rel=1e-12)
