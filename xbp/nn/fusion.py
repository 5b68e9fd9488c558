"""Neighbours in a Sequential that one primitive computes in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xbp.backend import Array
from xbp.nn.activations import ReLU
from xbp.nn.backward import Backward, Rng
from xbp.nn.conv import Conv2d
from xbp.nn.layer import Layer
from xbp.nn.linear import Linear
from xbp.nn.pool import MaxPool2d
from xbp.primitives.convolution import convolve_rectify_pool


class ConvBlock(Layer):
    """A convolution, then perhaps ReLU, then perhaps maximum pooling without overlap or padding."""

    def __init__(self, conv: Conv2d, relu: bool, pool: tuple[int, int]) -> None:
        self.conv, self.relu, self.pool = conv, relu, pool

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        return self.conv.compute(x, convolve_rectify_pool, relu=self.relu, pool=self.pool)


class LinearBlock(Layer):
    """A linear layer, then ReLU."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        return self.linear.compute(x, relu=True)


def fused(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The same layers, but each with the ReLU and the pooling that follow it, as far as one can.

    Only these very classes: what a subclass does differently is unknown.
    """
    index, end = 0, len(layers)
    while index < end:
        layer = layers[index]
        index += 1
        if type(layer) is Conv2d:
            relu = index < end and type(layers[index]) is ReLU
            index += relu
            pool = (1, 1)
            after = layers[index] if index < end else None
            if isinstance(after, MaxPool2d) and type(after) is MaxPool2d:
                if after.stride == after.kernel_size and after.padding == (0, 0):
                    pool = after.kernel_size
                    index += 1
            if relu or pool != (1, 1):
                layer = ConvBlock(layer, relu, pool)
        elif type(layer) is Linear and index < end and type(layers[index]) is ReLU:
            layer = LinearBlock(layer)
            index += 1
        yield layer
