"""The rows that captured steps read: batch, words of the random counter, coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xbp import nn, optim
from xbp.training import rows as module
from xbp.training.rows import Rows

BATCH, COUNT = 4, 3
ORDER = np.random.default_rng(0).permutation(12)
LATE = ((2**24 + 1) << 32) + 2**32 - 2
"""The low word overflows after two steps; the high one is no float32."""


class Ragged(optim.SGD):
    """A rule whose coefficients are more where there is a momentum."""

    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return (lr / t, 3.0 * t, lr + t) if self.momentum else (lr,)


def rows_of(kind: Any = optim.Adam, **options: Any) -> Rows:
    """Rows of a rule with a schedule, of three parameters in two groups, of two dtypes."""
    dtypes = ("float64", "float32", "float64")
    first, second, third = (nn.Parameter(np.ones(2, dtype)) for dtype in dtypes)
    groups = [{"params": [first, second]}, {"params": [third], "lr": 0.3, **options}]
    optimizer = kind(groups, lr=optim.StepLR(0.1, 2, gamma=0.5))
    optimizer.counts = [2, 7, 2]
    rows = Rows(optimizer, np.zeros((len(ORDER), 2)), BATCH)
    rows.begin(ORDER)
    return rows


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", COUNT)


def move(rows: Rows, step: int, left: int) -> list[float]:
    """Fill the rows, and give the rates of the first one."""
    rows.move(step, left)
    return rows.optimizer.rates_at(rows.optimizer.steps)


@pytest.mark.parametrize("span", [range(BATCH), range(1, BATCH, 2)])
@pytest.mark.parametrize("first", [0, 5, LATE])
@pytest.mark.parametrize(("kind", "options"), [(optim.Adam, {}), (Ragged, {"momentum": 0.9})])
def test_each_row_holds_what_its_step_needs(
    kind: Any, options: dict[str, Any], first: int, span: range
) -> None:
    rows = rows_of(kind, **options)
    optimizer = rows.optimizer
    optimizer.steps = first
    rows.move(2, COUNT + 1)
    for k in range(COUNT):
        samples, words, found = rows.take(span, (100 + np.arange(20), np.arange(20)))
        start = (1 + k) * BATCH % len(ORDER)
        wanted = [ORDER[start + i] for i in span]
        assert [it.tolist() for it in samples] == [[100 + i for i in wanted], wanted]
        assert [int(word) for word in words] == [(first + k) % 2**32, (first + k) // 2**32]
        assert {word.dtype for word in words} == {np.dtype(np.int64)}
        expected = [
            rule.all_coefficients(rule.lr_at(first + k), optimizer.counts[index] + k + 1)
            for rule, indices in optimizer.rules()
            for index in indices
        ]
        dtypes = [parameter.data.dtype for parameter in optimizer.parameters]
        for own, wanted, dtype in zip(found, expected, dtypes, strict=True):
            assert [(c.dtype, float(c)) for c in own] == [(dtype, dtype.type(c)) for c in wanted]
        rows.slot += 1  # as a captured step does


def test_a_row_is_ready_for_its_own_step_and_rates_alone() -> None:
    rows = rows_of()
    rates = move(rows, 1, 9)
    assert rows.ready(1, rates)
    assert not rows.ready(2, rates)
    assert not rows.ready(1, [0.1, 0.2])
    rows.optimizer.steps += 1
    assert not rows.ready(1, rates)
    rows.optimizer.steps -= 1
    rows.optimizer.counts[2] += 1  # a parameter had a gradient, in another step
    assert not rows.ready(1, rates)


@pytest.mark.parametrize("left", [2, COUNT, 9])
def test_the_next_row_is_ready_until_there_are_no_more(left: int) -> None:
    rows = rows_of()
    move(rows, 4, left)
    for k in range(1, min(left, COUNT) + 1):
        rows.optimizer.steps += 1
        rows.optimizer.counts = [count + 1 for count in rows.optimizer.counts]
        rows.advance(3 + k)
        rates = rows.optimizer.rates_at(rows.optimizer.steps)
        assert rows.ready(4 + k, rates) == (k < min(left, COUNT))
    rates = move(rows, 7, 1)  # begins with the first row again
    assert (rows.row, int(rows.slot[0]), rows.ready(7, rates)) == (0, 0, True)


@pytest.mark.parametrize("invalidate", [Rows.forget, lambda rows: rows.begin(ORDER)])
def test_no_row_is_ready_in_a_new_epoch_or_with_new_options(invalidate: Any) -> None:
    rows = rows_of()
    assert not rows.ready(1, [0.1, 0.3])
    rates = move(rows, 1, 9)
    invalidate(rows)
    assert not rows.ready(1, rates)


def test_rows_are_filled_for_no_more_steps_than_are_left() -> None:
    asked = []
    rows = rows_of()
    rows.optimizer.lr = lambda step: asked.append(step) or 0.1  # type: ignore[assignment, func-returns-value]
    rows.optimizer.steps = 20
    rows.move(5, 2)
    assert {*asked} == {20, 21}


def test_an_option_may_change_how_many_coefficients_there_are() -> None:
    rows = rows_of(Ragged)
    rows.move(1, 9)
    assert [len(own) for own in rows.take(range(BATCH), (ORDER, ORDER))[2]] == [
        2,
        2,
        2,
    ]  # with the decay
    rows.optimizer.param_groups[0]["momentum"] = 0.5
    rows.move(1, 9)
    assert [len(own) for own in rows.take(range(BATCH), (ORDER, ORDER))[2]] == [4, 4, 2]
