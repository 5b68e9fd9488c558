"""The networks that every side builds, the data they take, and the arithmetic they need.

A network is written as a list of its name and its sizes, such as ``["mlp", 784, 4096, 10]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xbp import models, nn
from xbp.initializers import he_normal
from xbp.models.gpt import NextTokenLoss
from xbp.random import Seed, generator

MARGIN = 2
"""Rows and columns at each side of MNIST's images that their "middles" leave out; the digits were
scaled to 20 × 20."""

CELLS: dict[str, tuple[Callable[..., nn.Layer], int]] = {
    "rnn": (nn.RNN, 1),
    "lstm": (nn.LSTM, 4),
    "gru": (nn.GRU, 3),
}
"""A recurrent layer, and how many gates it has."""


class Architecture(NamedTuple):
    """One architecture.

    Attributes
    ----------
    make : callable ``(*sizes, rng) -> Layer``
    shape : callable ``(*sizes) -> tuple of int``
        Of one sample.
    multiplications : callable ``(*sizes) -> tuple of int``
        In the forward of one sample, layer by layer from the input.
    data : str
        A key of `DATA`, or "digits", or their "middles" (see `MARGIN`), or "maps" of the network's
        own shape.
    loss : callable ``() -> Loss``
    """

    make: Callable[..., nn.Layer]
    shape: Callable[..., tuple[int, ...]]
    multiplications: Callable[..., tuple[int, ...]]
    data: str = "digits"
    loss: Callable[[], nn.Loss] = nn.CrossEntropyLoss


def make_model(name: str, *sizes: int, rng: Seed) -> nn.Layer:
    """xbp's model of a network."""
    return NETWORKS[name].make(*sizes, rng=generator(rng))


def input_shape(name: str, *sizes: int) -> tuple[int, ...]:
    """The shape of one sample."""
    return NETWORKS[name].shape(*sizes)


def multiplications(name: str, *sizes: int) -> tuple[int, ...]:
    """Multiplications in the forward of one sample, layer by layer from the input."""
    return NETWORKS[name].multiplications(*sizes)


def sample_bytes(name: str, *sizes: int) -> int:
    """The bytes of one sample and its label."""
    size = math.prod(input_shape(name, *sizes))
    return 2 * 8 * size if NETWORKS[name].data == "text" else 4 * size + 8


# --- convolutional networks -----------------------------------------------------------------------


def vgg(*widths: int, rng: np.random.Generator) -> nn.Layer:
    """Two convolutions 3 × 3 with ReLU, and a 2 × 2 maximum, for each width."""
    layers, before = list[nn.Layer](), 3
    for width in widths:
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1, rng=rng), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    side = 32 >> len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, 10, rng=rng))


def compact(first: int, second: int, hidden: int, rng: np.random.Generator) -> nn.Layer:
    """Two convolutions without padding, 5 × 5 and 3 × 3, of the middle of MNIST's images."""
    size = second * 4 * 4
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5, rng=rng), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(size, hidden, rng=rng), nn.ReLU(), nn.Linear(hidden, 10, rng=rng)),
    )


def _compact_multiplications(first: int, second: int, hidden: int) -> tuple[int, ...]:
    each = 20**2 * 5**2 * first, 8**2 * 3**2 * first * second
    return *each, second * 4 * 4 * hidden, hidden * 10


def plain(depth: int, rng: np.random.Generator) -> nn.Layer:
    """The plain network beside ResNet, He et al. 2016, section 4.2; without normalization."""
    layers = list[nn.Layer]()
    for before, width, stride in convolutions(depth):
        options: dict[str, Any] = {"weight_init": he_normal, "rng": rng}
        layers += [nn.Conv2d(before, width, 3, stride, 1, **options), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10, rng=rng))


