"""Learning-rate schedules against their formulas and against PyTorch's schedulers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xbp.errors import InputError
from xbp.optim import (
    ChainedLR,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    Schedule,
    SequentialLR,
    StepLR,
    warmup,
)
from xbp.testing import oracles

rates = st.floats(1e-6, 10.0)
totals = st.integers(1, 60)


def close(rate: float, peak: float) -> Any:
    """Equal up to a few roundings of numbers as large as the largest rate."""
    return pytest.approx(rate, rel=0, abs=4e-15 * peak)


# --- the formulas --------------------------------------------------------------------------------


@given(lr=rates, step=st.integers(0, 10**9))
def test_a_constant_rate_is_constant(lr: float, step: int) -> None:
    assert ConstantLR(lr)(step) == lr


@given(lr=rates, step_size=st.integers(1, 30), gamma=st.floats(0, 2), step=st.integers(0, 100))
def test_step_lr_is_a_staircase(lr: float, step_size: int, gamma: float, step: int) -> None:
    expected = oracles.step_lr(step, lr, step_size, gamma)
    assert StepLR(lr, step_size, gamma)(step) == expected


def test_step_lr_falls_to_a_tenth_unless_told_otherwise() -> None:
    assert [StepLR(1.0, 2)(step) for step in range(5)] == [1.0, 1.0, 0.1, 0.1, 0.1**2]


@given(lr=rates, total=totals, share=st.floats(0, 1))
def test_cosine_annealing_is_half_a_wave_and_stays_at_its_end(
    lr: float, total: int, share: float
) -> None:
    schedule = CosineAnnealingLR(lr, total, min_lr=share * lr)
    for step in range(total + 1):
        expected = oracles.cosine_annealing_lr(step, lr, total, share * lr)
        assert schedule(step) == close(expected, lr)
    assert {schedule(step) for step in (total, total + 1, 10 * total)} == {share * lr}


def test_cosine_annealing_ends_at_zero_unless_told_otherwise() -> None:
    assert CosineAnnealingLR(1.0, 7)(7) == 0.0


@given(
    max_lr=rates,
    total=totals,
    pct_start=st.floats(0, 1),
    div=st.floats(1, 100),
    final_div=st.floats(1, 1e6),
)
def test_one_cycle_rises_and_falls_along_cosines(
    max_lr: float, total: int, pct_start: float, div: float, final_div: float
) -> None:
    schedule = OneCycleLR(max_lr, total, pct_start, div, final_div)
    for step in range(total):
        try:
            expected = oracles.one_cycle_lr(step, max_lr, total, pct_start, div, final_div)
        except ZeroDivisionError:  # the peak is on step 0: the edge cases below
            continue
        # Near the peak the fraction is almost 0/0; it is exact to about 60 roundings.
        assert schedule(step) == pytest.approx(expected, rel=0, abs=1e-13 * max_lr)


def test_one_cycle_has_pytorchs_defaults() -> None:
    assert OneCycleLR(1.0, 10)(0) == close(1 / 25, 1.0)
    assert OneCycleLR(1.0, 10)(2) == close(1.0, 1.0)
    assert OneCycleLR(1.0, 10)(9) == close(1 / 25 / 1e4, 1.0)


@given(lr=rates, start=st.floats(0, 3), end=st.floats(0, 3), total=totals)
def test_linear_is_a_line_and_stays_at_its_end(
    lr: float, start: float, end: float, total: int
) -> None:
    schedule = LinearLR(lr, start, end, total)
    for step in range(total + 1):
        assert schedule(step) == close(oracles.linear_lr(step, lr, start, end, total), 3 * lr)
    assert {schedule(step) for step in (total, total + 1, 10 * total)} == {lr * end}


@given(lr=rates, gamma=st.floats(0, 1.2), step=st.integers(0, 60))
def test_exponential_multiplies_by_gamma(lr: float, gamma: float, step: int) -> None:
    expected = lr * math.prod([gamma] * step)
    assert ExponentialLR(lr, gamma)(step) == pytest.approx(expected, rel=1e-13, abs=1e-300)


@given(lr=rates, total=totals, power=st.floats(0, 4))
def test_polynomial_is_a_power_of_what_is_left(lr: float, total: int, power: float) -> None:
    schedule = PolynomialLR(lr, total, power)
    for step in range(total):
        assert schedule(step) == close(oracles.polynomial_lr(step, lr, total, power), lr)
    assert {schedule(step) for step in (total, total + 1, 10 * total)} == {0.0}


@given(lr=rates, first=st.integers(1, 9), factor=st.integers(1, 3), share=st.floats(0, 1))
def test_cosine_restarts(lr: float, first: int, factor: int, share: float) -> None:
    schedule = CosineAnnealingWarmRestarts(lr, first, factor, min_lr=share * lr)
    for step in range(60):
        expected = oracles.cosine_restarts_lr(step, lr, first, factor, share * lr)
        assert schedule(step) == close(expected, lr)


def test_a_long_run_of_restarts_is_as_fast_as_a_short_one() -> None:
    schedule = CosineAnnealingWarmRestarts(1.0, 7)
    assert schedule(7 * 10**15 + 3) == schedule(3)


def test_defaults_of_the_new_ones() -> None:
    assert [LinearLR(0.6)(step) for step in (0, 5, 6)] == [close(0.2, 0.6), 0.6, 0.6]
    assert PolynomialLR(1.0, 4)(1) == 0.75
    assert CosineAnnealingWarmRestarts(1.0, 4)(4) == 1.0
    assert CosineAnnealingWarmRestarts(1.0, 4)(2) == close(0.5, 1)


# --- schedules made of others --------------------------------------------------------------------


def test_one_after_the_other() -> None:
    parts = [ConstantLR(1.0), StepLR(8.0, 1, 0.5), lambda step: step / 10]
    schedule = SequentialLR(parts, [2, 5])
    assert [schedule(step) for step in range(8)] == [1, 1, 8, 4, 2, 0.0, 0.1, 0.2]
    assert SequentialLR([ConstantLR(0.3)], [])(9) == 0.3


def test_the_end_of_a_sequence_is_the_end_of_its_last_part() -> None:
    assert SequentialLR([LinearLR(0.1), CosineAnnealingLR(0.1, 90)], [10]).total_steps == 100
    assert SequentialLR([LinearLR(0.1), ConstantLR(0.1)], [10]).total_steps is None
    assert SequentialLR([CosineAnnealingLR(0.1, 7)], []).total_steps == 7
    assert SequentialLR([ConstantLR(1), LinearLR(0.1)], [10]).stays
    assert not SequentialLR([LinearLR(0.1), CosineAnnealingLR(0.1, 90)], [10]).stays


def test_chained_schedules_are_multiplied() -> None:
    parts = [StepLR(0.8, 2, 0.5), ExponentialLR(1.0, 0.5), lambda step: 2]
    schedule = ChainedLR(parts)
    assert [schedule(step) for step in range(4)] == [1.6, 0.8, 0.2, 0.1]
    assert (
        repr(ChainedLR(parts[:1]))
        == "ChainedLR(schedules=[StepLR(lr=0.8, step_size=2, gamma=0.5)])"
    )


def test_a_warm_up_rises_to_where_the_schedule_begins() -> None:
    schedule = warmup(CosineAnnealingLR(0.5, 10), steps=4)
    assert [schedule(step) for step in range(4)] == [close(0.1 * k, 0.5) for k in (1, 2, 3, 4)]
    assert [schedule(4 + step) for step in range(11)] == [
        CosineAnnealingLR(0.5, 10)(step) for step in range(11)
    ]
    constant = warmup(0.5, steps=2, start_factor=0.0)
    assert [constant(step) for step in range(4)] == [0.0, 0.25, 0.5, 0.5]


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("pct_start", [0.0, 1.0, "one step", "half a step", "two steps"])
def test_one_cycle_has_a_rate_for_every_step_wherever_its_peak(
    total: int, pct_start: float | str
) -> None:
    named = {"one step": 1 / total, "half a step": 0.5 / total, "two steps": min(2 / total, 1.0)}
    share = named[pct_start] if isinstance(pct_start, str) else pct_start
    schedule = OneCycleLR(1.0, total, share)
    rates_ = [schedule(step) for step in range(total)]
    last = 1 / 25 / 1e4
    tiny = 1e-15  # a rounding of the peak
    assert all(last - tiny <= rate <= 1 + tiny for rate in rates_)
    peak = rates_.index(max(rates_))
    assert rates_[: peak + 1] == sorted(rates_[: peak + 1])
    assert rates_[peak:] == sorted(rates_[peak:], reverse=True)
    assert share * total < 1 or peak in (
        math.floor(share * total - 1),
        math.ceil(share * total - 1),
    )


def test_one_cycle_with_its_peak_on_the_first_step_begins_at_the_peak() -> None:
    schedule = OneCycleLR(1.0, 10, pct_start=0.1)
    assert schedule(0) == 1.0
    assert schedule(1) < 1.0


def test_one_cycle_that_only_rises_ends_at_the_peak() -> None:
    assert OneCycleLR(1.0, 10, pct_start=1.0)(9) == 1.0


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.3, 0.95])
def test_one_cycle_stays_at_its_end(pct_start: float) -> None:
    schedule = OneCycleLR(1.0, 10, pct_start)
    assert schedule(9) == close(1 / 25 / 1e4, 1.0)
    assert {schedule(step) for step in (10, 11, 1000)} == {schedule(9)}


def test_one_cycle_that_only_rises_stays_at_the_peak() -> None:
    assert OneCycleLR(1.0, 10, pct_start=1.0)(10) == 1.0


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantLR(0.1),
        StepLR(0.1, 3),
        CosineAnnealingLR(0.1, 20),
        OneCycleLR(0.1, 20),
        LinearLR(0.1),
        ExponentialLR(0.1, 0.9),
        PolynomialLR(0.1, 15, 2.0),
        CosineAnnealingWarmRestarts(0.1, 3, 2),
        warmup(PolynomialLR(0.1, 10), 5),
        ChainedLR([LinearLR(0.1), ExponentialLR(1.0, 0.9)]),
    ],
    ids=repr,
)
def test_a_schedule_is_a_function_of_the_step_alone(schedule: Schedule) -> None:
    forwards = [schedule(step) for step in range(20)]
    assert [schedule(step) for step in reversed(range(20))] == forwards[::-1]
    assert all(type(rate) is float for rate in forwards)


# --- PyTorch -------------------------------------------------------------------------------------

Peer = Callable[[Any, Any], Any]  # (lr_scheduler, optimizer) -> scheduler
LR, TOTAL = 0.1, 40
PEERS: list[tuple[Schedule, Peer]] = [
    (StepLR(LR, 7, 0.3), lambda torch, o: torch.StepLR(o, 7, gamma=0.3)),
    (StepLR(LR, 1), lambda torch, o: torch.StepLR(o, 1)),
    (CosineAnnealingLR(LR, TOTAL), lambda torch, o: torch.CosineAnnealingLR(o, TOTAL)),
    (
        CosineAnnealingLR(LR, TOTAL, min_lr=0.02),
        lambda torch, o: torch.CosineAnnealingLR(o, TOTAL, eta_min=0.02),
    ),
    (LinearLR(LR), lambda torch, o: torch.LinearLR(o)),
    (LinearLR(LR, 0.1, 0.7, 13), lambda torch, o: torch.LinearLR(o, 0.1, 0.7, 13)),
    (LinearLR(LR, 1.0, 0.0, 30), lambda torch, o: torch.LinearLR(o, 1.0, 0.0, 30)),
    (ExponentialLR(LR, 0.9), lambda torch, o: torch.ExponentialLR(o, 0.9)),
    (PolynomialLR(LR, 30), lambda torch, o: torch.PolynomialLR(o, 30)),
    (PolynomialLR(LR, 30, 2.5), lambda torch, o: torch.PolynomialLR(o, 30, 2.5)),
    *(
        (
            CosineAnnealingWarmRestarts(LR, 5, factor, 0.01),
            lambda torch, o, factor=factor: torch.CosineAnnealingWarmRestarts(o, 5, factor, 0.01),
        )
        for factor in (1, 2, 3)
    ),
    (
        SequentialLR([LinearLR(LR, 0.2, 1.0, 7), ExponentialLR(LR, 0.8), StepLR(LR, 4)], [7, 20]),
        lambda torch, o: torch.SequentialLR(
            o,
            [
                torch.LinearLR(o, 0.2, 1.0, 7),
                torch.ExponentialLR(o, 0.8),
                torch.StepLR(o, 4),
            ],
            [7, 20],
        ),
    ),
    (
        ChainedLR([LinearLR(LR, 0.2, 1.0, 7), ExponentialLR(1.0, 0.8)]),
        lambda torch, o: torch.ChainedScheduler(
            [torch.LinearLR(o, 0.2, 1.0, 7), torch.ExponentialLR(o, 0.8)]
        ),
    ),
    *(
        (
            OneCycleLR(LR, TOTAL, pct),
            lambda torch, o, pct=pct: torch.OneCycleLR(
                o, LR, TOTAL, pct_start=pct, cycle_momentum=False
            ),
        )
        for pct in (0.0, 0.1, 0.3, 0.33, 1.0)
    ),
    (
        OneCycleLR(LR, TOTAL, 0.4, div_factor=10, final_div_factor=100),
        lambda torch, o: torch.OneCycleLR(
            o, LR, TOTAL, pct_start=0.4, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
    ),
]


@pytest.mark.parametrize(("schedule", "peer"), PEERS)
def test_a_schedule_equals_pytorchs_of_that_name(schedule: Schedule, peer: Peer) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = peer(torch.optim.lr_scheduler, optimizer)
    for step in range(TOTAL):
        # PyTorch's cosine multiplies the last rate by a factor; its roundings add up.
        assert schedule(step) == pytest.approx(scheduler.get_last_lr()[0], rel=0, abs=1e-14)
        optimizer.step()
        if step < TOTAL - 1:  # OneCycleLR refuses more steps than total_steps
            scheduler.step()


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ConstantLR(-1), "lr"),
        (lambda: ConstantLR(math.nan), "lr"),
        (lambda: StepLR("0.1", 2), "lr"),  # type: ignore[arg-type]
        (lambda: StepLR(0.1, 0), "step_size"),
        (lambda: StepLR(0.1, 2.0), "step_size"),  # type: ignore[arg-type]
        (lambda: StepLR(0.1, 2, -0.5), "gamma"),
        (lambda: CosineAnnealingLR(0.1, 0), "total_steps"),
        (lambda: CosineAnnealingLR(0.1, 5, -1.0), "min_lr"),
        (lambda: OneCycleLR(math.inf, 5), "max_lr"),
        (lambda: OneCycleLR(0.1, 0), "total_steps"),
        (lambda: OneCycleLR(0.1, True), "total_steps"),
        (lambda: OneCycleLR(0.1, 5, 1.1), "pct_start"),
        (lambda: OneCycleLR(0.1, 5, -0.1), "pct_start"),
        (lambda: OneCycleLR(0.1, 5, div_factor=0.0), "div_factor"),
        (lambda: OneCycleLR(0.1, 5, final_div_factor=0.5), "final_div_factor"),
        (lambda: LinearLR(-1.0), "lr"),
        (lambda: LinearLR(0.1, -0.1), "start_factor"),
        (lambda: LinearLR(0.1, 1, math.inf), "end_factor"),
        (lambda: LinearLR(0.1, 1, 1, 0), "total_steps"),
        (lambda: ExponentialLR(None, 0.9), "lr"),  # type: ignore[arg-type]
        (lambda: ExponentialLR(0.1, -0.9), "gamma"),
        (lambda: PolynomialLR(-0.1, 5), "lr"),
        (lambda: PolynomialLR(0.1, 0), "total_steps"),
        (lambda: PolynomialLR(0.1, 5, -1), "power"),
        (lambda: CosineAnnealingWarmRestarts(-0.1, 5), "lr"),
        (lambda: CosineAnnealingWarmRestarts(0.1, 0), "T_0"),
        (lambda: CosineAnnealingWarmRestarts(0.1, 5, 0), "T_mult"),
        (lambda: CosineAnnealingWarmRestarts(0.1, 5, 1.5), "T_mult"),  # type: ignore[arg-type]
        (lambda: CosineAnnealingWarmRestarts(0.1, 5, 1, -1), "min_lr"),
        (lambda: SequentialLR([], []), "schedules"),
        (lambda: SequentialLR(ConstantLR(1.0), []), "schedules"),  # type: ignore[arg-type]
        (lambda: SequentialLR([0.1], []), "each of schedules"),  # type: ignore[list-item]
        (lambda: SequentialLR([ConstantLR], []), "each of schedules"),  # type: ignore[list-item]
        (lambda: SequentialLR([ConstantLR(1.0)], [3]), "milestones"),
        (lambda: SequentialLR([ConstantLR(1.0)] * 2, 3), "milestones"),  # type: ignore[arg-type]
        (lambda: SequentialLR([ConstantLR(1.0)] * 2, [0]), "each of milestones"),
        (lambda: SequentialLR([lambda a, b: 0.1], []), "each of schedules"),  # type: ignore[list-item, misc]
        (lambda: ChainedLR([]), "schedules"),
        (lambda: ChainedLR(["lr"]), "each of schedules"),  # type: ignore[list-item]
        (lambda: warmup(0.1, 0), "steps"),
        (lambda: warmup(-0.1, 5), "lr"),
        (lambda: warmup(ConstantLR, 5), "a schedule"),
        (lambda: warmup(lambda a, b: 0.1, 5), "a schedule"),  # type: ignore[arg-type, misc]
        (lambda: warmup(0.1, 5, start_factor=-1), "start_factor"),
    ],
)
def test_an_argument_out_of_range_is_one_sentence(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(f"{name} must be ")
    assert "\n" not in str(caught.value)


def test_milestones_increase() -> None:
    with pytest.raises(InputError, match=r"^milestones must increase, got \[3, 3\]$"):
        SequentialLR([ConstantLR(1.0)] * 3, [3, 3])


def test_a_schedule_shows_its_options() -> None:
    assert repr(StepLR(0.1, 2, gamma=0.5)) == "StepLR(lr=0.1, step_size=2, gamma=0.5)"


def test_a_schedule_without_a_formula_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"^Schedule has no __call__\(self, step\)"):
        Schedule()(0)
