"""The networks in PyTorch, with the parameters and buffers of xbp's models in the same order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class LastTimeStep(nn.Module):
    def forward(self, outputs: Any) -> Any:
        return outputs[0][:, -1]


def lenet5() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def compact(first: int, second: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(second * 4 * 4, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


def dense(*sizes: int, activation: Any = nn.ReLU) -> nn.Module:
    pairs = pairwise(sizes)
    layers = [layer for i, o in pairs for layer in (nn.Linear(i, o), activation())]
    return nn.Sequential(*layers[:-1])


def tanh(*sizes: int) -> nn.Module:
    return dense(*sizes, activation=nn.Tanh)


def vgg(*widths: int) -> nn.Module:
    layers, before = list[nn.Module](), 3
    for width in widths:
        for _ in range(2):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    side = 32 >> len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, 10))


def plain(depth: int) -> nn.Module:
    layers, before = list[nn.Module](), 3
    for width in (16, *stages(depth)):
        stride = 1 + (3 != before != width)
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, *head())


def stages(depth: int) -> list[int]:
    return [width for width in (16, 32, 64) for _ in range((depth - 2) // 3)]


def head() -> tuple[nn.Module, ...]:
    return nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10)


class Block(nn.Module):
    """A residual block of He et al. 2016, with the shortcut A."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = 1 + (before != width), width - before
        self.body = nn.Sequential(
            *(nn.Conv2d(before, width, 3, self.stride, 1, bias=False), nn.BatchNorm2d(width)),
            *(nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x: Any) -> Any:
        y = self.body(x)
        if self.added:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return functional.relu(y + x)


def resnet(depth: int) -> nn.Module:
    widths = [16, *stages(depth)[::2]]
    blocks = [Block(i, o) for i, o in pairwise(widths)]
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, *blocks, *head())


def fastcifar(*widths: int) -> nn.Module:
    layers, before = list[nn.Module](), 24
    first = nn.Conv2d(3, 24, 2)
    first.weight.requires_grad = False
    layers += [first, nn.GELU()]
    for width in widths:
        for pool in ([nn.MaxPool2d(2)], []):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), *pool]
            layers += [nn.BatchNorm2d(width), nn.GELU()]
            before = width
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(before, 10, bias=False))


def convolutions(channels: int, outputs: int, size: int, kernel: int, *window: int) -> nn.Module:
    stride, dilation, depthwise = window or (1, 1, 0)
    layers = list[nn.Module]()
    for before in (channels, outputs):
        groups, padding = before if depthwise else 1, dilation * (kernel // 2)
        sizes = (before, outputs, kernel, stride, padding, dilation, groups)
        layers += [nn.Conv2d(*sizes), nn.ReLU()]
    mean = nn.AvgPool2d(-(-size // stride**2))
    return nn.Sequential(*layers, mean, nn.Flatten(), nn.Linear(outputs, 10))


def recurrent(layer: Any, inputs: int, hidden: int, classes: int) -> nn.Module:
    cell = layer(inputs, hidden, batch_first=True)
    return nn.Sequential(cell, LastTimeStep(), nn.Linear(hidden, classes))


class GPT(nn.Module):
    """A GPT of PyTorch's own Transformer layers; logits (N·T, vocabulary)."""

    def __init__(self, vocabulary: int, context: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, activation=gelu, **options)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Any) -> Any:
        y = self.tokens(x) + self.positions.weight
        for block in self.blocks:
            y = block(y, src_mask=self.mask, is_causal=True)
        return functional.linear(self.norm(y), self.tokens.weight).flatten(0, 1)


def gelu(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "compact": compact,
    "mlp": dense,
    "tanh": tanh,
    "vgg": vgg,
    "plain": plain,
    "resnet": resnet,
    "fastcifar": fastcifar,
    "convolutions": convolutions,
    "rnn": partial(recurrent, nn.RNN),
    "lstm": partial(recurrent, nn.LSTM),
    "gru": partial(recurrent, nn.GRU),
    "gpt": GPT,
}


def make_model(name: str, *sizes: int) -> nn.Module:
    """The equivalent of an xbp model."""
    return MAKERS[name](*sizes)


LOSSES = {"compact": partial(nn.CrossEntropyLoss, label_smoothing=0.05)}
"""The losses of networks that have another one than cross-entropy."""


def make_loss(name: str) -> nn.Module:
    """The loss of a network, of logits (N, C) and labels (N,)."""
    return LOSSES.get(name, nn.CrossEntropyLoss)()


def load(model: nn.Module, weights: dict[str, Any]) -> None:
    """Copy xbp's state, in its order, into the model."""
    values = map(torch.from_numpy, weights.values())
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
