"""Elementwise activations: a table of formulas with their derivatives.

Each is one `formula`, which returns f(x) and a function giving f′(x). The latter is called in the
backward only, and keeps alive no more than it uses. Values and slopes are finite, and no warning
is raised, at any x whose cube is finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from xbp.arguments import choice, number, positive
from xbp.backend import Array, Namespace
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng, not_both
from xbp.nn.layer import Layer
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.primitives import gelu, logistic, rectify, sigmoid, silu, tanh


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
        xp = self.check_input(x)
        result = self.formula(xp, x)
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise not_both(self, "formula", "y, derivative", result)
        y, derivative = result
        shape = y.shape

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, shape)
            return derivative() * dy

        return y, backward


class ElementwiseOperation(OperationLayer, Elementwise):
    """An elementwise function that is a primitive."""

    primitive: ClassVar[Any]

    def operation(self) -> Operation:
        return Operation(self.primitive)

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        operation = self.operation()
        y, gradients = operation.primitive(x, **operation.options)
        return y, lambda: gradients(xp.ones_like(y))[0]


class ReLU(ElementwiseOperation):
    """max(x, 0); slope 1 for x > 0, else 0 (also at the kink x = 0, as in PyTorch)."""

    primitive = rectify


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
        above = xp.astype(x > 0, x.dtype)
        slope = above + self.negative_slope * (1 - above)
        return slope * x, lambda: slope

    def options(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class ELU(Elementwise):
    """x for x > 0, else alpha (eˣ - 1); at x = 0 the slope is `alpha`, as in PyTorch.

    Clevert et al. 2016, eq. 15. With the default there is no kink.

    Parameters
    ----------
    alpha : float, default 1.0
    """

    scale = 1.0

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = number("alpha", alpha)

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        scale, alpha = self.scale, self.alpha
        low = xp.minimum(x, 0.0)  # the unused eˣ of a large x would overflow
        y = scale * (xp.maximum(x, 0.0) + alpha * xp.expm1(low))
        return y, lambda: scale * xp.where(x <= 0, alpha * xp.exp(low), 1.0)

    def options(self) -> str:
        return f"alpha={self.alpha:g}"


class SELU(ELU):
    """λ ELU(x) with α = 1.67326… and λ = 1.05070…; at the kink x = 0 the slope is λα.

    Klambauer et al. 2017, eq. 2. The constants make mean 0 and variance 1 a stable fixed point of
    a layer whose weights have mean 0 and variance 1/fan_in (`initializers.lecun_normal`).
    """

    scale = 1.0507009873554804934193349852946

    def __init__(self) -> None:
        super().__init__(alpha=1.6732632423543772848170429916717)

    def options(self) -> str:
        return ""


class Sigmoid(ElementwiseOperation):
    """σ(x) = 1 / (1 + e⁻ˣ), σ′ = σ (1 - σ)."""

    primitive = logistic


class Tanh(ElementwiseOperation):
    """tanh(x) = (eˣ - e⁻ˣ) / (eˣ + e⁻ˣ), tanh′ = 1 - tanh²."""

    primitive = tanh


class ScaledTanh(Elementwise):
    """A tanh(Sx), with slope A S (1 - tanh²(Sx)).

    LeCun, Bottou, Bengio & Haffner 1998, eq. 6 and appendix A: with the defaults f(±1) = ±1 and
    the curvature is greatest there, so that targets of ±1 do not drive units into saturation.

    Parameters
    ----------
    amplitude, slope : float, default 1.7159 and 2/3
        A and S.
    """

    def __init__(self, amplitude: float = 1.7159, slope: float = 2 / 3) -> None:
        self.amplitude = number("amplitude", amplitude)
        self.slope = number("slope", slope)

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        amplitude, slope = self.amplitude, self.slope
        t = xp.tanh(slope * x)
        return amplitude * t, lambda: amplitude * slope * (1 - t * t)

    def options(self) -> str:
        return f"amplitude={self.amplitude:g}, slope={self.slope:g}"


class Softplus(Elementwise):
    """log(1 + e^βx) / β, a smooth max(x, 0); its derivative is σ(βx).

    Computed as (max(βx, 0) + log1p(e^-|βx|)) / β, which cannot overflow and keeps all digits. So
    there is no `threshold`, beyond which PyTorch replaces y by x and the slope by 1 (at the cost
    of 2e-9 at its default of 20).

    Parameters
    ----------
    beta : float, default 1.0
        Above 0. (Dugas et al. 2001 have 1.)
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = positive("beta", beta)

    def formula(self, xp: Namespace, x: Array) -> tuple[Array, Callable[[], Array]]:
        z = self.beta * x
        y = (xp.maximum(z, 0.0) + xp.log1p(xp.exp(-xp.abs(z)))) / self.beta
        return y, lambda: sigmoid(z)

    def options(self) -> str:
        return f"beta={self.beta:g}"


class SiLU(ElementwiseOperation):
    """x σ(x), also called swish (Elfwing et al. 2018; Ramachandran et al. 2017)."""

    primitive = silu


class GELU(ElementwiseOperation):
    """x Φ(x), where Φ is the standard normal distribution function (Hendrycks & Gimpel 2016).

    ==========================  ==================================================
    ``GELU()``                  Φ(x) = ½ erfc(-x/√2), Φ′(x) = e^(-x²/2) / √2π
    ``GELU("tanh")``            σ(2u) = ½ (1 + tanh u) in place of Φ, where
                                u = √(2/π) (x + 0.044715 x³)
    ==========================  ==================================================

    Neither form cancels: far below 0, where 1 + erf and 1 + tanh lose all their digits, y keeps
    nearly all of them.

    Parameters
    ----------
    approximate : {"none", "tanh"}, default "none"
        As in PyTorch.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> [f"{y:.6g}" for y in nn.GELU()(np.array([-20.0, -1.0, 0.0, 1.0]))]
    ['-5.50725e-88', '-0.158655', '0', '0.841345']
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = choice("approximate", approximate, ("none", "tanh"))

    def operation(self) -> Operation:
        return Operation(gelu, options={"approximate": self.approximate})

    def options(self) -> str:
        return f"approximate={self.approximate!r}"


def made(activation: Callable[[], Layer]) -> Layer:
    """The layer that an argument `activation` makes, which is a layer's class or a function."""
    why: Exception | None = None
    try:
        layer = activation() if not isinstance(activation, Layer) else None
    except TypeError as error:  # not callable, or not without arguments
        layer, why = None, error
    if not isinstance(layer, Layer):
        msg = f"an activation must be a class of xbp.nn, or make a layer, got {activation!r}"
        raise InputError(msg) from why
    return layer
