"""Normalization within each sample: layer norm, group norm, RMS norm."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

from xbp.arguments import integer, number
from xbp.backend import Array
from xbp.errors import InputError
from xbp.initializers import constant, zeros
from xbp.nn.backward import Backward, Rng, TwoPartBackward
from xbp.nn.layer import Layer
from xbp.nn.parameter import Parameter, lent
from xbp.primitives import normalize
from xbp.random import generator

Shape: TypeAlias = "int | tuple[int, ...] | list[int]"

ones = partial(constant, value=1.0)


class LayerNorm(Layer):
    """y = w (x - μ)/√(σ² + ε) + b, with the mean and the variance over the last axes of x.

    Each sample, or each position of a sequence, is normalized independently, in training and
    inference alike (Ba, Kiros & Hinton 2016). For the derivation of the backward see
    `xbp.primitives.normalization`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, which are normalized together.
    eps : float, default 1e-5
        ε.
    elementwise_affine : bool, default True
        Whether w and b, of shape `normalized_shape`, are learned; else they are 1 and 0.
    bias : bool, default True
        Whether b is learned; else it is 0.
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight, bias : Parameter of `normalized_shape`, or None
        w and b, initially 1 and 0.

    Notes
    -----
    Input (…, *normalized_shape), output of the same shape. σ² is Σ (x - μ)²/n.

    Raises
    ------
    InputError
        In the constructor for sizes below 1 or an eps below 0; in forward for another shape or
        dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.LayerNorm(2, eps=0, dtype="float64")
    >>> y, backward = layer.forward(np.array([[1.0, 3.0]]))
    >>> y.tolist(), backward(np.array([[1.0, 0.0]])).tolist(), layer.weight.grad.tolist()
    ([[-1.0, 1.0]], [[0.0, 0.0]], [-1.0, 0.0])
    """

    centre = True

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.normalized_shape = _sizes(normalized_shape)
        self.eps: float | None = number("eps", eps, least=0)
        shape, rng = self.normalized_shape, generator(0)
        self.weight = Parameter.draw(shape, ones, rng, dtype) if elementwise_affine else None
        self.bias = (
            Parameter.draw(shape, zeros, rng, dtype) if elementwise_affine and bias else None
        )

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, last = self.check_input(x), len(self.normalized_shape)
        if tuple(x.shape[-last:]) != self.normalized_shape:
            wanted = ", ".join(("…", *map(str, self.normalized_shape)))
            msg = f"{self} expects input ({wanted}), got shape {tuple(x.shape)}"
            raise InputError(msg)
        (weight, add_weight_grad), (bias, add_bias_grad) = lent(self.weight), lent(self.bias)
        eps = float(xp.finfo(x.dtype).eps) if self.eps is None else self.eps
        axes = tuple(range(x.ndim - last, x.ndim))
        y, gradients = normalize(x, weight, bias, axes=axes, eps=eps, centre=self.centre)
        check = partial(self.check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, add_weight_grad, add_bias_grad, check=check)

    def options(self) -> str:
        affine, bias = self.weight is not None, self.bias is not None
        return (
            f"{self.normalized_shape}, eps={self.eps:g}, elementwise_affine={affine}, bias={bias}"
        )


class RMSNorm(LayerNorm):
    """y = w x/√(mean x² + ε), with the mean square over the last axes of x.

    LayerNorm without mean and bias (Zhang & Sennrich 2019, eq. 4). With x̂ = x r,
    r = 1/√(mean x² + ε), δ = ∂L/∂y and g = w δ:  ∂L/∂w = Σ δ x̂,  ∂L/∂x = r (g - x̂ · mean(g x̂)).

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The sizes of the last axes, which are normalized together.
    eps : float or None, default None
        ε; None is the machine epsilon of the dtype of x.
    elementwise_affine : bool, default True
        Whether w, of shape `normalized_shape`, is learned; else it is 1.
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight : Parameter of `normalized_shape`, or None
        w, initially 1.

    Notes
    -----
    Input (…, *normalized_shape), output of the same shape.

    Raises
    ------
    InputError
        In the constructor for sizes below 1 or an eps below 0; in forward for another shape or
        dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.RMSNorm(2, eps=0, dtype="float64")
    >>> y, backward = layer.forward(np.array([[1.0, 7.0]]))
    >>> y.round(9).tolist(), layer.parameters()
    ([[0.2, 1.4]], [Parameter(shape=(2,), dtype=float64)])
    """

    centre = False

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(normalized_shape, eps or 0.0, elementwise_affine, bias=False, dtype=dtype)
        self.eps = None if eps is None else self.eps

    def options(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"
        )


class GroupNorm(Layer):
    """y = w (x - μ)/√(σ² + ε) + b, with the mean and the variance over groups of channels.

    Each sample is normalized independently, in training and inference alike (Wu & He 2018). One
    group normalizes the whole sample, C groups each channel ("instance normalization"). For the
    backward see `xbp.primitives.normalization`.

    Parameters
    ----------
    num_groups : int
        Each group has C/num_groups neighbouring channels.
    num_channels : int
        C, a multiple of `num_groups`.
    eps : float, default 1e-5
        ε.
    affine : bool, default True
        Whether w and b, one a channel, are learned; else they are 1 and 0.
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight, bias : Parameter (num_channels,) or None
        w and b, initially 1 and 0.

    Notes
    -----
    Input (N, C, …), output of the same shape. σ² is Σ (x - μ)²/n over the channels of a group and
    all later axes.

    Raises
    ------
    InputError
        In the constructor for sizes below 1, a number of channels that is no multiple of the number
        of groups, or an eps below 0; in forward for another number of channels or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.GroupNorm(2, 4, eps=0, dtype="float64")
    >>> layer(np.array([[1.0, 3.0, 20.0, 10.0]])).tolist()
    [[-1.0, 1.0, 1.0, -1.0]]
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.num_groups = integer("num_groups", num_groups, least=1)
        self.num_channels = integer("num_channels", num_channels, least=1)
        if self.num_channels % self.num_groups:
            msg = (
                f"num_channels must be a multiple of num_groups, got {self.num_channels} channels "
                f"for {self.num_groups} groups"
            )
            raise InputError(msg)
        self.eps = number("eps", eps, least=0)
        shape, rng = (self.num_channels,), generator(0)
        self.weight = Parameter.draw(shape, ones, rng, dtype) if affine else None
        self.bias = Parameter.draw(shape, zeros, rng, dtype) if affine else None

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, C, G = self.check_input(x), self.num_channels, self.num_groups
        if x.ndim < 2 or x.shape[1] != C:
            msg = f"{self} expects input (N, {C}, …), got shape {tuple(x.shape)}"
            raise InputError(msg)
        (weight, add_weight_grad), (bias, add_bias_grad) = lent(self.weight), lent(self.bias)
        pixels = x.shape[2:]
        by_group, by_channel = (-1, G, C // G, *pixels), (G, C // G, *(1 for _ in pixels))
        w, b = (None if p is None else xp.reshape(p, by_channel) for p in (weight, bias))
        axes = tuple(range(2, len(by_group)))
        y, of_groups = normalize(xp.reshape(x, by_group), w, b, axes=axes, eps=self.eps)

        def gradients(dy: Array, wants_dx: bool) -> Any:
            dx, *grads = of_groups(xp.reshape(dy, y.shape), wants_dx)
            dx = None if dx is None else xp.reshape(dx, x.shape)
            return dx, *(None if grad is None else xp.reshape(grad, (C,)) for grad in grads)

        check = partial(self.check_gradient, xp, shape=x.shape)
        backward = TwoPartBackward(gradients, add_weight_grad, add_bias_grad, check=check)
        return xp.reshape(y, (-1, C, *pixels)), backward

    def options(self) -> str:
        affine = self.weight is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps:g}, affine={affine}"


def _sizes(shape: Shape) -> tuple[int, ...]:
    """The sizes of one or more axes as a tuple, checked."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    if not sizes:
        msg = "normalized_shape must name at least one axis, got none"
        raise InputError(msg)
    return tuple(integer("each size in normalized_shape", size, least=1) for size in sizes)
