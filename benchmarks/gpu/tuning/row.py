"""A product to be tuned: its tiles, how to compute it, what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from xbp.accelerators.cuda.tuned import Decision, Numbers

Draw: TypeAlias = "Callable[..., Any]"
"""Makes an array of the given sizes: random numbers on a device, or zeros for a dry run."""


class Case(NamedTuple):
    """A product of given arrays.

    Attributes
    ----------
    call : function
        To be timed; it asks `xbp.accelerators.cuda.tuned` for the tile.
    error : function of its result
        The largest error, where 1 is the bound of the tests.
    peer : function
        The function of PyTorch that does the same, to be timed.
    """

    call: Callable[[], Any]
    error: Callable[[Any], float]
    peer: Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """A product with the tiles to be tried.

    Attributes
    ----------
    family, name : str
    flop : int
        Additions and multiplications.
    kernel : str
        The family of the decision, for the package.
    tiles : dict
        Tiles, as the package's tables have them, by their labels; that of the rule is the first.
    case : function of Draw
    decision : Decision or None
        What the package asks, if a call asks several things of this family.
    share : float
        The least time of these calls, relative to that of the steps they are from: what there is
        to be gained.
    peer : bool
        Whether PyTorch can do the same.
    """

    family: str
    name: str
    flop: int
    kernel: str
    tiles: dict[str, Numbers]
    case: Callable[[Draw], Case] = field(compare=False)
    decision: Decision | None = None
    share: float = 0.1
    peer: bool = True

    @property
    def rule(self) -> str:
        """The label of the tile that the rule chooses."""
        return next(iter(self.tiles))


def error_of(found: Any, true: Any, terms: int) -> float:
    """The largest error of sums of `terms` products of order 1, in units of what rounding allows.

    √terms · ε each, at most about 20 of that (Higham & Mary 2019); nan where `found` has one.
    """
    bound = 20 * math.sqrt(terms) * 2.0**-23 * (1 + float(abs(true).max()))
    return float(abs(found - true).max()) / bound
