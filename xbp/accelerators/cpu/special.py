"""Compiled passes over numpy arrays: logistic function, tanh, SiLU, GELU.

The largest errors of the results in units in the last place, in either dtype, for all x, and the
same with every instruction set (`tests/accelerators/test_special.py`):

=============  =========================================================================
sigmoid        2.5
tanh           3
silu           2.5
gelu           5
gelu, "tanh"   3 + 3 |v| for x < 0, and 3 for x > 0: the rounding error of v, magnified
               by e^v
=============  =========================================================================

Results below the least normal number err by as many units of the least subnormal number. A slope,
a sum of two terms such as Φ(x) + x Φ′(x), errs by two more, in units of its larger term.
"""

from __future__ import annotations

from typing import Any

from xbp.accelerators.cpu.elementwise import LEAST_FOR_THREADS, Real, entrywise

LEAST_ENTRIES = 1024
"""Below this numpy's passes take less time than a call; but GELU's reference has forty of them."""


def sigmoid(x: Real) -> Any:
    """See `xbp.primitives.sigmoid`."""
    result = logistic(x)
    return result if result is NotImplemented else result[0]


def logistic(x: Real) -> Any:
    """See `xbp.primitives.logistic`."""
    return entrywise("logistic", x, LEAST_ENTRIES, of_output=True)


def tanh(x: Real) -> Any:
    """See `xbp.primitives.tanh`."""
    return entrywise("tanh", x, LEAST_FOR_THREADS, of_output=True)


def silu(x: Real) -> Any:
    """See `xbp.primitives.silu`."""
    return entrywise("silu", x, LEAST_ENTRIES)


def gelu(x: Real, *, approximate: str = "none") -> Any:
    """See `xbp.primitives.gelu`."""
    return entrywise("gelu" if approximate == "none" else "gelu_tanh", x, 1)


ACCELERATORS = (sigmoid, logistic, tanh, silu, gelu)