def convolutions(depth: int) -> list[tuple[int, int, int]]:
    """Channels in and out, and stride, of the convolutions of such networks."""
    widths = [16] + [width for width in (16, 32, 64) for _ in range((depth - 2) // 3)]
    pairs = pairwise([3, *widths])
    return [(i, o, 1 + (3 != i != o)) for i, o in pairs]


def convolutions_of(
    channels: int, outputs: int, size: int, kernel: int, *window: int, rng: np.random.Generator
) -> nn.Layer:
    """Two convolutions with ReLU, and the mean of each channel.

    A window is a stride, a dilation, and whether each channel is a group. Without strides the
    convolutions keep the size.
    """
    stride, dilation, depthwise = window or (1, 1, 0)
    layers = list[nn.Layer]()
    for before in (channels, outputs):
        layers += [
            nn.Conv2d(
                *(before, outputs, kernel, stride, dilation * (kernel // 2)),
                dilation=dilation,
                groups=before if depthwise else 1,
                rng=rng,
            ),
            nn.ReLU(),
        ]
    last = nn.Linear(outputs, 10, rng=rng)
    mean = nn.AvgPool2d(-(-size // stride**2))
    return nn.Sequential(*layers, mean, nn.Flatten(), last)


def _convolutions_multiplications(
    channels: int, outputs: int, size: int, kernel: int, *window: int
) -> tuple[int, ...]:
    stride, _, depthwise = window or (1, 1, 0)
    maps = [-(-size // steps) for steps in (stride, stride**2)]  # of both convolutions
    first, second = (side**2 * kernel**2 * outputs for side in maps)
    if depthwise:
        return first, second, outputs * 10
    return first * channels, second * outputs, outputs * 10


def _vgg_multiplications(*widths: int) -> tuple[int, ...]:
    found, before, side = list[int](), 3, 32
    for width in widths:
        found += [side**2 * 9 * before * width, side**2 * 9 * width**2]
        before, side = width, side // 2
    return (*found, before * side**2 * 10)


def fastcifar(*widths: int, rng: np.random.Generator) -> nn.Layer:
    """`models.FastCIFAR`, whose first layer is not learned; here it does not whiten."""
    return models.FastCIFAR(widths=widths, rng=rng)


def _fastcifar_multiplications(*widths: int) -> tuple[int, ...]:
    """Without padding the first kernels leave 31 rows, and pooling halves them, rounded down."""
    found, before, side = [31**2 * 4 * 3 * 24], 24, 31
    for width in widths:
        found.append(side**2 * 9 * before * width)
        before, side = width, side // 2
        found.append(side**2 * 9 * width**2)
    return (*found, before * 10)


def _residual_multiplications(depth: int) -> tuple[int, ...]:
    found, side = list[int](), 32
    for before, width, stride in convolutions(depth):
        side //= stride
        found.append(side**2 * 9 * before * width)
    return (*found, 640)


# --- others ---------------------------------------------------------------------------------------


def recurrent(cell: str) -> Architecture:
    """A recurrent layer (inputs, hidden, classes) over 28 time steps, with its last output."""
    layer, gates = CELLS[cell]

    def make(inputs: int, hidden: int, classes: int, rng: np.random.Generator) -> nn.Layer:
        last = nn.Linear(hidden, classes, rng=rng)
        return nn.Sequential(layer(inputs, hidden, rng=rng), nn.LastTimeStep(), last)

    def multiplications(inputs: int, hidden: int, classes: int) -> tuple[int, ...]:
        return 28 * gates * inputs * hidden, 28 * gates * hidden**2, hidden * classes

    return Architecture(make, lambda inputs, *_: (28, inputs), multiplications)


def _gpt_multiplications(
    vocabulary: int, context: int, layers: int, heads: int, width: int
) -> tuple[int, ...]:
    """Multiplications for one sequence; a causal attention counts half of (T, T)."""
    block = 12 * context * width**2 + context * (context + 1) * width
    return (0, *[block] * layers, context * width * vocabulary)


def _tanh(*sizes: int, rng: np.random.Generator) -> nn.Layer:
    return models.MLP(*sizes, activation=nn.Tanh, rng=rng)


def _products(*sizes: int) -> tuple[int, ...]:
    return tuple(math.prod(pair) for pair in pairwise(sizes))


NETWORKS = {
    "lenet5": Architecture(
        models.LeNet5,
        lambda: (1, 28, 28),
        lambda: (28 * 28 * 6 * 25, 10 * 10 * 16 * 150, 400 * 120, 120 * 84, 84 * 10),
    ),
    "compact": Architecture(
        *(compact, lambda *_: (1, 28 - 2 * MARGIN, 28 - 2 * MARGIN)),
        *(_compact_multiplications, "middles"),
        loss=partial(nn.CrossEntropyLoss, label_smoothing=0.05),
    ),
    "mlp": Architecture(models.MLP, lambda inputs, *_: (inputs,), _products),
    "tanh": Architecture(_tanh, lambda inputs, *_: (inputs,), _products, "points"),
    "vgg": Architecture(vgg, lambda *_: (3, 32, 32), _vgg_multiplications, "photographs"),
    "plain": Architecture(plain, lambda _: (3, 32, 32), _residual_multiplications, "photographs"),
    "resnet": Architecture(
        models.ResNet, lambda _: (3, 32, 32), _residual_multiplications, "photographs"
    ),
    "fastcifar": Architecture(
        fastcifar, lambda *_: (3, 32, 32), _fastcifar_multiplications, "photographs"
    ),
    "convolutions": Architecture(
        *(convolutions_of, lambda channels, _, size, *__: (channels, size, size)),
        *(_convolutions_multiplications, "maps"),
    ),
    **{cell: recurrent(cell) for cell in CELLS},
    "gpt": Architecture(
        *(models.GPT, lambda _, context, *__: (context,), _gpt_multiplications, "text"),
        loss=NextTokenLoss,
    ),
}
"""LeNet-5; a smaller one (channels, channels, hidden); MLPs with ReLU and tanh (sizes); VGG and
FastCIFAR (widths); a plain network and ResNet (depth); two convolutions (channels, outputs, size,
kernel, and without or with stride, dilation, depthwise); recurrent layers (inputs, hidden,
classes); GPT (vocabulary, context, layers, heads, width)."""


# --- data -----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Samples that are drawn, as speed does not depend on them.

    Attributes
    ----------
    least : int
        How many, unless a batch is larger.
    draw : callable ``(rng, n) -> (x, y)``
    """

    least: int
    draw: Callable[[np.random.Generator, int], tuple[NDArray[Any], NDArray[Any]]]


def _normal(shape: tuple[int, ...], classes: int) -> Callable[..., Any]:
    def draw(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return rng.standard_normal((n, *shape), np.float32), rng.integers(classes, size=n)

    return draw


def _tokens(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    drawn = rng.integers(65, size=(n, 65))
    return drawn[:, :-1].copy(), drawn[:, 1:].copy()


DATA = {
    "points": Data(8192, _normal((4,), 4)),
    "photographs": Data(512, _normal((3, 32, 32), 10)),
    "text": Data(256, _tokens),
}
"""Besides "digits", MNIST: points in four dimensions, colour images, 65 different characters."""
