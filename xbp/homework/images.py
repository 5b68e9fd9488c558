"""The exercises on images: a convolution and max pooling, with loops that cannot be misread."""

from __future__ import annotations

from typing import Any

import numpy as np

from xbp.homework.exercise import Exercise, Truths
from xbp.homework.hints import Host, Truth
from xbp.homework.layers import case

# --- convolution ---------------------------------------------------------------------------------


def conv2d(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    W, b = parameters["weight"], parameters["bias"]
    (_, _, kh, kw), (OH, OW) = W.shape, delta.shape[2:]

    def window(r: int, s: int) -> Host:
        return x[:, :, r : r + kh, s : s + kw]

    def forward(kernel: Host) -> Host:
        y = np.zeros(delta.shape)
        for r, s in np.ndindex(OH, OW):
            y[:, :, r, s] = np.einsum("ncij,ocij->no", window(r, s), kernel)
        return y + b[:, None, None]

    def to_input(kernel: Host, *, added: bool = True) -> Host:
        dx = np.zeros_like(x)
        for r, s in np.ndindex(OH, OW):
            share = np.einsum("no,ocij->ncij", delta[:, :, r, s], kernel)
            if added:
                dx[:, :, r : r + kh, s : s + kw] += share
            else:
                dx[:, :, r : r + kh, s : s + kw] = share
        return dx

    overwritten = np.zeros_like(x)  # place by place of the kernel, as loops over it do
    for i, j in np.ndindex(kh, kw):
        share = np.einsum("nors,oc->ncrs", delta, W[:, :, i, j])
        overwritten[:, :, i : i + OH, j : j + OW] = share
    places = [
        np.einsum("no,ncij->ocij", delta[:, :, r, s], window(r, s)) for r, s in np.ndindex(OH, OW)
    ]
    dW = sum(places, start=np.zeros_like(W))
    each = [
        sum(
            (
                np.einsum("o,cij->ocij", delta[n, :, r, s], window(r, s)[n])
                for r, s in np.ndindex(OH, OW)
            ),
            start=np.zeros_like(W),
        )
        for n in range(len(x))
    ]
    turned, sizes = W[:, :, ::-1, ::-1], {"N": len(x), "places": OH * OW}
    sizes |= {"N · places": len(x) * OH * OW}
    overlap = "where windows overlap, their gradients add up"
    kernel_turned = "the kernel is turned by 180°"
    one_place = "it is the share of one place alone, and all contribute"
    return {
        "output": Truth(
            forward(W),
            {
                "W ⋆ x": forward(W) - b[:, None, None],
                "b": np.broadcast_to(b[:, None, None], delta.shape),
            },
            mistakes=[("transpose", kernel_turned, forward(turned))],
        ),
        "input": Truth(
            to_input(W),
            mistakes=[
                ("transpose", kernel_turned, to_input(turned)),
                ("sum", overlap, to_input(W, added=False)),
                ("sum", overlap, overwritten),
            ],
            sizes=sizes,
        ),
        "weight": Truth(
            dW,
            samples=each,
            mistakes=[
                ("transpose", kernel_turned, dW[:, :, ::-1, ::-1]),
                ("sum", one_place, places[-1]),
                ("sum", one_place, places[0]),
            ],
            sizes=sizes,
        ),
        "bias": Truth(
            delta.sum(axis=(0, 2, 3)),
            samples=list(delta.sum(axis=(2, 3))),
            mistakes=[("sum", one_place, delta[:, :, -1, -1].sum(axis=0))],
            sizes=sizes,
        ),
    }


CONV2D = Exercise(
    "conv2d",
    "layer",
    "Conv2d",
    "y[n,o,r,s] = b[o] + Σ_cij W[o,c,i,j] x[n,c,r+i,s+j], stride 1, no padding",
    lambda cls, x, delta, parameters: cls(
        x.shape[1], delta.shape[1], parameters["weight"].shape[2:]
    ),
    [case(7, (3, 2, 5, 6), (3, 4, 3, 5), weight=(4, 2, 3, 2), bias=(4,))],
    conv2d,
    {"weight": "∂L/∂W", "bias": "∂L/∂b"},
)


# --- max pooling ---------------------------------------------------------------------------------


def max_pool(x: Host, delta: Host, parameters: dict[str, Host]) -> Truths:
    OH, OW = delta.shape[2:]
    y = np.zeros(delta.shape)
    first, every, shared, written, mask, mean = (np.zeros_like(x) for _ in range(6))
    for n, c, r, s in np.ndindex(*delta.shape):
        here = (n, c, slice(r, r + 2), slice(s, s + 2))
        window, d = x[here], delta[n, c, r, s]
        y[n, c, r, s] = window.max()
        largest = window == window.max()
        one = np.zeros((2, 2))
        one[np.unravel_index(np.argmax(window), (2, 2))] = 1.0
        first[here] += d * one
        every[here] += d * largest
        shared[here] += d * largest / largest.sum()
        written[here] = np.where(one, d, written[here])
        mask[here] += one
        mean[here] += d / 4
    replaced = np.zeros_like(x)
    for n, c, r, s in np.ndindex(*delta.shape):
        window = x[n, c, r : r + 2, s : s + 2]
        one = (window == window.max()) * delta[n, c, r, s]
        replaced[n, c, r : r + 2, s : s + 2] = one
    overwritten = np.zeros_like(x)  # place by place of the window
    for i, j in np.ndindex(2, 2):
        entries = x[:, :, i : i + OH, j : j + OW]
        overwritten[:, :, i : i + OH, j : j + OW] = np.where(entries == y, delta, 0.0)
    tie = "of equal entries, the first alone gets the gradient"
    overlap = "where windows overlap, their gradients add up"
    return {
        "output": Truth(
            y, mistakes=[("chain", "it is the mean of each window", _means(x, OH, OW))]
        ),
        "input": Truth(
            first,
            mistakes=[
                ("chain", tie, every),
                ("chain", tie, shared),
                ("sum", overlap, written),
                ("sum", overlap, replaced),
                ("sum", overlap, overwritten),
                ("chain", "the factor ∂L/∂y is missing", mask),
                ("chain", "every entry gets a share, and not the largest alone", mean),
                ("chain", "every entry gets a share, and not the largest alone", 4 * mean),
            ],
        ),
    }


def _means(x: Host, OH: int, OW: int) -> Host:
    corners: Any = [x[:, :, i : i + OH, j : j + OW] for i in (0, 1) for j in (0, 1)]
    return sum(corners) / 4  # type: ignore[no-any-return]


def _with_ties() -> tuple[Any, ...]:
    x, delta, parameters = case(9, (1, 2, 4, 5), (1, 2, 3, 4))
    return np.round(2 * x) / 2, delta, parameters


MAX_POOL = Exercise(
    "max_pool",
    "layer",
    "MaxPool2d",
    "y[n,c,r,s] = max_ij x[n,c,r+i,s+j] for i, j = 0, 1: windows of 2 × 2, stride 1",
    lambda cls, *inputs: cls(),
    [case(8, (2, 3, 4, 5), (2, 3, 3, 4)), _with_ties()],
    max_pool,
)
