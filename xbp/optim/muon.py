"""Muon: orthogonalized momentum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from xbp.arguments import described, integer, number
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.nn.embedding import Embedding
from xbp.nn.layer import Layer
from xbp.nn.norm import LayerNorm
from xbp.nn.parameter import Parameter
from xbp.nn.positions import LearnedPositions
from xbp.optim.adam import AdamW
from xbp.optim.groups import held_by, nonempty, parameters_of
from xbp.optim.optimizer import Coefficients, LearningRate, Optimizer, Parameters, State
from xbp.primitives import matmul
from xbp.primitives.reduced import precision
from xbp.primitives.updates import Scalar, add_scaled, average


class Muon(Optimizer):
    """p ← p - ηλp - η √max(1, rows/columns) O for matrices, with orthogonalized momentum O.

        m ← μ m + (1 - μ) g
        O = orthogonalized((1 - μ) g + μ m)  if nesterov,   else   O = orthogonalized(m)

    The singular values of O are about 1 (see `orthogonalized`), so that all directions of a matrix
    change equally. Factor and coefficients are those of Jordan et al. 2024 (Muon: An optimizer for
    hidden layers in neural networks), arguments, decay and defaults PyTorch's. O has the dtype of p
    (bfloat16 in PyTorch). A kernel (out, in, …) counts as the matrix (out, in · …) of its filters.

    Muon is meant for hidden weights; `muon_groups` leaves all other parameters to AdamW.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
        Of at least two axes.
    lr : float or schedule, default 0.001
        η. Jordan's is 0.02.
    weight_decay : float, default 0.1
        λ, decoupled from the gradient.
    momentum : float, default 0.95
        μ, from 0 to 1.
    nesterov : bool, default True
    ns_coefficients : (float, float, float), default (3.4445, -4.775, 2.0315)
    eps : float, default 1e-7
    ns_steps : int, default 5

    Raises
    ------
    InputError
        A parameter has fewer than two axes; a hyperparameter is out of range.

    Examples
    --------
    >>> from xbp import nn, optim
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> optimizer = optim.Muon(optim.muon_groups(model, lr=3e-4), lr=0.02)
    >>> [len(group["params"]) for group in optimizer.param_groups]
    [1, 5]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate = 0.001,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, decoupled_weight_decay=True)
        self.momentum = number("momentum", momentum, least=0, most=1)
        self.nesterov = nesterov
        if not isinstance(ns_coefficients, tuple | list) or len(ns_coefficients) != 3:
            msg = f"ns_coefficients must be three numbers, got {described(ns_coefficients)}"
            raise InputError(msg)
        a, b, c = (number("each of ns_coefficients", value) for value in ns_coefficients)
        self.ns_coefficients = (a, b, c)
        self.eps = number("eps", eps, least=0)
        self.ns_steps = integer("ns_steps", ns_steps, least=1)
        for rule, indices in self.rules():
            for index in indices if isinstance(rule, Muon) else ():
                shape = self.parameters[index].shape
                if len(shape) < 2:
                    msg = (
                        f"Muon takes matrices and kernels, but parameter {index} has the shape "
                        f"{shape}; give it to AdamW: optim.Muon(optim.muon_groups(model), …)"
                    )
                    raise InputError(msg)

    def coefficients(self, lr: float, t: int) -> Coefficients:
        return (-lr,)

    def update(self, xp: Namespace, p: Array, g: Array, state: State, rate: Scalar) -> None:
        m, mu = state["m"], self.momentum
        average(m, mu, g)
        direction = (1 - mu) * g + mu * m if self.nesterov else m
        rows, columns = p.shape[0], math.prod(p.shape[1:])
        flat = xp.reshape(direction, (rows, columns))
        o = orthogonalized(xp, flat, self.ns_coefficients, self.ns_steps, self.eps)
        factor = math.sqrt(max(1, rows / max(1, columns)))
        add_scaled(p, rate, factor * xp.reshape(o, p.shape))

    def state_names(self) -> tuple[str, ...]:
        return ("m",)


def orthogonalized(
    xp: Namespace,
    g: Array,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
) -> Array:
    """An approximation of U Vᵀ of the singular value decomposition g = U S Vᵀ, by products alone.

        x = g / max(‖g‖, ε),      then repeatedly      x ← a x + b (x xᵀ) x + c (x xᵀ)² x

    The Newton-Schulz iteration in the form of Jordan et al. 2024: each step maps every singular
    value s of x to a s + b s³ + c s⁵. With their coefficients five steps map all values above 0.003
    into the interval from 0.68 to 1.21, where further steps keep them; they do not converge to 1.

    Parameters
    ----------
    g : array (rows, columns)
    coefficients : (a, b, c)
    steps : int
    eps : float

    Returns
    -------
    array (rows, columns)
    """
    a, b, c = coefficients
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g  # x xᵀ is the smaller product
    x = x / xp.maximum(xp.sqrt(xp.sum(x * x)), eps)
    with precision("float32"):  # also within a block of reduced precision
        for _ in range(steps):
            square = matmul(x, x.T)
            x = a * x + matmul(b * square + c * matmul(square, square), x)
    return x.T if tall else x


def muon_groups(
    model: Layer, *, others: Iterable[Layer | Parameter] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Two parameter groups of a model: hidden weights, for Muon, and all others, for AdamW.

    Hidden weights are the parameters of at least two axes, except the tables of embeddings and
    positions, the scales of normalizations, and the first and the last matrix in the order of
    ``model.named_parameters()``, which read the input and compute the output. (Jordan et al. 2024:
    embeddings and the last layer are better left to AdamW; vectors must be.) A model whose output
    matrix is its embedding's table has no other last one: ``muon_groups(gpt, others=[])``.

    Parameters
    ----------
    model : Layer
    others : iterable of Layer or Parameter, optional
        Parameters for AdamW instead of the first and the last matrix.
    **options
        Options of AdamW, such as ``lr=3e-4``.

    Returns
    -------
    list of dict
        For `Muon`; an empty group is left out.

    Raises
    ------
    InputError
        `model` is no layer, or `others` are neither layers nor parameters.
    """
    parameters = parameters_of(model, "muon_groups")
    matrices = [parameter for parameter in parameters if parameter.data.ndim >= 2]
    visible = [*matrices[:1], *matrices[-1:]] if others is None else _all_of(others)
    left = {id(parameter) for parameter in visible}
    left |= held_by(model, Embedding, LearnedPositions, LayerNorm)
    hidden = [parameter for parameter in matrices if id(parameter) not in left]
    taken = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in parameters if id(parameter) not in taken]
    return nonempty({"params": hidden}, {"params": rest, "rule": AdamW, **options})


def _all_of(others: Any) -> list[Parameter]:
    if not isinstance(others, Iterable) or isinstance(others, Layer):
        others = [others]
    found: list[Parameter] = []
    for other in others:
        if not isinstance(other, Layer | Parameter):
            msg = f"others must be layers or Parameters of the model, got {described(other)}"
            raise InputError(msg)
        found += [other] if isinstance(other, Parameter) else other.parameters()
    return found
