"""Gated linear units: one half of the features gates the other."""

from __future__ import annotations

from xbp.arguments import integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer
from xbp.primitives import sigmoid


class GLU(Layer):
    """y = a ∘ σ(b), where a is the first half of x along an axis, and b the second.

    With s = σ(b), σ′ = s (1 - s):  ∂L/∂a = s ∘ dy,  ∂L/∂b = a ∘ s ∘ (1 - s) ∘ dy
    (Dauphin et al. 2017, section 2).

    Parameters
    ----------
    dim : int, default -1
        The axis; PyTorch's name.

    Raises
    ------
    InputError
        The input has no such axis, or an odd number of entries along it.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.GLU()(np.array([[3.0, 4.0, 0.0, 0.0]])).tolist()
    [[1.5, 2.0]]
    """

    def __init__(self, dim: int = -1) -> None:
        self.dim = integer("dim", dim, least=-64)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        a, b = self.halves(x)
        s = sigmoid(b)
        y = a * s

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            return xp.concat([s * dy, y * (1 - s) * dy], axis=self.dim)

        return y, backward

    def halves(self, x: Array) -> tuple[Array, Array]:
        """a and b."""
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] % 2:
            msg = f"{self} needs an even number of entries to halve, got shape {tuple(x.shape)}"
            raise InputError(msg)
        before, half = (slice(None),) * (self.dim % x.ndim), x.shape[self.dim] // 2
        return x[(*before, slice(half), ...)], x[(*before, slice(half, None), ...)]

    def options(self) -> str:
        return f"dim={self.dim}"


class SwiGLU(GLU):
    """y = a σ(a) ∘ b, where a is the first half of x along an axis, and b the second.

    GLU with a `SiLU` gate, which is the first half, as in Shazeer 2020, eq. 5. With s = σ(a):
    ∂L/∂a = b ∘ (s + a s (1 - s)) ∘ dy,  ∂L/∂b = a s ∘ dy.

    Parameters
    ----------
    dim : int, default -1

    Raises
    ------
    InputError
        As for `GLU`.

    Examples
    --------
    LLaMA's feed-forward network, with its first two products in one Linear:

    >>> import numpy as np
    >>> from xbp import nn
    >>> mlp = nn.Sequential(nn.Linear(4, 2 * 16, rng=0), nn.SwiGLU(), nn.Linear(16, 4, rng=1))
    >>> mlp(np.zeros((3, 4), np.float32)).shape
    (3, 4)
    """

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        a, b = self.halves(x)
        s = sigmoid(a)
        gate = a * s
        y = gate * b

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            slope = s + gate * (1 - s)
            return xp.concat([b * slope * dy, gate * dy], axis=self.dim)

        return y, backward
