"""Means over an epoch: what ranks add up of them, and what they take of the sums."""

from __future__ import annotations

import numpy as np
import pytest

from xbp.training.metrics.averages import Mean


@pytest.mark.parametrize(
    ("summed", "added", "values"), [(False, [2, 12, 2, 3], [2, 2]), (True, [1, 4, 2, 3], [8, 10])]
)
def test_sums_over_shares_become_the_values_of_whole_batches(
    summed: bool, added: list[float], values: list[float]
) -> None:
    mean = Mean("loss", summed=summed)
    for size, value in ((2, 1.0), (3, 4.0)):
        mean.add(size, np.asarray(value))
    np.testing.assert_array_equal(mean.addends(), added)
    mean.take_sums(np.array([8.0, 10.0, 4.0, 5.0]))
    assert (mean.values, mean.sizes) == (values, [4, 5])
    assert all(type(size) is int for size in mean.sizes)
    assert mean.compute() == (18 if summed else 2)
    mean.add(1, np.asarray(6.0))  # only what has come since is added up
    np.testing.assert_array_equal(mean.addends(), [6, 1])
    mean.take_sums(np.array([6.0, 0.0]))  # a batch without weight
    assert mean.values == [*values, 6] and mean.sizes == [4, 5, 0]


def test_a_share_without_samples_adds_nothing() -> None:
    mean = Mean("sum", lambda prediction, target: pytest.fail("there is no mean"), summed=True)
    mean.update(np.zeros((0, 2)), np.zeros(0, np.int64))
    np.testing.assert_array_equal(mean.addends(), [0, 0])
