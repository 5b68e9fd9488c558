"""An optimizer of one's own needs nothing but its rule."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from optim.rules import assert_close, feed, problem, trained
from optim.steps import HERE, values

from xbp import nn, optim


class Adagrad(optim.Optimizer):
    """s ← s + g², p ← p - η g / √s: a rule as a user would write it."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, lr: float, t: int) -> None:
        if t == 1:
            state["s"] = xp.zeros_like(p)
        state["s"] += g * g
        p -= lr * g / xp.sqrt(state["s"])

    def state_names(self) -> tuple[str, ...]:
        return ("s",)


@pytest.mark.parametrize("backend", HERE)
def test_a_subclass_needs_nothing_but_its_rule(backend: str) -> None:
    start, gradients = problem()
    found = trained(partial(Adagrad, lr=0.1), start, gradients, backend)
    expected = start.copy()
    for step, gradient in enumerate(gradients):
        total = sum(g * g for g in gradients[: step + 1])
        expected -= 0.1 * gradient / np.sqrt(total)
    assert_close(found, expected, 1e-12)  # a few hundred roundings

    optimizer, other = (Adagrad([nn.Parameter(start.copy())], lr=0.1) for _ in range(2))
    feed(optimizer, gradients[0])
    other.load_state_dict(optimizer.state_dict())
    assert values(other.state_dict()) == values(optimizer.state_dict())


def test_an_optimizer_without_a_rule_says_what_to_define(two: list[nn.Parameter]) -> None:
    class Nothing(optim.Optimizer):
        pass

    optimizer = Nothing(two, lr=0.1)
    with pytest.raises(NotImplementedError, match=r"^Nothing has no update rule; define update\("):
        feed(optimizer, np.ones(2), np.ones((1, 1)))
