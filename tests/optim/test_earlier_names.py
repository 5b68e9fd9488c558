"""`numbers` and `takes_lists`, the earlier names of `coefficients` and `multi_tensor`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xbp import nn, optim

OPTIMIZERS = [getattr(optim, name) for name in optim.__all__]
OPTIMIZERS = [c for c in OPTIMIZERS if isinstance(c, type) and issubclass(c, optim.Optimizer)]


class Halving(optim.SGD):
    """An optimizer that uses the earlier names."""

    def numbers(self, lr: float, t: int) -> tuple[float, ...]:
        rate, *others = super().numbers(lr, t)
        return rate / 2, *others

    def takes_lists(self) -> bool:
        return False


def after_a_step(rule: type[optim.Optimizer], **options: Any) -> list[float]:
    p = nn.Parameter(np.array([1.0, 2.0]))
    p.add_grad(np.array([0.5, -0.25]))
    rule([p], **options).step()
    return p.data.tolist()  # type: ignore[no-any-return]


def test_a_subclass_by_the_earlier_names_is_used() -> None:
    assert after_a_step(Halving, lr=0.1) == after_a_step(optim.SGD, lr=0.05)
    assert Halving.coefficients is Halving.numbers
    assert Halving.multi_tensor is Halving.takes_lists


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=lambda rule: rule.__name__)
def test_both_names_are_one_function(rule: type[optim.Optimizer]) -> None:
    assert rule.numbers is rule.coefficients
    assert rule.takes_lists is rule.multi_tensor
