"""Stochastic gradient descent."""

from __future__ import annotations

from xbp.arguments import number
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.optim.optimizer import Coefficients, LearningRate, Optimizer, Parameters, State
from xbp.primitives.updates import Scalar, accumulate, add_scaled, plus_scaled


class SGD(Optimizer):
    """p ← p - η v, with or without momentum.

        g ← g + weight_decay · p
        v ← g                                       at the first step,
        v ← momentum · v + (1 - dampening) · g      at later steps;
        p ← p - η (g + momentum · v)   if nesterov,   else   p ← p - η v.

    Polyak 1964; Nesterov's form after Sutskever et al. 2013, rearranged as in PyTorch, with equal
    parameters and results. With ``dampening = momentum``, v is the exponential average.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule
        η.
    momentum, dampening : float, default 0
    nesterov : bool, default False
        Needs momentum, and no dampening.
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
    >>> optimizer = optim.SGD([p], lr=0.5)
    >>> p.add_grad(np.array([1.0]))
    >>> optimizer.step()
    >>> p.data.tolist()
    [0.5]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.momentum = number("momentum", momentum, least=0)
        self.dampening = number("dampening", dampening)
        self.nesterov = nesterov
        if nesterov and (momentum == 0 or dampening != 0):
            msg = "nesterov needs a momentum above 0 and no dampening"
            raise InputError(msg)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return -lr, 1.0 if not self.dampening or t == 1 else 1 - self.dampening

    def update(
        self, xp: Namespace, p: Array, g: Array, state: State, rate: Scalar, share: Scalar
    ) -> None:
        if self.momentum:
            v = state["velocity"]
            accumulate(v, self.momentum, g, share if self.dampening else 1.0)
            g = plus_scaled(g, self.momentum, v) if self.nesterov else v
        add_scaled(p, rate, g)

    def multi_tensor(self) -> bool:
        return type(self).update is SGD.update

    def state_names(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()
