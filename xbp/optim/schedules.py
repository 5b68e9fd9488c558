"""Learning-rate schedules: functions of the step, with no state of their own.

An optimizer asks its schedule for the rate of step 0, 1, 2, …; so a resumed run needs nothing but
the number of its step. Each formula is that of PyTorch's scheduler of the same name, stepped once
a batch.

>>> from xbp import nn, optim
>>> parameters = nn.Linear(2, 1, rng=0).parameters()
>>> optimizer = optim.SGD(parameters, lr=optim.StepLR(0.1, step_size=2, gamma=0.5))
>>> [optimizer.lr_at(step) for step in range(5)]
[0.1, 0.1, 0.05, 0.05, 0.025]
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from xbp.arguments import described, integer, is_finite, name_of, number
from xbp.backend import library_of, to_numpy
from xbp.errors import InputError


class Schedule:
    """Base of all schedules: a callable ``step -> learning rate``."""

    def __call__(self, step: int) -> float:
        msg = f"{type(self).__name__} has no __call__(self, step); define it"
        raise NotImplementedError(msg)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class ConstantLR(Schedule):
    """η_t = lr, as a number given for `lr`. (PyTorch's scheduler of this name is another one.)"""

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


class OneCycleLR(Schedule):
    """Up from max_lr/div_factor to max_lr, then down to max_lr/(div_factor·final_div_factor).

    Both ways along half a cosine; the rise takes the share `pct_start` of the `total_steps`, and
    the rate stays at its end after them. Smith & Topin 2018 (super-convergence), in the two-phase
    form of PyTorch.

    Parameters
    ----------
    max_lr : float
    total_steps : int
        Of the whole run: epochs · ⌈samples / batch_size⌉.
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


def _cosine(start: float, end: float, share: float) -> float:
    """From `start` (share 0) to `end` (share 1) along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def rate_of(schedule: Any, place: str, lr: Any) -> float:
    """What a schedule gives, as a learning rate: a Python float.

    Parameters
    ----------
    schedule : callable
    place : str
        Of what the rate is, as in ``"step 3"``.
    lr : Python number, numpy scalar or 0-d array of any library

    Raises
    ------
    InputError
        It is something else, negative or not finite.
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
