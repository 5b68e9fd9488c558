"""LAMB: Adam with steps proportional to each parameter's norm."""

from __future__ import annotations

import math

from xbp.backend import Array, Namespace
from xbp.optim.adam import Adam
from xbp.optim.optimizer import Coefficients, LearningRate, Parameters, State
from xbp.primitives.updates import Scalar, average


class LAMB(Adam):
    """p ← p - η (‖p‖ / ‖r‖) r, with r = m̂ / (√v̂ + ε) + λp and Adam's m̂ and v̂.

    The step of a whole parameter is η times its norm, so that all layers change by the same
    fraction, which suits large batches. You et al. 2020, algorithm 2, with φ(‖p‖) = ‖p‖. If p or r
    is 0, the ratio is 1, as in the authors' code.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 0.001
        η.
    betas : (float, float), default (0.9, 0.999)
        β₁, β₂, each at least 0 and below 1.
    eps : float, default 1e-6
        ε.
    weight_decay : float, default 0.01
        λ, part of r.

    Raises
    ------
    InputError
        A hyperparameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([3.0, 4.0]))
    >>> optimizer = optim.LAMB([p], lr=0.1, weight_decay=0.0)
    >>> p.add_grad(np.array([123.0, 0.0]))
    >>> optimizer.step()  # a step of 0.1 ‖p‖
    >>> p.data.round(6).tolist()
    [2.5, 4.0]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return 1 / (1 - self.betas[0] ** t), 1 / math.sqrt(1 - self.betas[1] ** t), lr

    def update(
        self, xp: Namespace, p: Array, g: Array, state: State, mean: Scalar, *more: Scalar
    ) -> None:
        scale, rate = more
        m, v = state["m"], state["v"]
        average(m, self.betas[0], g)
        average(v, self.betas[1], g, g)
        r = mean * m / (scale * xp.sqrt(v) + self.eps) + self.weight_decay * p
        length, of_step = xp.sqrt(xp.sum(p * p)), xp.sqrt(xp.sum(r * r))
        ratio = length / xp.where(of_step > 0, of_step, 1.0)
        p -= rate * (xp.where(length > 0, ratio, 1.0) * r)

    def decayed(self, p: list[Array], g: list[Array], decay: Scalar) -> list[Array]:
        return g  # the decay is part of r
