"""Residual networks for small images."""

from __future__ import annotations

from typing import Any

from xbp import nn
from xbp.arguments import choice, integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.initializers import he_normal
from xbp.nn.backward import Backward, Rng
from xbp.primitives.images import as_nchw, rows_first
from xbp.random import Seed, generator

WIDTHS = (16, 32, 64)
"""Channels of the three stages."""


class ResNet(nn.Sequential):
    """A residual network for 32 × 32 images: He et al. 2016, section 4.2.

    ============ ================================================= ============
    part         layers                                            output
    ============ ================================================= ============
    stem         convolution 3 × 3, normalization, ReLU            16 × 32 × 32
    stage 1      n blocks                                          16 × 32 × 32
    stage 2      n blocks, the first with stride 2                 32 × 16 × 16
    stage 3      n blocks, the first with stride 2                 64 × 8 × 8
    head         mean over each channel, fully connected           num_classes
    ============ ================================================= ============

    With n = (depth - 2)/6. A block is y = ReLU(F(x) + S(x)), where F is convolution, normalization,
    ReLU, convolution, normalization: each convolution 3 × 3 with padding 1 and no bias, each
    normalization a `BatchNorm2d`. S is the identity; where the shape changes it is `shortcut`.

    Parameters
    ----------
    depth : int, default 20
        Layers with weights: 20, 32, 44, 56, … (6n + 2).
    num_classes : int, default 10
    channels : int, default 3
        Of the images.
    shortcut : {"A", "B"}, default "A"
        Every second row and column with zeros for the new channels (`Subsample`), which has no
        parameters, as in the paper's networks for CIFAR-10; or a convolution 1 × 1 with stride 2
        and a normalization.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights: those of convolutions are He et al. 2015's, N(0, 2/fan_in).

    Notes
    -----
    Input (N, channels, 32, 32), output logits (N, num_classes).

    Raises
    ------
    InputError
        The depth is not 6n + 2, or another argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import models
    >>> model = models.ResNet(20, rng=0)
    >>> model(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 10)
    >>> sum(parameter.data.size for parameter in model.parameters())
    269722
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        *,
        channels: int = 3,
        shortcut: str = "A",
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        blocks, rest = divmod(integer("depth", depth, least=8) - 2, 6)
        if rest:
            msg = f"depth must be 6n + 2, such as 20, 32, 44 or 56, got {depth}"
            raise InputError(msg)
        choice("shortcut", shortcut, ("A", "B"))
        self.arguments: dict[str, Any] = {
            "depth": depth,
            "num_classes": integer("num_classes", num_classes, least=1),
            "channels": integer("channels", channels, least=1),
            "shortcut": shortcut,
        }
        rng, before = generator(rng), WIDTHS[0]
        layers = [*convolution(channels, before, 3, dtype=dtype, rng=rng), nn.ReLU()]
        for width in WIDTHS:
            for _ in range(blocks):
                layers += [block(before, width, shortcut, dtype, rng), nn.ReLU()]
                before = width
        head = nn.Linear(before, num_classes, dtype=dtype, rng=rng)
        super().__init__(*layers, nn.AvgPool2d(8), nn.Flatten(), head)


def block(before: int, width: int, shortcut: str, dtype: Any, rng: Any) -> nn.Residual:
    """F(x) + S(x), from `before` channels to `width`; where these are more, with stride 2."""
    options: dict[str, Any] = {"dtype": dtype, "rng": rng}
    stride = 1 if before == width else 2
    first = convolution(before, width, 3, stride, **options)
    second = convolution(width, width, 3, **options)
    if stride == 1:
        return nn.Residual(*first, nn.ReLU(), *second)
    if shortcut == "A":
        past: nn.Layer = Subsample(before, width, stride)
    else:
        past = nn.Sequential(*convolution(before, width, 1, stride, **options))
    return nn.Residual(*first, nn.ReLU(), *second, shortcut=past)


def convolution(
    before: int, width: int, size: int, stride: int = 1, *, dtype: Any, rng: Any
) -> list[nn.Layer]:
    """A convolution that keeps rows and columns, up to the stride, and its normalization."""
    padding = size // 2
    conv = nn.Conv2d(
        before, width, size, stride, padding, False, weight_init=he_normal, dtype=dtype, rng=rng
    )
    return [conv, nn.BatchNorm2d(width, dtype=dtype)]


class Subsample(nn.Layer):
    """Every second row and column, and zeros as further channels: option A of He et al. 2016.

    y[:, :in_channels] = x[:, :, ::stride, ::stride], and the other channels of y are 0; so
    ∂L/∂x[:, :, ::stride, ::stride] = ∂L/∂y[:, :in_channels], and 0 elsewhere.

    Parameters
    ----------
    in_channels, out_channels : int
        out_channels is at least in_channels.
    stride : int, default 2

    Notes
    -----
    Input (N, in_channels, H, W), output (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉).

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for input of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.models.resnet import Subsample
    >>> Subsample(1, 2)(np.array([[[[1.0, 2.0, 3.0]]]])).tolist()
    [[[[1.0, 3.0]], [[0.0, 0.0]]]]
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        self.in_channels = integer("in_channels", in_channels, least=1)
        self.out_channels = integer("out_channels", out_channels, least=in_channels)
        self.stride = integer("stride", stride, least=1)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            msg = f"{self} expects input (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}"
            raise InputError(msg)
        step, channels, shape = self.stride, self.in_channels, x.shape
        kept = rows_first(x)[::step, :, ::step, :]  # (H, C, W, N)
        n, times = x.shape[0], -(-self.out_channels // channels)
        whole = xp.concat([kept] + [xp.zeros_like(kept)] * (times - 1), axis=1)
        y = as_nchw(whole[:, : self.out_channels, :, :])

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            dx = xp.zeros((shape[2], channels, shape[3], n), dtype=dy.dtype, device=dy.device)
            dx[::step, :, ::step, :] = rows_first(dy)[:, :channels, :, :]
            return as_nchw(dx)

        return y, backward

    def options(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"
