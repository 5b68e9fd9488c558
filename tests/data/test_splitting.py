"""Splits: every sample once, the same way for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xbp.data import Arrays, random_split, train_test_split
from xbp.errors import InputError

SOURCE = Arrays(np.arange(50) * 10, np.arange(50) % 3)


def samples(part: Any) -> list[int]:
    return (part.batch(np.arange(len(part)))[0] // 10).tolist()


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ([0.8, 0.2], [40, 10]),
        ([1.0], [50]),
        ([1], [50]),
        ([0.33, 0.33, 0.34], [17, 16, 17]),
        ([30, 20], [30, 20]),
        ([5, 5], [5, 5]),
        (np.array([0.5, 0.5]), [25, 25]),
        ([0.1] * 10, [5] * 10),
        ([0.42, 0.58], [21, 29]),  # in floating point 50 * 0.58 is less than 29
        (list(np.array([3, 4])), [3, 4]),
    ],
)
def test_parts_have_their_sizes_and_nothing_in_common(shares: Any, counts: list[int]) -> None:
    parts = random_split(SOURCE, shares, rng=4)
    assert [len(part) for part in parts] == counts
    chosen = [sample for part in parts for sample in samples(part)]
    assert len(set(chosen)) == len(chosen) == sum(counts)
    again = random_split(SOURCE, shares, rng=4)
    assert [samples(part) for part in again] == [samples(part) for part in parts]
    assert [samples(part) for part in random_split(SOURCE, shares, rng=5)] != [
        samples(part) for part in parts
    ]
    x, y = parts[0].batch(np.arange(3))
    assert y.tolist() == (x // 10 % 3).tolist()


def test_a_fifth_is_for_tests_by_default() -> None:
    train, tested = train_test_split(np.arange(1000), rng=0)
    assert (len(train), len(tested)) == (800, 200)


@pytest.mark.parametrize("test", [0.2, 0.5, 0.011])
@pytest.mark.parametrize("stratify", [False, True])
def test_train_and_test_together_are_all(test: float, stratify: bool) -> None:
    train, tested = train_test_split(SOURCE, test=test, stratify=stratify, rng=1)
    assert sorted(samples(train) + samples(tested)) == list(range(50))
    same = train_test_split(SOURCE.x, SOURCE.y, test=test, stratify=stratify, rng=1)
    assert samples(same[0]) == samples(train) and samples(same[1]) == samples(tested)
    assert samples(train) != sorted(samples(train))
    if stratify:
        counts = np.bincount(np.array(samples(tested)) % 3)
        assert counts.tolist() == [max(1, round(test * n)) for n in (17, 17, 16)]
    else:
        assert len(tested) == max(1, round(test * 50))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: random_split(np.arange(3), [1]), "a source was expected"),
        (lambda: random_split(3.0, [1]), "a source was expected"),
        (lambda: random_split(SOURCE, [0.25, 0.25]), "whole numbers, or parts whose sum is 1"),
        (lambda: random_split(SOURCE, [0, 3]), "shares must be positive numbers"),
        (lambda: random_split(SOURCE, [0.5, 0.6]), "whole numbers, or parts whose sum is 1"),
        (lambda: random_split(SOURCE, [40, 20]), r"50 samples cannot be divided into \[40, 20\]"),
        (lambda: random_split(SOURCE, [0.001, 0.9985, 0.0005]), "each part needs at least one"),
        (lambda: random_split(SOURCE, []), "shares must be positive numbers"),
        (lambda: random_split(SOURCE, [0.5, -0.5]), "shares must be positive numbers"),
        (lambda: random_split(SOURCE, 0.5), "shares must be positive numbers"),
        (lambda: random_split(SOURCE, ["a"]), "shares must be positive numbers"),
        (lambda: train_test_split(SOURCE, test=1.0), "leaves nothing to train or to test with"),
        (lambda: train_test_split(SOURCE, test=0), "leaves nothing to train or to test with"),
        (lambda: train_test_split(np.arange(1)), "leaves nothing .* of 1 samples; take"),
        (lambda: train_test_split(SOURCE, test=2), "test must be a finite number from 0 to 1"),
        (lambda: train_test_split(SOURCE, SOURCE.y), "a source has its targets itself"),
        (
            lambda: train_test_split(np.arange(4), stratify=True),
            r"stratify needs arrays with integer labels y of shape \(N,\), got an? Arrays",
        ),
        (
            lambda: train_test_split(np.arange(4), np.ones(4), stratify=True),
            "stratify needs arrays with integer labels y",
        ),
        (
            lambda: train_test_split(np.arange(4), np.array([0, 0, 0, 7]), stratify=True),
            "of 1 samples of class 7",
        ),
    ],
)
def test_wrong_input_is_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
