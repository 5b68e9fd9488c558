"""Philox-4x32-10, a counter-based random generator, in Array API integer arithmetic.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel random numbers: as easy as 1, 2, 3.
SC'11. Its output for a (counter, key) pair needs no state, so a GPU draws it in any order.
"""

from __future__ import annotations

import math
from typing import Any

from xbp.backend import Array, array_namespace
from xbp.primitives.dispatch import primitive

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 - 1, which bump the key each round
MASK = 0xFFFFFFFF


def multiply(a: int, b: Any) -> tuple[Any, Any]:
    """High and low 32-bit words of ``a · b``, for 32-bit words held in int64.

    The full product can need 64 bits, one more than int64 has, so `a` is split into 16-bit halves:
    no intermediate exceeds 2⁴⁹, and no backend's overflow rule matters (torch has no uint64).
    """
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    counter: tuple[Any, Any, Any, Any], key: tuple[int, int], rounds: int = 10
) -> tuple[Any, Any, Any, Any]:
    """The four output words for four counter words and two key words.

    Parameters
    ----------
    counter : four int64 arrays (or ints) of one shape, each word in 0 … 2³² - 1
    key : two ints in 0 … 2³² - 1
    rounds : int, default 10

    Returns
    -------
    tuple of four int64 arrays (or ints)
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = multiply(MULTIPLIERS[0], c0)
        high1, low1 = multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


@primitive
def random_bits(
    like: Array, shape: tuple[int, ...], *, key: tuple[int, int], counter: tuple[Any, Any, Any]
) -> Array:
    """Uniform 32-bit integers, as int64, of `shape`, on the device of `like`.

    The blocks 0, 1, 2, … of four words, each under the counter ``(block, *counter)``, are laid
    out in row-major order.

    Raises
    ------
    OverflowError
        `shape` needs more than 2³² blocks.
    """
    xp = array_namespace(like)
    size = math.prod(shape)
    blocks = -(-size // 4)
    if blocks > MASK:
        msg = f"one draw gives at most {4 * MASK} words, shape {shape} needs {size}"
        raise OverflowError(msg)
    block = xp.arange(blocks, dtype=xp.int64, device=like.device)
    # Adding zero times the block turns the other words, ints or 0-d arrays, into arrays beside it.
    words = philox4x32((block, *(0 * block + word for word in counter)), key)
    return xp.reshape(xp.reshape(xp.stack(words, axis=1), (-1,))[:size], shape)
