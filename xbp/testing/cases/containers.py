"""Containers, and layers that rearrange entries: their lines and their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp import nn
from xbp.random import generator
from xbp.testing import oracles
from xbp.testing.cases.arrays import Host, ends
from xbp.testing.cases.case import Layer, fed, within


def residual(**draw: Any) -> nn.Layer:
    return nn.Residual(nn.Linear(4, 4, **draw), nn.Tanh())


def of_residual(s: Any, x: Host) -> Host:
    return oracles.tanh(oracles.linear(x, s["body.0.weight"], s["body.0.bias"])) + x


def residual_of_one(**draw: Any) -> nn.Layer:
    shortcut = nn.Linear(4, 3, **{**draw, "rng": 1})
    return nn.Residual(nn.Linear(4, 3, **draw), shortcut=shortcut)


def of_residual_of_one(s: Any, x: Host) -> Host:
    f = oracles.linear(x, s["body.weight"], s["body.bias"])
    return f + oracles.linear(x, s["shortcut.weight"], s["shortcut.bias"])


def branches(**draw: Any) -> nn.Layer:
    rng = generator(draw.pop("rng", None))
    both = nn.Parallel(
        nn.Sequential(nn.Linear(4, 3, **draw, rng=rng), nn.Tanh()),
        nn.Identity(),
        head=nn.Linear(4, 2, **draw, rng=rng),
    )
    return nn.Sequential(both, nn.Concatenate())


def of_branches(s: Any, x: Host) -> Host:
    first = oracles.tanh(oracles.linear(x, s["0.0.0.weight"], s["0.0.0.bias"]))
    head = oracles.linear(x, s["0.head.weight"], s["0.head.bias"])
    return np.concatenate([first, x, head], axis=1)


def many(axis: int = 1) -> nn.Layer:
    """Ten branches: CuPy's concat takes another path for more than eight arrays."""
    others = [nn.Tanh() if i % 3 == 1 else nn.Identity() for i in range(10)]
    return nn.Sequential(nn.Parallel(*others), nn.Concatenate(axis))


def of_many(s: Any, x: Host, axis: int = 1) -> Host:
    return np.concatenate([oracles.tanh(x) if i % 3 == 1 else x for i in range(10)], axis=axis)


class Block(nn.Composite):
    """The block of a residual network, with PyTorch's names; its ReLU is used twice."""

    def __init__(self, channels: int, planes: int, stride: int = 1, **draw: Any) -> None:
        draw["rng"] = generator(draw.get("rng"))
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, **draw)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, **draw)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride > 1 or channels != planes:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, **draw))

    def compose(self) -> nn.Layer:
        body = nn.Sequential(self.conv1, self.relu, self.conv2)
        return nn.Sequential(nn.Residual(body, shortcut=self.downsample), self.relu)


def of_block(s: Any, x: Host, channels: int, planes: int, stride: int = 1) -> Host:
    h = oracles.conv2d(x, s["conv1.weight"], s["conv1.bias"], (stride, stride), (1, 1))
    y = oracles.conv2d(oracles.relu(h), s["conv2.weight"], s["conv2.bias"], (1, 1), (1, 1))
    past = "downsample.0.weight" in s
    if past:
        weights = s["downsample.0.weight"], s["downsample.0.bias"]
        x = oracles.conv2d(x, *weights, (stride, stride), (0, 0))
    return oracles.relu(y + x)


CONTAINERS = [
    Layer("Residual", of_residual, [fed((5, 4))], make=residual, title="Residual(Linear, Tanh)"),
    Layer("Residual", of_residual_of_one, [fed((5, 4))], make=residual_of_one,
          title="Residual(Linear, shortcut=Linear)"),
    Layer("Parallel", of_branches, [fed((5, 4))], make=branches,
          title="Parallel(Sequential, Identity, head=Linear) and Concatenate()"),
    Layer("Concatenate", of_many, [fed((3, 4, 2)), fed((3, 4, 2), 2), fed((3, 4), -1)], make=many,
          title="Concatenate of ten"),
    Layer("Composite", of_block, [fed((2, 3, 5, 5), 3, 3), fed((2, 2, 6, 6), 2, 3, 2)], make=Block,
          title="Composite: block", kinks=within),
    Layer("Identity", lambda s, x: x, [fed((4, 7)), fed(ends(5, 6))], axes=1, exact=True),
    Layer("Reshape", lambda s, x, *shape: x.reshape(len(x), *shape), [
        fed((4, 12), 3, -1), fed((3, 2, 2, 3), 12), fed((3, 6), 2, 3),
    ], exact=True),
    Layer("Permute", lambda s, x, *axes: np.transpose(x, axes), [
        fed((2, 3, 4), 0, 2, 1), fed((2, 3, 4, 5), 0, 3, 1, 2), fed((4, 7), 0, 1),
    ], exact=True),
]  # fmt: skip
