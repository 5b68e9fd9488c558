"""The exercise whose answer is an optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp.homework.exercise import Exercise, Truths
from xbp.homework.hints import Host, Truth
from xbp.homework.layers import drawn

LR, BETAS, EPS = 0.1, (0.9, 0.99), 1e-3  # an ε that shows, if it stands in another place


def adam(p: Host, *gradients: Host) -> Truths:
    def steps(
        *,
        first: bool = True,
        second: bool = True,
        b1: float = BETAS[0],
        b2: float = BETAS[1],
        root: bool = True,
        squared: bool = True,
        later: int = 0,
        eps_inside: bool = False,
        kept: bool = True,
        momentum: bool = True,
        complement: bool = True,
    ) -> list[Host]:
        """The change of p in each step, by Adam or with one part of it changed."""
        m = v = np.zeros_like(p)
        made = []
        for t, g in enumerate(gradients, 1):
            if not kept:
                m = v = np.zeros_like(p)
            m = b1 * m + ((1 - b1) if complement else 1) * g
            v = b2 * v + ((1 - b2) if complement else 1) * (g * g if squared else abs(g))
            mean = m / (1 - b1 ** (t + later)) if first else m
            mean = mean if momentum else g
            spread = v / (1 - b2 ** (t + later)) if second else v
            below = np.sqrt(spread + EPS) if eps_inside else spread + EPS
            if root and not eps_inside:
                below = np.sqrt(spread) + EPS
            made.append(-LR * mean / below)
        return made

    uncorrected = "the averages are not corrected for their start at 0"
    variants: list[tuple[str, str, dict[str, Any]]] = [
        ("factor", uncorrected, {"first": False, "second": False}),
        ("factor", uncorrected, {"first": False}),
        ("factor", uncorrected, {"second": False}),
        ("factor", "β₁ and β₂ are exchanged", {"b1": BETAS[1], "b2": BETAS[0]}),
        ("factor", "m decays by β₂", {"b1": BETAS[1]}),
        ("factor", "v decays by β₁", {"b2": BETAS[0]}),
        ("chain", "the root of v is missing", {"root": False}),
        ("chain", "v averages g, and not its square", {"squared": False}),
        ("factor", "t counts from 1, and is one too large", {"later": 1}),
        ("chain", "ε stands within the root, and belongs outside", {"eps_inside": True}),
        ("state", "m and v begin anew at each step", {"kept": False}),
        ("chain", "g stands where m̂ belongs", {"momentum": False}),
        ("factor", "the factors 1 - β are missing", {"complement": False}),
    ]
    wrong = [(kind, sentence, steps(**options)) for kind, sentence, options in variants]
    return {
        f"step {t + 1}": Truth(
            right, mistakes=[(kind, sentence, made[t]) for kind, sentence, made in wrong]
        )
        for t, right in enumerate(steps())
    }


ADAM = Exercise(
    "adam",
    "optimizer",
    "Adam",
    "m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², p ← p - η m̂ / (√v̂ + ε), "
    "with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)",
    lambda cls, parameters: cls(parameters, lr=LR, betas=BETAS, eps=EPS),
    [drawn(12, *[(2, 3)] * 5)],
    adam,
    {f"step {t}": f"the change of p in step {t}" for t in range(1, 5)},
)
