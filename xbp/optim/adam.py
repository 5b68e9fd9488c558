"""Adam's family: an average of the gradients, divided by a scale for each entry.

p ← p - η m̂ / s, with a `mean` m̂ and a `scale` s for each member:

    =======  =======================================  =========================================
    Adam     m̂ = m / (1 - β₁ᵗ)                        s = √v̂ + ε
    AdamW    as Adam                                  as Adam, with decoupled weight decay
    Adamax   the same                                 s = max(β₂ s, abs(g) + ε)
    NAdam    of m one step ahead (Nesterov)           as Adam
    RAdam    as Adam                                  as Adam, and 1 while v̂ is unreliable
    =======  =======================================  =========================================
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from xbp.arguments import number
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.optim.optimizer import Coefficients, LearningRate, Optimizer, Parameters, State
from xbp.primitives.updates import Scalar, adaptive_step, average, normalized_step


class Adam(Optimizer):
    """p ← p - η m̂ / (√v̂ + ε): a step of about η along each coordinate.

        m ← β₁ m + (1 - β₁) g,      m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) g²,     v̂ = v / (1 - β₂ᵗ)

    Kingma & Ba 2015, algorithm 1. With `amsgrad` the largest v so far takes the place of v in v̂,
    so that no large gradient is forgotten (Reddi, Kale & Kumar 2018, algorithm 2, which divides
    neither m nor v by 1 - βᵗ; PyTorch does, and so does this).

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
    lr : float or schedule, default 0.001
        η.
    betas : (float, float), default (0.9, 0.999)
        β₁, β₂, each at least 0 and below 1.
    eps : float, default 1e-8
        ε.
    weight_decay : float, default 0
        Factor of an L2 penalty ½‖p‖², as in PyTorch's Adam.
    amsgrad : bool, default False
    decoupled_weight_decay : bool, default False
        True is AdamW.

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
        parameters: Parameters,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        decoupled = decoupled_weight_decay
        super().__init__(parameters, lr, weight_decay, decoupled_weight_decay=decoupled)
        self.betas = pair_of_betas(betas)
        self.eps = number("eps", eps, least=0)
        self.amsgrad = amsgrad

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return *self.scale(t), *self.rate(lr, t)

    def update(
        self,
        xp: Namespace,
        p: Array,
        g: Array,
        state: State,
        scale: Scalar,
        eps: Scalar,
        *rate: Scalar,
    ) -> None:
        if self.multi_tensor():
            adaptive_step(p, state["m"], state["v"], g, *self.betas, rate[0], scale, eps)
            return
        average(state["m"], self.betas[0], g)
        average(state["v"], self.betas[1], g, g)
        factor, mean = self.mean(state["m"], g, *rate)
        v = state["v"]
        if self.amsgrad:
            state["v_max"][...] = xp.maximum(state["v_max"], v)
            v = state["v_max"]
        normalized_step(p, factor, mean, scale, v, eps)

    def multi_tensor(self) -> bool:
        own = type(self)
        return own.update is Adam.update and own.mean is Adam.mean and not self.amsgrad

    def rate(self, lr: float, t: int) -> Coefficients:
        """The arguments of `mean` that change with the step."""
        return (lr / (1 - self.betas[0] ** t),)

    def mean(self, m: Array, g: Array, *rate: Scalar) -> tuple[Scalar, Array]:
        """η m̂, as a factor and an array."""
        return rate[0], m

    def scale(self, t: int) -> tuple[float, float]:
        """A and b of the divisor s = a √v + b."""
        return 1 / math.sqrt(1 - self.betas[1] ** t), self.eps

    def state_names(self) -> tuple[str, ...]:
        return ("m", "v", *("v_max",) * self.amsgrad)


class AdamW(Adam):
    """Adam with decoupled weight decay: p ← p - ηλp, then the step of Adam.

    The decay is the same for all entries; an L2 penalty in the gradient would be divided by √v̂.
    Loshchilov & Hutter 2019, algorithm 2, with λ times the rate, as in PyTorch.

    Parameters
    ----------
    parameters, lr, betas, eps, amsgrad
        As for `Adam`.
    weight_decay : float, default 0.01
        λ.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> optimizer = optim.AdamW([p], lr=0.1, weight_decay=0.5)
    >>> p.add_grad(np.array([0.0]))
    >>> optimizer.step()  # no gradient, only the decay
    >>> p.data.tolist()
    [0.95]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True
        )


class Adamax(Adam):
    """p ← p - η m̂ / u: Adam with a decaying maximum of |g| instead of the root mean square.

        u ← max(β₂ u, |g| + ε)      entry by entry

    Kingma & Ba 2015, algorithm 2, with PyTorch's ε, so that an entry whose gradients are all 0 does
    not change; in the paper it gives 0 / 0.

    Parameters
    ----------
    parameters, betas, eps, weight_decay
        As for `Adam`.
    lr : float or schedule, default 0.002
        η.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0, 1.0, 1.0]))
    >>> optimizer = optim.Adamax([p], lr=0.1)
    >>> p.add_grad(np.array([0.01, 100.0, 0.0]))
    >>> optimizer.step()  # each entry has its own norm
    >>> p.data.round(6).tolist()
    [0.9, 0.9, 1.0]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return self.rate(lr, t)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, *rate: Scalar) -> None:
        m, u = state["m"], state["u"]
        average(m, self.betas[0], g)
        u[...] = xp.maximum(self.betas[1] * u, xp.abs(g) + self.eps)
        p -= rate[0] * m / u

    def state_names(self) -> tuple[str, ...]:
        return ("m", "u")


