"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from xbp import nn
from xbp.arguments import integer
from xbp.errors import InputError
from xbp.nn.activations import made
from xbp.random import Seed, generator

T = TypeVar("T")
Activation: TypeAlias = "Callable[[], nn.Layer]"
"""A layer's class, or another function without arguments that makes a new layer."""


class MLP(nn.Sequential):
    """A dense network of any depth and width.

    Each hidden layer is a Linear, an activation and, if its p is above 0, a Dropout. A last Linear
    follows, and the output activation if there is one.

    Parameters
    ----------
    *sizes : int
        The number of inputs, of units in each hidden layer, and of outputs: at least two numbers.
    activation : callable, or sequence with one for each hidden layer; default nn.ReLU
        A layer's class, or another function without arguments that makes a new layer, such as
        ``lambda: nn.LeakyReLU(0.2)``.
    output_activation : callable, optional
        As `activation`; none for losses that take logits.
    bias : bool, default True
    dropout : float, or sequence with one for each hidden layer; default 0
        The probability that an activation of a hidden layer is dropped.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Notes
    -----
    Input (…, sizes[0]), output (…, sizes[-1]).

    Raises
    ------
    InputError
        There are fewer than two sizes or one is below 1; a sequence does not have one entry for
        each hidden layer; an activation makes no layer; a dropout is not from 0 to 1.

    Examples
    --------
    >>> from xbp import models, nn
    >>> models.MLP(30, 64, 32, 1, activation=[nn.Sigmoid, nn.ReLU], dropout=[0, 0.2], rng=0)
    MLP(
      (0): Linear(30, 64, bias=True)
      (1): Sigmoid()
      (2): Linear(64, 32, bias=True)
      (3): ReLU()
      (4): Dropout(p=0.2)
      (5): Linear(32, 1, bias=True)
    )
    """

    def __init__(
        self,
        *sizes: int,
        activation: Activation | Sequence[Activation] = nn.ReLU,
        output_activation: Activation | None = None,
        bias: bool = True,
        dropout: float | Sequence[float] = 0.0,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        if len(sizes) < 2:
            msg = f"MLP needs the number of inputs and of outputs at least, got {sizes}"
            raise InputError(msg)
        for index, size in enumerate(sizes):
            integer(f"size {index} of an MLP", size, least=1)
        rng = generator(rng)
        hidden = len(sizes) - 2
        activations = _one_each("activation", activation, hidden)
        drops = [nn.Dropout(p) for p in _one_each("dropout", dropout, hidden)]
        layers: list[nn.Layer] = []
        for i in range(hidden):
            layers.append(nn.Linear(sizes[i], sizes[i + 1], bias, dtype=dtype, rng=rng))
            layers.append(made(activations[i]))
            layers += [drops[i]] if drops[i].p else []
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias, dtype=dtype, rng=rng))
        layers += [] if output_activation is None else [made(output_activation)]
        super().__init__(*layers)
        self.arguments = {
            "sizes": list(sizes),
            "activation": activations,
            "output_activation": output_activation,
            "bias": bias,
            "dropout": [drop.p for drop in drops],
        }
        self.astype(dtype)  # an activation may have parameters too


def _one_each(name: str, value: T | Sequence[T], hidden: int) -> list[T]:
    """`value`, one for all or a sequence, as a list with an entry for each hidden layer."""
    if not isinstance(value, list | tuple):
        return [value] * hidden  # type: ignore[list-item]
    if len(value) != hidden:
        msg = f"{name} must be one for all, or one for each of {hidden} hidden layers, got {value}"
        raise InputError(msg)
    return list(value)
