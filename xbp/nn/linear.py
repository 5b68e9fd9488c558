"""The fully connected layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from xbp.arguments import integer
from xbp.errors import InputError
from xbp.initializers import Initializer, fan_in_uniform
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.parameter import Parameter
from xbp.primitives.product import affine
from xbp.random import Seed, generator


class Linear(OperationLayer):
    """y = x Wᵀ + b.

    With δ = ∂L/∂y and sums over all rows of x:  ∂L/∂W = δᵀ x,  ∂L/∂b = Σ δ,  ∂L/∂x = δ W
    (Goodfellow et al. 2016, algorithm 6.4); see `xbp.primitives.affine`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default both draw from U(-1/√in, 1/√in), as in PyTorch.

    Attributes
    ----------
    weight : Parameter (out_features, in_features)
    bias : Parameter (out_features,) or None

    Notes
    -----
    Input (…, in_features), output (…, out_features), with any number of leading axes.

    Raises
    ------
    InputError
        In the constructor for sizes below 1, in forward for another number of features or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.Linear(2, 1, dtype="float64", rng=0)
    >>> layer.load_state_dict({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])})
    >>> y, backward = layer.forward(np.array([[1.0, 1.0]]))
    >>> y.tolist(), backward(np.array([[1.0]])).tolist()
    ([[6.0]], [[1.0, 2.0]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = fan_in_uniform,
        bias_init: Initializer | None = None,
    ) -> None:
        self.in_features = integer("in_features", in_features, least=1)
        self.out_features = integer("out_features", out_features, least=1)
        rng = generator(rng)
        self.weight = Parameter.draw((out_features, in_features), weight_init, rng, dtype)
        self.bias = None
        if bias:
            bias_init = bias_init or partial(fan_in_uniform, fan_in=in_features)
            self.bias = Parameter.draw((out_features,), bias_init, rng, dtype)

    def operation(self) -> Operation:
        return Operation(affine, (self.weight,), (self.bias,))

    def output_shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != self.in_features:
            msg = f"{self} expects input (…, {self.in_features}), got shape {tuple(shape)}"
            raise InputError(msg)
        return (*shape[:-1], self.out_features)

    def options(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
