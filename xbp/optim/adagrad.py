"""Adagrad's family: each entry's gradient, divided by a root mean square of its past.

p ← p - η δ, with an exponential average and ε placed as in PyTorch:

    =========  ==============================  =====================================
    Adagrad    s = sum of g²                   δ = g / (√s + ε)
    RMSprop    s = average of g²               δ = g / (√s + ε), or its momentum
    Adadelta   s = average of g², u of δ²      δ = g √(u + ε) / √(s + ε)
    =========  ==============================  =====================================
"""

from __future__ import annotations

from xbp.arguments import number
from xbp.backend import Array, Namespace
from xbp.optim.optimizer import Coefficients, LearningRate, Optimizer, Parameters, State
from xbp.primitives.updates import Scalar, average


class Adagrad(Optimizer):
    """p ← p - η_t g / (√s + ε): steps shrink with the sum of an entry's squared gradients.

        s ← s + g²,      η_t = η / (1 + (t - 1) lr_decay)

    Duchi, Hazan & Singer 2011, figure 1 with the diagonal matrix and no regularizer; `lr_decay`
    and `initial_accumulator_value` are PyTorch's.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 0.01
        η.
    lr_decay : float, default 0
    weight_decay : float, default 0
        Factor of an L2 penalty ½‖p‖².
    initial_accumulator_value : float, default 0
        s before the first step.
    eps : float, default 1e-10
        ε.

    Raises
    ------
    InputError
        A hyperparameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0, 1.0]))
    >>> optimizer = optim.Adagrad([p], lr=0.1)
    >>> p.add_grad(np.array([0.01, 100.0]))
    >>> optimizer.step()  # each entry has its own scale
    >>> p.data.round(6).tolist()
    [0.9, 0.9]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.lr_decay = number("lr_decay", lr_decay, least=0)
        self.initial_accumulator_value = number(
            "initial_accumulator_value", initial_accumulator_value, least=0
        )
        self.eps = number("eps", eps, least=0)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return (lr / (1 + (t - 1) * self.lr_decay),)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, rate: Scalar) -> None:
        s = state["sum"]
        s += g * g
        p -= rate * g / (xp.sqrt(s) + self.eps)

    def start(self, xp: Namespace, p: Array) -> State:
        return {"sum": xp.full_like(p, self.initial_accumulator_value)}

    def state_names(self) -> tuple[str, ...]:
        return ("sum",)


class RMSprop(Optimizer):
    """p ← p - η δ: Adagrad with a short memory.

        s ← α s + (1 - α) g²
        δ ← g / (√s + ε),
        δ ← momentum · δ + g / (√s + ε)              with momentum;
        a ← α a + (1 - α) g,   s - a² in place of s  if centered.

    Tieleman & Hinton 2012 (lecture 6e of Neural Networks for Machine Learning); centered by
    Graves 2013, eq. 38-45. ε stands outside the root, as in PyTorch. A variance s - a² that
    rounding makes negative counts as 0 (PyTorch makes it nan).

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 0.01
        η.
    alpha : float, default 0.99
        α, from 0 to 1.
    eps : float, default 1e-8
        ε.
    weight_decay : float, default 0
        Factor of an L2 penalty ½‖p‖².
    momentum : float, default 0
    centered : bool, default False

    Raises
    ------
    InputError
        A hyperparameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> optimizer = optim.RMSprop([p], lr=0.1, alpha=0.75)
    >>> p.add_grad(np.array([123.0]))
    >>> optimizer.step()  # η / √(1 - α), whatever the gradient's scale
    >>> p.data.round(6).tolist()
    [0.8]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.alpha = number("alpha", alpha, least=0, most=1)
        self.eps = number("eps", eps, least=0)
        self.momentum = number("momentum", momentum, least=0)
        self.centered = centered

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return (lr,)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, lr: Scalar) -> None:
        s = state["square"]
        average(s, self.alpha, g, g)
        if self.centered:
            a = state["mean"]
            average(a, self.alpha, g)
            s = xp.maximum(s - a * a, 0.0)
        delta = g / (xp.sqrt(s) + self.eps)
        if self.momentum:
            v = state["velocity"]
            v *= self.momentum
            v += delta
            delta = v
        p -= lr * delta

    def state_names(self) -> tuple[str, ...]:
        return ("square", *("mean",) * self.centered, *("velocity",) * bool(self.momentum))


class Adadelta(Optimizer):
    """p ← p - η δ: steps in the unit of the parameter, without a learning rate to tune.

        s ← ρ s + (1 - ρ) g²
        δ = g √(u + ε) / √(s + ε)
        u ← ρ u + (1 - ρ) δ²

    Zeiler 2012, algorithm 1. The paper has no η; 1 is the paper's rule.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 1
        η.
    rho : float, default 0.9
        ρ, from 0 to 1.
    eps : float, default 1e-6
        ε, which also sets the size of the first steps: u starts at 0.
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
    >>> optimizer = optim.Adadelta([p], rho=0.75, eps=0.01)
    >>> p.add_grad(np.array([123.0]))
    >>> optimizer.step()  # √(ε / (1 - ρ)), whatever the gradient's scale
    >>> p.data.round(5).tolist()
    [0.8]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay)
        self.rho = number("rho", rho, least=0, most=1)
        self.eps = number("eps", eps, least=0)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return (lr,)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, lr: Scalar) -> None:
        s, u = state["square"], state["delta"]
        average(s, self.rho, g, g)
        delta = xp.sqrt(u + self.eps) / xp.sqrt(s + self.eps) * g
        average(u, self.rho, delta, delta)
        p -= lr * delta

    def state_names(self) -> tuple[str, ...]:
        return ("square", "delta")
