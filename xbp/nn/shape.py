"""Layers that only rearrange."""

from __future__ import annotations

import math

from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.layer import Backward, Layer, Rng


class Flatten(Layer):
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

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.namespace(x)
        if x.ndim == 0:
            msg = f"{self} expects input (N, …), got a single number"
            raise InputError(msg)

        def backward(dy: Array) -> Array:
            return xp.reshape(dy, x.shape)

        return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), backward
