"""Layers that flatten, or select the last time step."""

from __future__ import annotations

import math

from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.primitives.images import flatten


class Flatten(OperationLayer):
    """(N, a, b, …) → (N, a·b·…), in row-major order; backward restores the shape.

    Raises
    ------
    InputError
        The input has no batch axis.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Flatten()(np.zeros((2, 16, 5, 5))).shape
    (2, 400)
    """

    complex_gradients = True

    def operation(self) -> Operation:
        return Operation(flatten)

    def output_shape(self, shape: Shape) -> Shape:
        if not shape:
            msg = f"{self} expects input (N, …), got a single number"
            raise InputError(msg)
        return shape[0], math.prod(shape[1:])


class LastTimeStep(Layer):
    """(N, T, …) → (N, …): the last time step; ∂L/∂x is ∂L/∂y there, and 0 before it.

    After a recurrent layer it makes a Sequential a classifier of sequences. (In a bidirectional
    one, the reverse half of the last step has read that step only.)

    Raises
    ------
    InputError
        The input has no time axis, or no time step.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> y, backward = nn.LastTimeStep().forward(np.array([[[1.0], [2.0]]]))
    >>> y.tolist(), backward(y).tolist()
    ([[2.0]], [[[0.0], [2.0]]])
    """

    complex_gradients = True

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        if x.ndim < 2 or x.shape[1] == 0:
            msg = (
                f"{self} expects input (N, T, …) of at least one time step, "
                f"got shape {tuple(x.shape)}"
            )
            raise InputError(msg)

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, shape)
            dx = xp.zeros(x.shape, dtype=dy.dtype, device=dy.device)
            dx[:, -1, ...] = dy
            return dx

        y = x[:, -1, ...]
        shape = y.shape
        return y, backward


Last = LastTimeStep
"""The earlier name of `LastTimeStep`."""
