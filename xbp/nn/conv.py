"""Convolutional layers (as everywhere in this field, cross-correlations)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

from xbp.arguments import flag, integer
from xbp.errors import InputError
from xbp.initializers import Initializer, fan_in_uniform
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.parameter import Parameter
from xbp.nn.windowed import Size, Windowed
from xbp.primitives.convolution import convolve
from xbp.primitives.signals import convolve1d
from xbp.random import Seed, generator


class Convolution(Windowed, OperationLayer):
    """Base of `Conv1d`, `Conv2d` and `ConvTranspose2d`: parameters, options, shapes."""

    primitive: ClassVar[Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        bias: bool = True,
        *,
        dilation: Size = 1,
        groups: int = 1,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = fan_in_uniform,
        bias_init: Initializer | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = self.sizes("dilation", dilation)
        self.in_channels = integer("in_channels", in_channels, least=1)
        self.out_channels = integer("out_channels", out_channels, least=1)
        self.groups = groups_of(groups, self.in_channels, self.out_channels)
        rng = generator(rng)
        shape = (*self._channels(), *self.kernel_size)
        self.weight = Parameter.draw(shape, weight_init, rng, dtype)
        self.bias = None
        if flag("bias", bias):
            bias_init = bias_init or partial(fan_in_uniform, fan_in=math.prod(shape[1:]))
            self.bias = Parameter.draw((self.out_channels,), bias_init, rng, dtype)

    def _channels(self) -> tuple[int, int]:
        """The first two axes of the weight."""
        return self.out_channels, self.in_channels // self.groups

    def operation(self) -> Operation:
        _, stride, padding, dilation = self.window()
        options: dict[str, Any] = {"stride": stride, "padding": padding}
        if self.groups > 1 or dilation != (1, 1):
            options |= {"dilation": dilation, "groups": self.groups}
        return Operation(self.primitive, (self.weight,), (self.bias,), options)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.out_channels, *self.output_size(shape, self.in_channels))

    def options(self) -> str:
        channels = f"{self.in_channels}, {self.out_channels}"
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{channels}, {super().options()}{groups}, bias={self.bias is not None}"


class Conv2d(Convolution):
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    `xbp.primitives.convolve` derives its gradients from matrix products.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride : int or (height, width)
    padding : int, (height, width), "valid" or "same"
        Rows and columns of zeros on each side. "valid" means 0; "same" keeps the size, and requires
        a stride of 1.
    bias : bool, default True
    dilation : int or (height, width), default 1
        The distance between neighbouring entries of a window: i·dilation in place of i.
    groups : int, default 1
        The number of groups; it divides both numbers of channels. The k-th group of output channels
        depends on the k-th group of input channels alone. With ``groups=in_channels`` the
        convolution is depthwise.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default both draw from U(-1/√n, 1/√n) with n = in/groups·kh·kw,
        as in PyTorch.

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels/groups, kh, kw)
    bias : Parameter (out_channels,) or None

    Notes
    -----
    Input (N, in_channels, H, W), output (N, out_channels, OH, OW) with
    OH = ⌊(H + 2·padding - dilation·(kh - 1) - 1)/stride⌋ + 1. In memory, the batch is the innermost
    axis of the output.

    Raises
    ------
    InputError
        In the constructor for sizes out of range; in forward for input that is not 4-D, has
        another number of channels or dtype, or is smaller than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Conv2d(1, 6, 5, padding=2)(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 6, 28, 28)
    >>> depthwise = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8)
    >>> depthwise.weight.shape, depthwise(np.zeros((2, 8, 5, 5), np.float32)).shape
    ((8, 1, 3, 3), (2, 8, 5, 5))
    """

    primitive = convolve


class Conv1d(Convolution):
    """y[n, o, s] = b[o] + Σ_cj W[o, c, j] · x[n, c, s·stride + j]: a `Conv2d` of one row.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride : int
    padding : int, "valid" or "same"
        Zeros on each side. "valid" means 0; "same" keeps the length, and requires a stride of 1.
    bias : bool, default True
    dilation : int, default 1
        The distance between neighbouring entries of a window: j·dilation in place of j.
    groups : int, default 1
        As in `Conv2d`.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default both draw from U(-1/√n, 1/√n) with n = in/groups·k, as
        in PyTorch.

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels/groups, k)
    bias : Parameter (out_channels,) or None

    Notes
    -----
    Input (N, in_channels, L), output (N, out_channels, OL) with
    OL = ⌊(L + 2·padding - dilation·(k - 1) - 1)/stride⌋ + 1.

    Raises
    ------
    InputError
        In the constructor for sizes out of range; in forward for input that is not 3-D, has
        another number of channels or dtype, or is shorter than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Conv1d(2, 4, 3, padding="same", rng=0)(np.zeros((5, 2, 10), np.float32)).shape
    (5, 4, 10)
    """

    axes = 1
    primitive = convolve1d


def groups_of(groups: int, *channels: int) -> int:
    """`groups`, if it divides both numbers of channels.

    Raises
    ------
    InputError
    """
    groups = integer("groups", groups, least=1)
    if any(each % groups for each in channels):
        of, to = channels
        msg = f"groups={groups} must divide in_channels={of} and out_channels={to}"
        raise InputError(msg)
    return groups
