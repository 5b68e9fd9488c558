"""Learning rates of a step."""

from __future__ import annotations

import math


def _cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine wave from start (fraction 0) to end (fraction 1)."""
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2.0


def one_cycle_lr(
    step: int,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Rate at step 0 ... total_steps - 1 (PyTorch, OneCycleLR, two phases, cosine annealing).

    Rises from max_lr / div_factor to max_lr, then falls to max_lr / div_factor / final_div_factor.
    """
    initial = max_lr / div_factor
    # PyTorch counts steps from 0 and does not round the peak, which may lie between two steps; a
    # peak at step 0 divides by zero there too.
    peak, last = pct_start * total_steps - 1, total_steps - 1
    if step <= peak:
        return _cosine(initial, max_lr, step / peak)
    return _cosine(max_lr, initial / final_div_factor, (step - peak) / (last - peak))


def step_lr(step: int, lr: float, step_size: int, gamma: float) -> float:
    """Staircase lr gamma^floor(step / step_size) (PyTorch, StepLR)."""
    return lr * gamma ** (step // step_size)


def cosine_annealing_lr(step: int, lr: float, total_steps: int, min_lr: float = 0.0) -> float:
    """Half wave min_lr + (lr - min_lr) (1 + cos(pi step / total_steps)) / 2.

    Loshchilov & Hutter 2017, equation 5; PyTorch, CosineAnnealingLR with T_max = total_steps.
    """
    return _cosine(lr, min_lr, step / total_steps)


def linear_lr(step: int, lr: float, start: float, end: float, total_steps: int) -> float:
    """Line from lr start to lr end, constant after that (PyTorch, LinearLR, total_iters)."""
    return lr * (start + (end - start) * min(step, total_steps) / total_steps)


def polynomial_lr(step: int, lr: float, total_steps: int, power: float) -> float:
    """lr (1 - step / total_steps)^power, then 0 (PyTorch, PolynomialLR, total_iters)."""
    return float(lr * (max(total_steps - step, 0) / total_steps) ** power) if power else lr


def cosine_restarts_lr(step: int, lr: float, first: int, factor: int, min_lr: float) -> float:
    """cosine_annealing_lr between restarts (Loshchilov & Hutter 2017, equation 5).

    The restarts are after first, first + first factor, ... steps.
    """
    restarts, length = [0], first
    while restarts[-1] + length <= step:
        restarts.append(restarts[-1] + length)
        length *= factor
    return _cosine(lr, min_lr, (step - restarts[-1]) / length)
