"""Chains of operations that kernels compute in one pass."""

from __future__ import annotations

from typing import Any

from xbp import primitives

Pair = tuple[int, int]


def convolution_block(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    relu: bool = False,
    pool: Pair = (1, 1),
) -> Any:
    """A convolution, then ReLU, if `relu`, then the maximum of `pool` windows side by side."""
    operations: list[Any] = [(primitives.convolve, (("stride", stride), ("padding", padding)))]
    if relu:
        operations.append((primitives.rectify, ()))
    if pool != (1, 1):
        window = {"kernel_size": pool, "stride": pool, "padding": (0, 0)}
        operations.append((primitives.max_pool, tuple(window.items())))
    return primitives.chain(x, operations, [(weight, bias), (), ()][: len(operations)])


def linear_block(x: Any, weight: Any, bias: Any = None, *, relu: bool = False) -> Any:
    """A linear layer, then ReLU, if `relu`."""
    operations: list[Any] = [(primitives.affine, ()), (primitives.rectify, ())][: 1 + relu]
    return primitives.chain(x, operations, [(weight, bias), ()][: 1 + relu])