class NAdam(Adam):
    """p ← p - η m̂ / (√v̂ + ε): Adam with Nesterov's momentum, which looks one step ahead.

        μ_t = β₁ (1 - ½ · 0.96^(ψt)),     Π_t = μ_1 μ_2 ⋯ μ_t
        m̂ = (1 - μ_t) g / (1 - Π_t) + μ_(t+1) m / (1 - Π_(t+1)),     m and v̂ as in Adam

    Dozat 2016, algorithm 2, as in PyTorch: m is averaged with β₁ instead of the paper's μ_t, and v̂
    is Adam's, without the paper's factor β₂. Π_t is computed from t and not part of the state;
    PyTorch stores it in its default dtype (float32 unless set).

    Parameters
    ----------
    parameters, betas, eps, weight_decay, decoupled_weight_decay
        As for `Adam`.
    lr : float or schedule, default 0.002
        η.
    momentum_decay : float, default 0.004
        ψ, the speed at which μ grows from about β₁/2 to β₁; 0 keeps it at β₁/2.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> optimizer = optim.NAdam([p], lr=0.1, betas=(0.5, 0.9), momentum_decay=0.0)
    >>> p.add_grad(np.array([123.0]))
    >>> optimizer.step()  # m̂ = g + (0.25 · 0.5 / (1 - 0.25²)) g
    >>> p.data.round(6).tolist()
    [0.886667]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        decoupled = decoupled_weight_decay
        super().__init__(parameters, lr, betas, eps, weight_decay, decoupled_weight_decay=decoupled)
        self.momentum_decay = number("momentum_decay", momentum_decay, least=0)
        self._products: dict[tuple[float, float], list[float]] = {}

    def rate(self, lr: float, t: int) -> Coefficients:
        now = (1 - self.mu(t)) / (1 - self.product(t))
        ahead = self.mu(t + 1) / (1 - self.product(t + 1))
        return lr, now, ahead

    def mean(self, m: Array, g: Array, *rate: Scalar) -> tuple[Scalar, Array]:
        lr, now, ahead = rate
        return lr, now * g + ahead * m

    def mu(self, t: int) -> float:
        """μ_t."""
        return self.betas[0] * (1 - 0.5 * math.pow(0.96, self.momentum_decay * t))

    def product(self, t: int) -> float:
        """Π_t, from cached earlier values up to the first 0."""
        products = self._products.setdefault((self.betas[0], self.momentum_decay), [1.0])
        while len(products) <= t and products[-1]:
            products.append(products[-1] * self.mu(len(products)))
        return products[t] if t < len(products) else 0.0


class RAdam(Adam):
    """p ← p - η r m̂ / √v̂ once v̂ is reliable, and p ← p - η m̂ before.

        ρ_∞ = 2 / (1 - β₂) - 1,     ρ_t = ρ_∞ - 2t β₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ_t - 4)(ρ_t - 2) ρ_∞ / ((ρ_∞ - 4)(ρ_∞ - 2) ρ_t))     if ρ_t > 5

    m̂ and v̂ are Adam's; r grows from near 0 to 1 and replaces a warm-up of the rate. Liu et al.
    2020, algorithm 2, as in PyTorch: the threshold is 5, as in the authors' code (4 in the paper),
    and the divisor is (√v + ε) / √(1 - β₂ᵗ) (without ε in the paper).

    Parameters
    ----------
    parameters, lr, betas, eps, weight_decay, decoupled_weight_decay
        As for `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> optimizer = optim.RAdam([p], lr=0.1)
    >>> p.add_grad(np.array([2.0]))
    >>> optimizer.step()  # the first five steps are those of momentum
    >>> p.data.round(6).tolist()
    [0.8]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        decoupled = decoupled_weight_decay
        super().__init__(parameters, lr, betas, eps, weight_decay, decoupled_weight_decay=decoupled)

    def scale(self, t: int) -> tuple[float, float]:
        beta2 = self.betas[1]
        unbias = 1 - beta2**t
        last = 2 / (1 - beta2) - 1
        now: float = last - 2 * t * beta2**t / unbias
        if now <= 5:
            return 0.0, 1.0
        r = math.sqrt((now - 4) * (now - 2) * last / ((last - 4) * (last - 2) * now))
        scale = 1 / (math.sqrt(unbias) * r)
        return scale, scale * self.eps


def pair_of_betas(betas: Any) -> tuple[float, float]:
    """Two rates of exponential averages, as floats.

    Raises
    ------
    InputError
        They are not two numbers of at least 0 and below 1.
    """
    if isinstance(betas, tuple | list) and len(betas) == 2:
        first, second = betas
        if all(isinstance(b, Real) and 0 <= float(b) < 1 for b in betas):
            return float(first), float(second)
    msg = f"betas must be two numbers of at least 0 and below 1, got {betas!r}"
    raise InputError(msg)
