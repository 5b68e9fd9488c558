"""Cases of chains of operations with a loss at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xbp import primitives
from xbp.backend import Array, array_namespace
from xbp.testing.cases.arrays import ends, normal, wide

WINDOW = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
IMAGES = [
    ("convolve", {"stride": (1, 1), "padding": (1, 1)}),
    ("rectify", {}),
    ("max_pool", WINDOW),
    ("flatten", {}),
    ("affine", {}),
    ("tanh", {}),
    ("affine", {}),
]
VECTORS: list[tuple[str, dict[str, Any]]] = [("affine", {}), ("logistic", {}), ("affine", {})]


def _to_loss(
    operations: Sequence[tuple[str, dict[str, Any]]],
    scale: float,
    x: Array,
    target: Array,
    *parameters: Array,
) -> Array:
    """Output, loss and gradients of a chain, in one row.

    `parameters` are weight and bias of each operation that has parameters.
    """
    rest, own = list(parameters), []
    for name, _ in operations:
        own.append([rest.pop(0), rest.pop(0)] if name in ("affine", "convolve") else [])
    steps = [(getattr(primitives, name), tuple(given.items())) for name, given in operations]
    loss = primitives.cross_entropy, (("scale", scale),)
    y, value, gradients = primitives.chain_to_loss(x, tuple(steps), own, loss, target)
    xp = array_namespace(x)
    return xp.concat([xp.reshape(xp.asarray(it), (-1,)) for it in (y, value, *gradients())])


def _labels(x: Any, classes: int, dtype: Any = np.int64) -> Any:
    return (np.arange(len(x)) ** 2 % classes).astype(dtype)


TO_LOSS: list[tuple[str, Callable[..., Array], tuple[Any, ...]]] = [
    *(
        (
            "chain_to_loss",
            partial(_to_loss, IMAGES, scale),
            (x, target, (3, 2, 3, 3), (3,), (9, 27), (9,), (4, 9), (4,)),
        )
        for x, target, scale in (
            (normal(5, 2, 6, 6), _labels(range(5), 4), 0.2),
            (normal(7, 2, 6, 6), normal(7, 4) ** 2, 1.0),
        )
    ),
    *(
        (
            "chain_to_loss",
            partial(_to_loss, VECTORS, 1 / len(x)),
            (
                x,
                _labels(x, classes, np.uint8),
                (8, x.shape[1]),
                (8,),
                (classes, 8),
                (classes,),
            ),
        )
        for x, classes in ((normal(33, 12), 10), (wide(6, 5), 40), (ends(6, 5), 3))
    ),
    (
        "chain_to_loss",
        partial(_to_loss, [("affine", {})], 0.5),
        (normal(6, 5), np.asarray([0, 1, 2, 3, 0, 1]), (3, 5), (3,)),  # a label out of range
    ),
]
