"""Convolutions, pooling and resizing: their lines."""

from __future__ import annotations

from typing import Any

from xbp.testing import oracles
from xbp.testing.cases.arrays import Host, distinct, ends, sparse
from xbp.testing.cases.case import Layer, at_ties, fed

# --- definitions, as functions of state, input and constructor arguments --------------------------


def pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def conv2d(
    s: Any,
    x: Host,
    c: int,
    o: int,
    k: Any,
    stride: Any = 1,
    padding: Any = 0,
    bias: bool = True,
    dilation: Any = 1,
    groups: int = 1,
) -> Host:
    w, b, dilation = s["weight"], s.get("bias"), pair(dilation)
    if padding == "same":
        return oracles.conv2d_same(x, w, b, dilation, groups)
    return oracles.conv2d(x, w, b, pair(stride), pair(padding), dilation, groups)


def conv1d(
    s: Any,
    x: Host,
    c: int,
    o: int,
    k: int,
    stride: int = 1,
    padding: Any = 0,
    bias: bool = True,
    dilation: int = 1,
    groups: int = 1,
) -> Host:
    """`conv2d` of images with one row."""
    state = {name: w[:, :, None] if w.ndim == 3 else w for name, w in s.items()}
    padding = padding if isinstance(padding, str) else (0, padding)
    window = (1, k), (1, stride), padding, bias, (1, dilation)
    return conv2d(state, x[:, :, None], c, o, *window, groups)[:, :, 0]


def conv_transpose2d(
    s: Any,
    x: Host,
    c: int,
    o: int,
    k: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Any = 1,
) -> Host:
    window = pair(stride), pair(padding), pair(output_padding), pair(dilation)
    return oracles.conv_transpose2d(x, s["weight"], s.get("bias"), *window, groups)


def max_pool1d(s: Any, x: Host, k: int, stride: Any = None, padding: int = 0) -> Host:
    return oracles.max_pool2d(x[:, :, None], (1, k), (1, stride or k), (0, padding))[:, :, 0]


def avg_pool1d(s: Any, x: Host, k: int, stride: Any = None, padding: int = 0) -> Host:
    return oracles.avg_pool2d(x[:, :, None], (1, k), (1, stride or k), (0, padding))[:, :, 0]


def max_pool2d(s: Any, x: Host, k: Any, stride: Any = None, padding: Any = 0) -> Host:
    return oracles.max_pool2d(x, pair(k), pair(stride or k), pair(padding))


def avg_pool2d(s: Any, x: Host, k: Any, stride: Any = None, padding: Any = 0) -> Host:
    return oracles.avg_pool2d(x, pair(k), pair(stride or k), pair(padding))


def adaptive_avg_pool2d(s: Any, x: Host, size: Any) -> Host:
    wanted = zip(pair(size), x.shape[2:], strict=True)
    height, width = (old if new is None else new for new, old in wanted)
    return oracles.adaptive_avg_pool2d(x, (height, width))


