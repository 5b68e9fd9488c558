"""The convolutional layer (as everywhere in this field, a cross-correlation)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from xbp.arguments import integer
from xbp.initializers import Initializer, fan_in_uniform
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.parameter import Parameter
from xbp.nn.windowed import Size, Windowed
from xbp.primitives.convolution import convolve
from xbp.random import Seed, generator


class Conv2d(Windowed, OperationLayer):
    """y[n, o, r, s] = b[o] + Σ_cij W[o, c, i, j] · x[n, c, r·stride + i, s·stride + j].

    As one matrix product, with its gradients, it stands in `xbp.primitives.convolve`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding : int or (height, width)
        The padding is with zeros, on both sides.
    bias : bool, default True
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default both draw from U(-1/√n, 1/√n) with n = in·kh·kw, as in
        PyTorch.

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels, kh, kw)
    bias : Parameter (out_channels,) or None

    Notes
    -----
    Input (N, in_channels, H, W), output (N, out_channels, OH, OW) with
    OH = ⌊(H + 2·padding - kh)/stride⌋ + 1. The output's memory has the batch innermost.

    Raises
    ------
    InputError
        In the constructor for sizes out of range; in forward for input that is not 4-D, has
        another number of channels or dtype, or is smaller than the kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Conv2d(1, 6, 5, padding=2)(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 6, 28, 28)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = fan_in_uniform,
        bias_init: Initializer | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.in_channels = integer("in_channels", in_channels, least=1)
        self.out_channels = integer("out_channels", out_channels, least=1)
        rng = generator(rng)
        shape = (out_channels, in_channels, *self.kernel_size)
        self.weight = Parameter.draw(shape, weight_init, rng, dtype)
        self.bias = None
        if bias:
            bias_init = bias_init or partial(fan_in_uniform, fan_in=math.prod(shape[1:]))
            self.bias = Parameter.draw((out_channels,), bias_init, rng, dtype)

    def operation(self) -> Operation:
        options = {"stride": self.stride, "padding": self.padding}
        return Operation(convolve, (self.weight,), (self.bias,), options)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.out_channels, *self.output_size(shape, self.in_channels))

    def options(self) -> str:
        channels = f"{self.in_channels}, {self.out_channels}"
        return f"{channels}, {super().options()}, bias={self.bias is not None}"
