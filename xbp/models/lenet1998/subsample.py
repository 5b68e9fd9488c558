"""Subsampling with a learned coefficient and bias."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from xbp.arguments import integer
from xbp.backend import Array
from xbp.initializers import Initializer, fan_in_uniform, zeros
from xbp.nn import AvgPool2d, Backward, Parameter
from xbp.nn.backward import Rng
from xbp.nn.windowed import Size
from xbp.random import Seed, generator


class Subsample2d(AvgPool2d):
    """y[n, c, r, s] = w[c] Σ_ij x[n, c, r·stride + i, s·stride + j] + b[c].

    Average pooling as in the 1990s: with the mean m of a window of k = kh·kw entries,
    y = k w m + b, so ∂L/∂w = k Σ δ m and ∂L/∂b = Σ δ, with δ = ∂L/∂y, and ∂L/∂m = k w δ.
    (LeCun, Bottou, Bengio & Haffner 1998, section II.B; a squashing function follows there.)

    Parameters
    ----------
    channels : int
    kernel_size : int or (height, width), default 2
    stride : int or (height, width), optional
        None is `kernel_size`: adjacent windows.
    padding : int or (height, width), default 0
        With zeros; at most half of `kernel_size`.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial coefficients.
    weight_init, bias_init : callable, optional
        From `xbp.initializers`. By default U(-1/√k, 1/√k), and zeros. (1/k is average pooling.)

    Attributes
    ----------
    weight, bias : Parameter (channels,)

    Notes
    -----
    Input (N, channels, H, W), output (N, channels, OH, OW), as for `AvgPool2d`.

    Raises
    ------
    InputError
        A size is out of range; in forward, the input is not 4-D, has another number of channels or
        another dtype, or is too small.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.models import lenet1998
    >>> layer = lenet1998.Subsample2d(1, dtype="float64")
    >>> layer.load_state_dict({"weight": np.array([0.5]), "bias": np.array([-1.0])})
    >>> layer(np.array([[[[1.0, 2.0], [4.0, 3.0]]]])).tolist()
    [[[[4.0]]]]
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size = 2,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer | None = None,
        bias_init: Initializer = zeros,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.channels = integer("channels", channels, least=1)
        weight_init = weight_init or partial(fan_in_uniform, fan_in=math.prod(self.kernel_size))
        rng = generator(rng)
        self.weight = Parameter.draw((self.channels,), weight_init, rng, dtype)
        self.bias = Parameter.draw((self.channels,), bias_init, rng, dtype)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        self.output_size(x.shape, self.channels)  # refuses another number of channels
        mean, spread = super().forward(x)
        k = math.prod(self.kernel_size)
        weight, add_grad = self.weight.lend()
        w, b = (xp.reshape(array, (-1, 1, 1)) for array in (weight, self.bias.data))

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, mean.shape)
            add_grad(k * xp.sum(dy * mean, axis=(0, 2, 3)))
            self.bias.add_grad(xp.sum(dy, axis=(0, 2, 3)))
            return spread(k * w * dy)

        return k * w * mean + b, backward

    def options(self) -> str:
        return f"{self.channels}, {super().options()}"
