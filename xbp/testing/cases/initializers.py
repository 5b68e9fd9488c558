"""The table of initializers, with one line for each.

``Initializer(name, law, variance)``: the public name; the distribution, ``uniform`` or ``normal``;
and its variance as a function of fan-in and fan-out, with default options, from the paper.
Initializers with another distribution are tested in tests/test_initializers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from xbp import initializers


@dataclass(frozen=True)
class Initializer:
    """A line of `xbp.testing.cases.INITIALIZERS`.

    Attributes
    ----------
    name : str
    law : str
        ``"uniform"``, ``"normal"``, or empty.
    variance : callable, optional
        ``variance(fan_in, fan_out)``.
    options : dict
        Its options in comparisons of backends.
    shapes : tuple of shapes
        The shapes of arrays in these comparisons.
    """

    name: str
    law: str = ""
    variance: Callable[[int, int], float] | None = None
    _: KW_ONLY
    options: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((6, 5), (4, 3, 5, 2))


INITIALIZERS = [
    Initializer("constant", options={"value": 0.1}),
    Initializer("fan_in_uniform", "uniform", lambda i, o: 1 / (3 * i)),  # PyTorch: U(±1/√fan_in)
    Initializer("he_normal", "normal", lambda i, o: 2 / i),  # He et al. 2015, eq. 10
    Initializer("he_uniform", "uniform", lambda i, o: 2 / i),
    Initializer("lecun_normal", "normal", lambda i, o: 1 / i),  # LeCun et al. 1998, eq. 16
    Initializer("lecun_uniform", "uniform", lambda i, o: 1 / i),
    Initializer(
        "lenet_uniform", "uniform", lambda i, o: (2.4 / i) ** 2 / 3
    ),  # LeCun, Bottou et al.
    Initializer(
        "map_by_map",
        options={"inputs": (1, 3, 2), "init": initializers.he_normal},
        shapes=((6, 5, 3),),
    ),
    Initializer("normal", "normal", lambda i, o: 1.0, options={"std": 0.3}),
    Initializer("orthogonal", options={"gain": 0.7}),
    Initializer("sinusoidal"),
    Initializer("uniform", "uniform", lambda i, o: 1 / 3, options={"bound": 0.3}),
    # Glorot & Bengio 2010, eqs. 12 and 16
    Initializer("xavier_normal", "normal", lambda i, o: 2 / (i + o)),
    Initializer("xavier_uniform", "uniform", lambda i, o: 2 / (i + o), options={"gain": 5 / 3}),
    Initializer("zeros"),
]
