"""Activations: a table of formulas with their derivatives.

Each elementwise activation is one `formula` that returns f(x) and a function giving f′(x); the
latter is called in the backward only, and keeps alive no more than it uses.
"""

from __future__ import annotations

from collections.abc import Callable

from xbp.arguments import integer, number
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.nn.layer import Backward, Layer, Rng


class Elementwise(Layer):
    """y = f(x) for each entry; ∂L/∂x = f′(x) ∘ ∂L/∂y. A subclass is one `formula`.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> class Square(nn.Elementwise):
    ...     def formula(self, xp, x):
    ...         return x * x, lambda: 2 * x
    >>> y, backward = Square().forward(np.array([3.0]))
    >>> y.tolist(), backward(np.array([1.0])).tolist()
    ([9.0], [6.0])
    """

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        """f(x), and a function without arguments that returns f′(x)."""
        msg = f"{type(self).__name__} has no formula; define formula(self, xp, x) -> y, derivative"
        raise NotImplementedError(msg)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        y, derivative = self.formula(self.namespace(x), x)

        def backward(dy: Array) -> Array:
            return derivative() * dy

        return y, backward


class ReLU(Elementwise):
    """max(x, 0); slope 1 for x > 0, else 0 (also at the kink x = 0, as in PyTorch)."""

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        y = xp.maximum(x, 0.0)
        return y, lambda: xp.astype(y > 0, y.dtype)


class LeakyReLU(Elementwise):
    """x for x > 0, else negative_slope · x; at the kink x = 0 the slope is `negative_slope`.

    Parameters
    ----------
    negative_slope : float, default 0.01
        Maas et al. 2013.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = number("negative_slope", negative_slope)

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        positive = xp.astype(x > 0, x.dtype)
        slope = positive + self.negative_slope * (1 - positive)
        return slope * x, lambda: slope

    def options(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class Sigmoid(Elementwise):
    """σ(x) = 1 / (1 + e⁻ˣ), σ′ = σ (1 - σ).

    Computed from e^-|x|, which cannot overflow: for x < 0 as e^x / (1 + e^x), so that small values
    keep their relative accuracy.
    """

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        e = xp.exp(-xp.abs(x))
        y = xp.where(x >= 0, 1.0, e) / (1 + e)
        return y, lambda: y * (1 - y)


class Tanh(Elementwise):
    """tanh(x) = (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ), tanh′ = 1 - tanh²."""

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        y = xp.tanh(x)
        return y, lambda: 1 - y * y


class Softmax(Layer):
    """y_i = e^{x_i} / Σ_j e^{x_j} along one axis.

    Its Jacobian is ∂y_i/∂x_j = y_i (δ_ij - y_j), so ∂L/∂x = y ∘ (dy - Σ_j y_j dy_j).
    The largest x is subtracted first, which changes nothing but keeps the exponentials finite.

    Parameters
    ----------
    axis : int, default -1

    Raises
    ------
    InputError
        The input has no such axis.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = integer("axis", axis, least=-64)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, axis = self.namespace(x), self.axis
        if not -x.ndim <= axis < x.ndim:
            msg = f"{self} got input of shape {tuple(x.shape)}, which has no axis {axis}"
            raise InputError(msg)
        e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        y = e / xp.sum(e, axis=axis, keepdims=True)

        def backward(dy: Array) -> Array:
            return y * (dy - xp.sum(y * dy, axis=axis, keepdims=True))

        return y, backward

    def options(self) -> str:
        return f"axis={self.axis}"
