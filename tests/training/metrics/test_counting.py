"""Metrics that count: what ranks add up of them, and what they take of the sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xbp.training.metrics import Accuracy, ConfusionMatrix, F1Score, TopKAccuracy
from xbp.training.metrics.counting import CountingMetric

MAKERS: dict[str, Callable[[], CountingMetric]] = {
    "accuracy": Accuracy,
    "top 2": lambda: TopKAccuracy(2),
    "f1": lambda: F1Score(3),
    "confusion": lambda: ConfusionMatrix(3),
}
RNG = np.random.default_rng(0)
SCORES, LABELS = RNG.normal(size=(12, 3)), RNG.integers(0, 3, 12)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sums_over_shares_are_the_counts_of_all_batches(
    make: Callable[[], CountingMetric],
) -> None:
    """Two epochs, of which either share sees some samples of each."""
    shares, whole = (make(), make()), make()
    assert whole.addends().shape == (0,)
    for epoch in (slice(0, 5), slice(5, 12)):
        whole.update(SCORES[epoch], LABELS[epoch])
        for share, mine in zip(shares, (slice(0, 2), slice(2, None)), strict=True):
            share.update(SCORES[epoch][mine], LABELS[epoch][mine])
        sums = shares[0].addends() + shares[1].addends()
        assert sums.dtype == np.float64 and sums[0] == epoch.stop - epoch.start
        for share in shares:
            share.take_sums(sums)
            np.testing.assert_array_equal(share.compute(), whole.compute())
            assert share.samples == whole.samples
            assert share.addends().shape == (0,)
