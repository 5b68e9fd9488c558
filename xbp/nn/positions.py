"""Positions of a sequence, added to its vectors, since attention alone is blind to order."""

from __future__ import annotations

from typing import Any, ClassVar

from xbp.arguments import integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.initializers import Initializer, normal, sinusoidal
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer
from xbp.nn.parameter import Buffer, Parameter
from xbp.random import Seed, generator


class LearnedPositions(Layer):
    """y_t = x_t + W[t, :], with a learned vector for each position t.

    ∂L/∂W[t, :] = Σ ∂L/∂y_t over the samples, 0 for positions beyond the input;  ∂L/∂x = ∂L/∂y.
    (Gehring et al. 2017; GPT-2's wpe, together with the sum.)

    Parameters
    ----------
    length : int
        The longest sequence.
    width : int
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init : callable, optional
        From `xbp.initializers`. By default N(0, 1), as in an Embedding.

    Attributes
    ----------
    weight : Parameter (length, width)

    Notes
    -----
    Input (N, T, width) with T up to `length`, output of the same shape.

    Raises
    ------
    InputError
        In the constructor for sizes below 1; in forward for another width or too long a sequence.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.LearnedPositions(16, 8, dtype="float64", rng=0)(np.zeros((2, 5, 8))).shape
    (2, 5, 8)
    """

    kind: ClassVar[type[Parameter]] = Parameter

    def __init__(
        self,
        length: int,
        width: int,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = normal,
    ) -> None:
        self.length = integer("length", length, least=1)
        self.width = integer("width", width, least=1)
        shape = (self.length, self.width)
        self.weight = self.kind.draw(shape, weight_init, generator(rng), dtype)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        if x.ndim != 3 or x.shape[1] > self.length or x.shape[2] != self.width:
            msg = (
                f"{self} expects input (N, T, {self.width}) of at most {self.length} time steps, "
                f"got shape {tuple(x.shape)}"
            )
            raise InputError(msg)
        (weight, add_grad), steps = self.weight.lend(), x.shape[1]
        y = x + weight[:steps, :]

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            if self.weight.trainable:
                dweight = xp.zeros_like(weight)
                dweight[:steps, :] = xp.sum(dy, axis=0)
                add_grad(dweight)
            return dy

        return y, backward

    def options(self) -> str:
        return f"{self.length}, {self.width}"


class SinusoidalPositions(LearnedPositions):
    """y_t = x_t + W[t, :], where W is not learned, but consists of sines and cosines of t.

    Column 2i has sin(t ω_i) and 2i + 1 has cos(t ω_i), with ω_i = 10000^(-2i/width): Vaswani et
    al. 2017, section 3.5, and `xbp.initializers.sinusoidal`.

    Parameters
    ----------
    length : int
        The longest sequence.
    width : int
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight : Buffer (length, width)

    Notes
    -----
    Input (N, T, width) with T up to `length`, output of the same shape.

    Raises
    ------
    InputError
        As for `LearnedPositions`.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.SinusoidalPositions(3, 2)(np.zeros((1, 1, 2), np.float32)).tolist()
    [[[0.0, 1.0]]]
    """

    kind = Buffer

    def __init__(self, length: int, width: int, *, dtype: Any = "float32") -> None:
        super().__init__(length, width, dtype=dtype, rng=0, weight_init=sinusoidal)
