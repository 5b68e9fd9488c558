"""Weights of samples, packed into the targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp import nn
from xbp.backend import Array, array_namespace


class WeightedLoss(nn.Loss):
    """`loss` for targets whose first column holds the weights of the samples; see `packed`."""

    def __init__(self, loss: nn.CrossEntropyLoss | nn.MSELoss) -> None:
        self.loss = loss

    def __call__(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        return self.loss(prediction, self._own(target), target[:, 0])

    def denominator(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> Array | None:
        return self.loss.denominator(prediction, self._own(target), target[:, 0])

    def check(self, prediction: Array, target: Array) -> None:
        self.loss.check(prediction, self._own(target))

    def _own(self, target: Array) -> Array:
        """The targets for `loss`: labels (N,), or numbers (N, outputs)."""
        if not isinstance(self.loss, nn.CrossEntropyLoss):
            return target[:, 1:]
        xp = array_namespace(target)
        return xp.astype(target[:, 1], xp.int64)


def packed(parts: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(X, targets, weights) as (X, both), so that weights are shuffled and moved with targets.

    Labels are exact in float32 up to 2²⁴.
    """
    x, y, weight = parts
    both = np.column_stack([weight, y.reshape(len(y), -1)])
    return x, both.astype(x.dtype)
