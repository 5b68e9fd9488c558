"""Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

from xbp.arguments import number
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.nn.parameter import Parameter
from xbp.optim.optimizer import LearningRate, Optimizer, State


class Adam(Optimizer):
    """p ← p - η m̂ / (√v̂ + ε): a step of about η along each coordinate.

        g ← g + weight_decay · p
        m ← β₁ m + (1 - β₁) g,      m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²,     v̂ = v / (1 - β₂ᵗ)

    Kingma & Ba 2015, algorithm 1; the weight decay is an L2 penalty in the gradient, as in
    PyTorch's Adam.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float or schedule, default 0.001
        η.
    betas : (float, float), default (0.9, 0.999)
        β₁, β₂, each at least 0 and below 1.
    eps : float, default 1e-8
        ε.
    weight_decay : float, default 0
        Factor of an L2 penalty ½‖p‖².

    Raises
    ------
    InputError
        A hyperparameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> optimizer = optim.Adam([p], lr=0.1)
    >>> p.add_grad(np.array([123.0]))
    >>> optimizer.step()  # the first step is η, whatever the gradient's scale
    >>> p.data.round(6).tolist()
    [0.9]
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        if not pair or not all(isinstance(b, Real) and 0 <= b < 1 for b in betas):
            msg = f"betas must be two numbers of at least 0 and below 1, got {betas!r}"
            raise InputError(msg)
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = number("eps", eps, least=0)
        self.weight_decay = number("weight_decay", weight_decay, least=0)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, lr: float, t: int) -> None:
        if self.weight_decay:
            g = g + self.weight_decay * p
        if not state:
            state |= {"m": xp.zeros_like(p), "v": xp.zeros_like(p)}
        (beta1, beta2), m, v = self.betas, state["m"], state["v"]
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        m_hat_scale, v_hat_scale = 1 / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)
        p -= lr * m_hat_scale * m / (v_hat_scale * xp.sqrt(v) + self.eps)

    def state_names(self) -> tuple[str, ...]:
        return ("m", "v")
