"""Learning-rate schedules: functions of the step, without state.

An optimizer evaluates its schedule at step 0, 1, 2, …, so that a resumed run needs the number of
its step alone. Formulas are those of PyTorch's schedulers of the same names, stepped after each
batch.

>>> from xbp import nn, optim
>>> parameters = nn.Linear(2, 1, rng=0).parameters()
>>> optimizer = optim.SGD(parameters, lr=optim.StepLR(0.1, step_size=2, gamma=0.5))
>>> [optimizer.lr_at(step) for step in range(5)]
[0.1, 0.1, 0.05, 0.05, 0.025]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from xbp.arguments import described, integer, is_finite, name_of, number, takes
from xbp.backend import library_of, to_numpy
from xbp.errors import InputError


class Schedule:
    """Base of all schedules: a callable ``step -> learning rate``.

    Attributes
    ----------
    stays : bool
        Whether a schedule with `total_steps` is meant to stay at its last value afterwards.
    """

    stays = False

    def __call__(self, step: int) -> float:
        msg = f"{type(self).__name__} has no __call__(self, step); define it"
        raise NotImplementedError(msg)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class ConstantLR(Schedule):
    """η_t = lr, like a number as `lr`. (PyTorch's ConstantLR is a different schedule.)"""

    def __init__(self, lr: float) -> None:
        self.lr = number("lr", lr, least=0)

    def __call__(self, step: int) -> float:
        return self.lr


class StepLR(Schedule):
    """η_t = lr · gamma^⌊t / step_size⌋: a factor of `gamma` every `step_size` steps."""

    def __init__(self, lr: float, step_size: int, gamma: float = 0.1) -> None:
        self.lr = number("lr", lr, least=0)
        self.step_size = integer("step_size", step_size, least=1)
        self.gamma = number("gamma", gamma, least=0)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (step // self.step_size)


class CosineAnnealingLR(Schedule):
    """η_t = min_lr + (lr - min_lr)(1 + cos(πt/T))/2 for t ≤ T = total_steps, then min_lr.

    Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts.
    """

    def __init__(self, lr: float, total_steps: int, min_lr: float = 0.0) -> None:
        self.lr = number("lr", lr, least=0)
        self.total_steps = integer("total_steps", total_steps, least=1)
        self.min_lr = number("min_lr", min_lr, least=0)

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.min_lr, min(step / self.total_steps, 1.0))


class LinearLR(Schedule):
    """η_t = lr · (a + (b - a) t/T) for t ≤ T = total_steps, then lr · b.

    Parameters
    ----------
    lr : float
    start_factor, end_factor : float, default 1/3, 1
        a, b. A rise to 1 is a warm-up (see `warmup`), a fall from 1 to 0 a decay.
    total_steps : int, default 5
    """

    stays = True

    def __init__(
        self,
        lr: float,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_steps: int = 5,
    ) -> None:
        self.lr = number("lr", lr, least=0)
        self.start_factor = number("start_factor", start_factor, least=0)
        self.end_factor = number("end_factor", end_factor, least=0)
        self.total_steps = integer("total_steps", total_steps, least=1)

    def __call__(self, step: int) -> float:
        share = min(step / self.total_steps, 1.0)
        return self.lr * (self.start_factor * (1 - share) + self.end_factor * share)


class ExponentialLR(Schedule):
    """η_t = lr · gammaᵗ."""

    def __init__(self, lr: float, gamma: float) -> None:
        self.lr = number("lr", lr, least=0)
        self.gamma = number("gamma", gamma, least=0)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma**step


class PolynomialLR(Schedule):
    """η_t = lr · (1 - t/T)^power for t ≤ T = total_steps, then 0."""

    def __init__(self, lr: float, total_steps: int, power: float = 1.0) -> None:
        self.lr = number("lr", lr, least=0)
        self.total_steps = integer("total_steps", total_steps, least=1)
        self.power = number("power", power, least=0)

    def __call__(self, step: int) -> float:
        if step >= self.total_steps:
            return 0.0
        return self.lr * math.pow(1 - step / self.total_steps, self.power)


class CosineAnnealingWarmRestarts(Schedule):
    """η_t = min_lr + (lr - min_lr)(1 + cos(πu/T_i))/2, u steps after the restart i = 0, 1, 2, …

    T_i = T_0 · T_multⁱ steps lie between the restarts i and i + 1. Loshchilov & Hutter 2017 (SGDR),
    eq. 5.

    Parameters
    ----------
    lr : float
    T_0 : int
        Steps before the first restart.
    T_mult : int, default 1
    min_lr : float, default 0
    """

    def __init__(self, lr: float, T_0: int, T_mult: int = 1, min_lr: float = 0.0) -> None:
        self.lr = number("lr", lr, least=0)
        self.T_0 = integer("T_0", T_0, least=1)
        self.T_mult = integer("T_mult", T_mult, least=1)
        self.min_lr = number("min_lr", min_lr, least=0)

    def __call__(self, step: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            step %= length
        while step >= length:
            step, length = step - length, length * self.T_mult
        return _cosine(self.lr, self.min_lr, step / length)


class OneCycleLR(Schedule):
    """A rise from max_lr/div_factor to max_lr, a fall to max_lr/(div_factor·final_div_factor).

    Both phases are half a cosine. The rise takes the fraction `pct_start` of the `total_steps`;
    after them the rate stays at its last value. Smith & Topin 2018 (super-convergence), in the
    two-phase form of PyTorch.

    Parameters
    ----------
    max_lr : float
    total_steps : int
        The steps of the whole run: epochs · ⌈samples / batch_size⌉.
    pct_start : float, default 0.3
    div_factor, final_div_factor : float, default 25, 1e4
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr = number("max_lr", max_lr, least=0)
        self.total_steps = integer("total_steps", total_steps, least=1)
        self.pct_start = number("pct_start", pct_start, least=0, most=1)
        self.div_factor = number("div_factor", div_factor, least=1)
        self.final_div_factor = number("final_div_factor", final_div_factor, least=1)

    def __call__(self, step: int) -> float:
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        top = self.pct_start * self.total_steps - 1  # the step of the maximum, as PyTorch counts
        end = self.total_steps - 1
        step = min(step, end)
        if step <= top:
            return _cosine(first, self.max_lr, step / top if top else 1.0)
        return _cosine(self.max_lr, last, (step - top) / (end - top))


# --- combinations ---------------------------------------------------------------------------------


class SequentialLR(Schedule):
    """One schedule after the other: at each milestone the next one begins at its step 0.

    Parameters
    ----------
    schedules : sequence of callables ``step -> learning rate``
    milestones : sequence of int
        The increasing steps at which the second one, the third one, … begin.

    Examples
    --------
    >>> from xbp.optim import ConstantLR, ExponentialLR, SequentialLR
    >>> schedule = SequentialLR([ConstantLR(0.1), ExponentialLR(0.8, 0.5)], milestones=[2])
    >>> [schedule(step) for step in range(5)]
    [0.1, 0.1, 0.8, 0.4, 0.2]
    """

    def __init__(
        self, schedules: Sequence[Callable[[int], float]], milestones: Sequence[int]
    ) -> None:
        self.schedules = _schedules(schedules)
        wanted = len(self.schedules) - 1
        if not isinstance(milestones, tuple | list) or len(milestones) != wanted:
            msg = (
                f"milestones must be a list of {wanted} steps, one fewer than the schedules, got "
                f"{described(milestones)}"
            )
            raise InputError(msg)
        self.milestones = [integer("each of milestones", step, least=1) for step in milestones]
        if any(b <= a for a, b in pairwise(self.milestones)):
            msg = f"milestones must increase, got {milestones}"
            raise InputError(msg)

    def __call__(self, step: int) -> float:
        place = bisect_right(self.milestones, step)
        return self.schedules[place](step - ([0, *self.milestones][place]))

    @property
    def total_steps(self) -> int | None:
        """The end of the last schedule; None if it has none."""
        last = getattr(self.schedules[-1], "total_steps", None)
        return last and last + ([0, *self.milestones][-1])

    @property
    def stays(self) -> bool:  # type: ignore[override]  # as the last one does
        return bool(getattr(self.schedules[-1], "stays", False))


class ChainedLR(Schedule):
    """η_t = the product of several schedules: a rate, and factors (schedules with lr = 1).

    Parameters
    ----------
    schedules : sequence of callables ``step -> number``

    Examples
    --------
    >>> from xbp.optim import ChainedLR, ExponentialLR, LinearLR
    >>> schedule = ChainedLR([LinearLR(0.8, 0.5, 1, total_steps=2), ExponentialLR(1, gamma=0.5)])
    >>> [round(schedule(step), 6) for step in range(4)]
    [0.4, 0.3, 0.2, 0.1]
    """

    def __init__(self, schedules: Sequence[Callable[[int], float]]) -> None:
        self.schedules = _schedules(schedules)

    def __call__(self, step: int) -> float:
        return math.prod(schedule(step) for schedule in self.schedules)


def warmup(
    schedule: float | Callable[[int], float], steps: int, start_factor: float | None = None
) -> SequentialLR:
    """A linear warm-up over `steps` steps to the beginning of a schedule, then the schedule.

        η_t = s(0) · (a + (1 - a) t/W) for t < W = steps,     then     s(t - W)

    Parameters
    ----------
    schedule : float, or callable ``step -> learning rate``
        s.
    steps : int
    start_factor : float, optional
        a; by default 1/(W + 1), which equals the rise of each step.

    Examples
    --------
    >>> from xbp.optim import CosineAnnealingLR, warmup
    >>> schedule = warmup(CosineAnnealingLR(0.4, total_steps=2), steps=3)
    >>> [round(schedule(step), 6) for step in range(6)]
    [0.1, 0.2, 0.3, 0.4, 0.2, 0.0]
    """
    steps = integer("steps", steps, least=1)
    if not callable(schedule):
        schedule = ConstantLR(schedule)
    takes("a schedule", schedule, "step")
    first = rate_of(schedule, "step 0", schedule(0))
    factor = 1 / (steps + 1) if start_factor is None else start_factor
    return SequentialLR([LinearLR(first, factor, 1.0, steps), schedule], [steps])


def _schedules(schedules: Any) -> list[Callable[[int], float]]:
    if not isinstance(schedules, tuple | list) or not schedules:
        msg = f"schedules must be a list of at least one schedule, got {described(schedules)}"
        raise InputError(msg)
    for schedule in schedules:
        if not callable(schedule):
            msg = f"each of schedules must be a function of the step, got {described(schedule)}"
            raise InputError(msg)
        takes("each of schedules", schedule, "step")
    return list(schedules)


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def rate_of(schedule: Any, place: str, lr: Any) -> float:
    """The result of a schedule as a learning rate, a Python float.

    Parameters
    ----------
    schedule : callable
    place : str
        Where the rate applies, such as ``"step 3"``.
    lr : Python number, numpy scalar or 0-d array of any library

    Raises
    ------
    InputError
        The result is no number, negative or not finite.
    """
    if type(lr) is float and 0 <= lr < math.inf:
        return lr
    if library_of(lr) is not None and lr.ndim == 0:
        lr = to_numpy(lr).item()
    real = isinstance(lr, Real) and not isinstance(lr, bool)
    if real and is_finite(lr) and lr >= 0:
        return float(lr)
    msg = (
        f"the learning rate of {place} must be a finite number of at least 0, "
        f"got {lr if real else described(lr)} from the schedule {name_of(schedule)}"
    )
    raise InputError(msg)