def upsample(
    s: Any,
    x: Host,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> Host:
    old = x.shape[2:]
    if scale_factor is None:
        new, ratio = pair(size), (old[0] / pair(size)[0], old[1] / pair(size)[1])
    else:
        a, b = pair(scale_factor)
        new, ratio = (int(old[0] * a), int(old[1] * b)), (1 / a, 1 / b)
    if mode == "nearest":
        return oracles.upsample_nearest(x, new, ratio)
    return oracles.upsample_bilinear(x, new, ratio, align_corners)


def zero_pad2d(s: Any, x: Host, padding: Any) -> Host:
    return oracles.zero_pad2d(x, *(padding if isinstance(padding, tuple) else (padding,) * 4))


# --- the lines ------------------------------------------------------------------------------------

OVERLAPPING = (3, 2), (2, 1), (1, 1)
"""A window, its stride and its padding."""


WINDOWED: list[Layer] = [
    Layer("Conv2d", conv2d, [
        fed((3, 1, 12, 11), 1, 6, 5, padding=2),
        fed((2, 6, 9, 8), 6, 16, 5),
        fed((2, 3, 4, 5), 3, 2, 1, bias=False),
        fed((3, 2, 7, 6), 2, 3, (3, 2), stride=(2, 1), padding=(1, 2)),
        fed((2, 2, 9, 8), 2, 2, 2, stride=3),
        fed((18, 3, 8, 7), 3, 17, 3),
        fed(ends(5, 2, 7, 6), 2, 3, 3, padding=1),
        fed((3, 2, 9, 8), 2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)),
        fed((3, 4, 6, 5), 4, 6, 3, padding=1, groups=2),
        fed((2, 3, 6, 7), 3, 6, (2, 3), bias=False, dilation=2, groups=3),
        fed((2, 3, 5, 6), 3, 2, (4, 3), padding="same", dilation=(1, 2)),
        fed(ends(5, 2, 7, 6), 2, 2, 3, padding="same", groups=2),
    ]),
    Layer("MaxPool2d", max_pool2d, [
        fed((2, 3, 4, 6), 2),
        fed((19, 2, 5, 7), 2),
        fed(distinct(3, 2, 4, 6), 2),
        fed(distinct(2, 1, 5, 7), 2),
        fed(distinct(2, 2, 6, 5), (3, 4), (2, 1), (1, 2)),
        fed(sparse(2, 3, 6, 6), 2),
        fed(sparse(2, 2, 6, 5), *OVERLAPPING),
        fed((2, 2, 5, 6), 3, 1),
        fed(ends(5, 2, 6, 5), 2),
        fed(ends(5, 2, 6, 5), *OVERLAPPING),
    ], kinks=at_ties),
    Layer("AvgPool2d", avg_pool2d, [
        fed((2, 3, 4, 6), 2),
        fed((19, 2, 5, 7), 2),
        fed(sparse(2, 3, 6, 6), 2),
        fed(sparse(2, 2, 6, 5), *OVERLAPPING),
        fed((2, 2, 5, 6), 3, 1),
        fed((2, 2, 5, 6), (3, 2), (1, 2), (0, 1)),
        fed(ends(5, 2, 6, 5), 2),
        fed(ends(5, 2, 6, 5), *OVERLAPPING),
    ]),
    Layer("Conv1d", conv1d, [
        fed((3, 2, 11), 2, 3, 4, stride=2, padding=1),
        fed((18, 4, 9), 4, 6, 3, padding=2, dilation=2, groups=2),
        fed((2, 3, 8), 3, 3, 4, padding="same", bias=False, groups=3),
        fed(ends(5, 2, 9), 2, 3, 3, padding=1),
    ]),
    Layer("ConvTranspose2d", conv_transpose2d, [
        fed((3, 2, 4, 5), 2, 3, 3, stride=2, padding=1, output_padding=1),
        fed((2, 3, 4, 3), 3, 2, (3, 2), (1, 2), bias=False),
        fed((18, 4, 3, 4), 4, 6, 2, 2, groups=2),
        fed((2, 2, 3, 4), 2, 2, (2, 3), (1, 2), (1, 0), (2, 1), 2, dilation=(3, 2)),
        fed(ends(5, 2, 4, 3), 2, 3, 2, 2),
    ]),
    Layer("MaxPool1d", max_pool1d, [
        fed(distinct(3, 2, 7), 2),
        fed(sparse(2, 3, 9), 3, 2, 1),
        fed(ends(5, 2, 9), 3, 1),
    ], kinks=at_ties),
    Layer("AvgPool1d", avg_pool1d, [
        fed((3, 2, 7), 2),
        fed((2, 3, 9), 3, 2, 1),
        fed(ends(5, 2, 9), 3, 1),
    ]),
    Layer("AdaptiveAvgPool2d", adaptive_avg_pool2d, [
        fed((2, 3, 5, 7), 1),
        fed((3, 2, 5, 7), (3, 4)),
        fed((2, 2, 4, 6), (2, None)),
        fed((2, 2, 2, 3), (5, 3)),
        fed(ends(5, 2, 6, 5), (3, 2)),
    ]),
    Layer("Upsample", upsample, [
        fed((2, 3, 4, 5), scale_factor=2),
        fed((3, 2, 3, 5), (7, 4)),
        fed((3, 2, 4, 5), scale_factor=(1.5, 0.7)),
        fed((2, 3, 4, 5), scale_factor=2, mode="bilinear"),
        fed((3, 2, 3, 5), (7, 4), mode="bilinear"),
        fed((3, 2, 3, 5), (7, 1), mode="bilinear", align_corners=True),
        fed(ends(5, 2, 4, 3), scale_factor=2),
        fed(ends(5, 2, 4, 3), (5, 6), mode="bilinear"),
    ]),
    Layer("ZeroPad2d", zero_pad2d, [
        fed((2, 3, 4, 5), 1),
        fed((3, 2, 4, 5), (2, 0, 1, 3)),
        fed((2, 2, 4, 5), (-1, 2, 0, -2)),
        fed(ends(5, 2, 4, 3), (0, 1, 2, 0)),
    ], exact=True),
]  # fmt: skip
