"""The transpose of a convolution, which enlarges images."""

from __future__ import annotations

from typing import Any

from xbp.errors import InputError
from xbp.initializers import Initializer, fan_in_uniform
from xbp.nn.conv import Convolution
from xbp.nn.operation import Operation, Shape
from xbp.nn.windowed import Size, check_images, described
from xbp.primitives.convolution import convolve_transposed, transposed_size
from xbp.random import Seed


class ConvTranspose2d(Convolution):
    """y[n, o, r·stride + i, s·stride + j] += W[c, o, i, j] · x[n, c, r, s], from y = b[o].

    Its output is ∂L/∂x of a `Conv2d` from `out_channels` to `in_channels` with the same weight, and
    its ∂L/∂x is the output of that Conv2d: see `xbp.primitives.convolve_transposed`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride : int or (height, width)
    padding : int or (height, width)
        Rows and columns removed from each side.
    output_padding : int or (height, width), default 0
        Rows and columns added at the end, smaller than the stride or the dilation. They choose
        among the input sizes for which a Conv2d with this stride has the same output size.
    groups : int, default 1
        As in `Conv2d`.
    bias : bool, default True
    dilation : int or (height, width), default 1
        The distance between neighbouring entries of a window: i·dilation in place of i.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default both draw from U(-1/√n, 1/√n) with n = out/groups·kh·kw,
        as in PyTorch.

    Attributes
    ----------
    weight : Parameter (in_channels, out_channels/groups, kh, kw)
    bias : Parameter (out_channels,) or None

    Notes
    -----
    Input (N, in_channels, H, W), output (N, out_channels, OH, OW) with
    OH = (H - 1)·stride - 2·padding + dilation·(kh - 1) + output_padding + 1.

    Raises
    ------
    InputError
        In the constructor for sizes out of range; in forward for input that is not 4-D, has
        another number of channels or dtype, or gives an output without pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, rng=0)
    >>> up(np.zeros((2, 8, 7, 7), np.float32)).shape
    (2, 4, 14, 14)
    """

    primitive = convolve_transposed
    padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = fan_in_uniform,
        bias_init: Initializer | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            self.sizes("padding", padding, least=0),
            bias,
            dilation=dilation,
            groups=groups,
            dtype=dtype,
            rng=rng,
            weight_init=weight_init,
            bias_init=bias_init,
        )
        self.output_padding = self.sizes("output_padding", output_padding, least=0)
        steps = zip(self.output_padding, self.stride, self.dilation, strict=True)
        if any(more >= max(stride, dilation) for more, stride, dilation in steps):
            msg = (
                f"output_padding {self.output_padding} must be smaller than stride {self.stride} "
                f"or dilation {self.dilation}"
            )
            raise InputError(msg)

    def _channels(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels // self.groups

    def operation(self) -> Operation:
        options = {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        return Operation(self.primitive, (self.weight,), (self.bias,), options)

    def output_size(self, shape: Shape, channels: int | None = None) -> tuple[int, ...]:
        check_images(self, shape, self.axes, channels)
        window = self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation
        pairs: Any = shape[2:], *window
        size = transposed_size(*pairs)
        if min(*size, *shape[2:]) < 1:
            raise InputError(f"{self} leaves nothing of {described(shape)}")
        return size

    def options(self) -> str:
        return f"{super().options()}, output_padding={self.output_padding}"
