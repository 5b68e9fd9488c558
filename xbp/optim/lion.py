"""Lion: steps by the sign of averaged gradients."""

from __future__ import annotations

from xbp.backend import Array, Namespace
from xbp.optim.adam import pair_of_betas
from xbp.optim.optimizer import Coefficients, LearningRate, Optimizer, Parameters, State
from xbp.primitives.updates import Scalar, add_scaled, average


class Lion(Optimizer):
    """p ← p - ηλp - η sign(c): a step of η along each coordinate, whatever the gradient's scale.

        c = β₁ m + (1 - β₁) g,      then      m ← β₂ m + (1 - β₂) g

    Chen et al. 2023 (Symbolic Discovery of Optimization Algorithms), algorithm 2. It keeps one
    array for each parameter (Adam two). Its steps are larger than Adam's; use a rate three to ten
    times smaller and a weight decay larger by the same factor (section 5). sign(0) is 0.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 0.0001
        η.
    betas : (float, float), default (0.9, 0.99)
        β₁, β₂, each at least 0 and below 1.
    weight_decay : float, default 0
        λ, decoupled from the gradient.

    Raises
    ------
    InputError
        A hyperparameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0, 1.0, 1.0]))
    >>> optimizer = optim.Lion([p], lr=0.1)
    >>> p.add_grad(np.array([123.0, -0.01, 0.0]))
    >>> optimizer.step()
    >>> p.data.round(6).tolist()
    [0.9, 1.1, 1.0]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, decoupled_weight_decay=True)
        self.betas = pair_of_betas(betas)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return (-lr,)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, rate: Scalar) -> None:
        m = state["m"]
        c = self.betas[0] * m + (1 - self.betas[0]) * g
        # xp.sign would be a host wait in CuPy. The third case is 0 or nan.
        below = xp.where(c < 0, -1.0, c)
        add_scaled(p, rate, xp.where(c > 0, 1.0, below))
        average(m, self.betas[1], g)

    def state_names(self) -> tuple[str, ...]:
        return ("m",)
