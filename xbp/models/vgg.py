"""VGG for small images."""

from __future__ import annotations

from typing import Any

from xbp import nn
from xbp.arguments import described, integer
from xbp.errors import InputError
from xbp.models.resnet import convolution
from xbp.random import Seed, generator

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of the five stages, by depth: configurations A, B, D and E of the paper."""

CHANNELS = (1, 2, 4, 8, 8)
"""Channels of the stages, as multiples of `width`."""


class VGG(nn.Sequential):
    """A VGG for 32 × 32 images (Simonyan & Zisserman 2015, table 1), with normalization.

    Five stages of convolutions 3 × 3, each with `BatchNorm2d` and ReLU, and each stage with a
    maximum of 2 × 2 at its end: 32 × 32 pixels become 1 × 1. In place of the three fully connected
    layers of the paper, which are for 7 × 7, one is left.

    Parameters
    ----------
    depth : {11, 13, 16, 19}, default 11
        Layers with weights in the paper, two of its fully connected ones included.
    num_classes : int, default 10
    channels : int, default 3
        Of the images.
    width : int, default 64
        Channels of the first stage; those of the others are 2, 4, 8 and 8 times as many.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights: those of convolutions are He et al. 2015's, N(0, 2/fan_in).

    Notes
    -----
    Input (N, channels, 32, 32), output logits (N, num_classes).

    Raises
    ------
    InputError
        An argument is out of range.

    Examples
    --------
    >>> from xbp import models
    >>> sum(parameter.data.size for parameter in models.VGG(11, rng=0).parameters())
    9228362
    """

    def __init__(
        self,
        depth: int = 11,
        num_classes: int = 10,
        *,
        channels: int = 3,
        width: int = 64,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        if depth not in tuple(STAGES):
            msg = f"depth must be one of {', '.join(map(str, STAGES))}, got {described(depth)}"
            raise InputError(msg)
        self.arguments: dict[str, Any] = {
            "depth": depth,
            "num_classes": integer("num_classes", num_classes, least=1),
            "channels": integer("channels", channels, least=1),
            "width": integer("width", width, least=1),
        }
        rng, layers, before = generator(rng), [], channels
        for count, factor in zip(STAGES[depth], CHANNELS, strict=True):
            for _ in range(count):
                layers += convolution(before, factor * width, 3, dtype=dtype, rng=rng)
                layers.append(nn.ReLU())
                before = factor * width
            layers.append(nn.MaxPool2d(2))
        head = nn.Linear(before, num_classes, dtype=dtype, rng=rng)
        super().__init__(*layers, nn.Flatten(), head)
