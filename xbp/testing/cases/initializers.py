"""Initializers: one line each, ``Initializer(name, options, shapes)``.

Their variances and ranges, each from its paper, are in tests/test_initializers.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xbp import initializers


@dataclass(frozen=True)
class Initializer:
    """A line of `xbp.testing.cases.INITIALIZERS`: with these options it fills these shapes."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((6, 5), (4, 3, 5, 2))


INITIALIZERS = [
    Initializer("constant", {"value": 0.1}),
    Initializer("fan_in_uniform"),
    Initializer("he_normal"),
    Initializer("he_uniform"),
    Initializer("lecun_normal"),
    Initializer("lecun_uniform"),
    Initializer("lenet_uniform"),
    Initializer("map_by_map", {"inputs": (1, 3, 2), "init": initializers.he_normal}, ((6, 5, 3),)),
    Initializer("normal", {"std": 0.3}),
    Initializer("orthogonal", {"gain": 0.7}),
    Initializer("sinusoidal"),
    Initializer("uniform", {"bound": 0.3}),
    Initializer("xavier_normal"),
    Initializer("xavier_uniform", {"gain": 5 / 3}),
    Initializer("zeros"),
]
