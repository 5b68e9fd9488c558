"""Rounding to the formats in which tensor cores multiply."""

from __future__ import annotations

import math
from typing import NamedTuple

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive


class Format(NamedTuple):
    """A binary floating-point format."""

    digits: int
    """Of a significand, the leading 1 included."""
    least: int
    """The exponent of the smallest positive number, 2^least."""
    largest: float
    """The largest finite number; what would be rounded to more is infinite."""

    @property
    def unit(self) -> float:
        """The largest relative error of a rounding to a normal number."""
        return 2.0**-self.digits


FORMATS = {
    "tf32": Format(11, -136, (2 - 2.0**-10) * 2.0**127),
    "float16": Format(11, -24, 65504.0),
    "bfloat16": Format(8, -133, (2 - 2.0**-7) * 2.0**127),
}
"""float16 is IEEE 754's binary16. The others have the exponents of float32, with 10 and 7 bits of
its mantissa."""


@primitive
def round_to(x: Array, name: str) -> Array:
    """The nearest numbers of a format, ties to even, in the dtype of `x`.

    With 2^e the least power of two ≥ |x|, the format's numbers near x are multiples of q = 2^e /
    2^digits, or of its smallest number where that is more. In float64 (x + C) - C with
    C = 1.5 · 2⁵² q is the nearest multiple, as sums between 2⁵² q and 2⁵³ q are rounded to
    multiples of q. And |(a + |x|) - a| with a = 2⁵³ |x| is 2^e, or 0 for powers of two (Rump, Ogita
    & Oishi 2008, algorithm 3.6).

    Parameters
    ----------
    x : array of float32 or float64
    name : {"tf32", "float16", "bfloat16"}

    Returns
    -------
    array
        Of the shape and dtype of `x`. Infinities and nan stay; zeros keep their sign.
    """
    xp = array_namespace(x)
    digits, least, largest = FORMATS[name]
    wide = xp.astype(x, xp.float64)
    finite = xp.isfinite(wide)
    size = xp.minimum(xp.where(finite, xp.abs(wide), 0.0), 2.0**200)  # of all formats beyond
    above = 2.0**53 * size
    power = xp.maximum(xp.abs((above + size) - above), size)
    shift = 1.5 * 2.0**52 * xp.maximum(2.0**-digits * power, 2.0**least)
    near = (size + shift) - shift
    near = xp.where(near > largest, math.inf, near)
    return xp.astype(xp.where(finite, xp.copysign(near, wide), wide), x.dtype)
