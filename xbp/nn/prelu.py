"""The rectifier with a learned slope."""

from __future__ import annotations

from functools import partial
from typing import Any

from xbp.arguments import integer, number
from xbp.backend import Array
from xbp.errors import InputError
from xbp.initializers import constant
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer
from xbp.nn.parameter import Parameter
from xbp.random import generator


class PReLU(Layer):
    """y = max(x, 0) + a min(x, 0), with one learned slope a for all of x or for each channel.

    ∂L/∂a = Σ δ min(x, 0) over all entries that share a, with δ = ∂L/∂y;  ∂L/∂x = δ for x > 0,
    else a δ (He et al. 2015, eqs. 1-3). At the kink x = 0 the slope is a, as in PyTorch.

    Parameters
    ----------
    num_parameters : int, default 1
        1, or the number of channels.
    init : float, default 0.25
        The initial slope.
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight : Parameter (num_parameters,)

    Notes
    -----
    Input of any shape; with more than one parameter (N, num_parameters, …). Weight decay pulls the
    slopes towards 0, which is ReLU; He et al. use none.

    Raises
    ------
    InputError
        In the constructor for num_parameters below 1, in forward for another number of channels.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.PReLU(dtype="float64")
    >>> y, backward = layer.forward(np.array([-4.0, 4.0]))
    >>> y.tolist(), backward(np.ones(2)).tolist(), layer.weight.grad.tolist()
    ([-1.0, 4.0], [0.25, 1.0], [-4.0])
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = "float32"
    ) -> None:
        self.num_parameters = integer("num_parameters", num_parameters, least=1)
        value = partial(constant, value=number("init", init))
        self.weight = Parameter.draw((self.num_parameters,), value, generator(0), dtype)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, channels = self.check_input(x), self.num_parameters
        if channels > 1 and (x.ndim < 2 or x.shape[1] != channels):
            msg = f"{self} expects input (N, {channels}, …), got shape {tuple(x.shape)}"
            raise InputError(msg)
        shape = tuple(channels if axis == 1 else 1 for axis in range(x.ndim))
        shared = tuple(axis for axis in range(x.ndim) if shape[axis] == 1)
        weight, add_grad = self.weight.lend()
        a, low = xp.reshape(weight, shape), xp.minimum(x, 0.0)

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, x.shape)
            add_grad(xp.reshape(xp.sum(dy * low, axis=shared), (channels,)))
            return xp.where(x > 0, dy, a * dy)

        return xp.maximum(x, 0.0) + a * low, backward

    def options(self) -> str:
        return f"{self.num_parameters}"
