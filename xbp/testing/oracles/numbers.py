"""Counter-based random words, and derivatives from differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xbp.testing.oracles.types import F64, Pair, Words

# (counter, key, result): the "philox4x32 10" lines of tests/kat_vectors in Random123.
PHILOX_KNOWN_ANSWERS: list[tuple[Words, Pair, Words]] = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox4x32(counter: Words, key: Pair, rounds: int = 10) -> Words:
    """Four 32-bit words from a 128-bit counter and a 64-bit key (Philox, Salmon et al. 2011).

    One round: (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).
    The key grows between rounds by the Weyl constants, modulo 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        # Fractional parts of the golden ratio and of sqrt(3), times 2^32.
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def numeric_gradient(f: Callable[[F64], float], x: F64, h: float = 2.0**-17) -> F64:
    """Central differences (f(x + h e_i) - f(x - h e_i)) / 2h at every entry i, shape of x.

    h: the truncation error grows as h^2 |f'''| / 6 and the rounding error as eps |f| / h, so their
    sum is least near the cube root of eps = 2^-52. 2^-17 = 7.6e-6 is the power of two there; the
    derivative is then good to about 1e-10 for values and derivatives of order one. f must have no
    kink (relu at 0, a tie in max pooling) within h of x.
    """
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += h
        below[index] -= h
        # the actual step, which rounding may make different from 2h
        gradient[index] = (f(above) - f(below)) / (above[index] - below[index])
    return gradient
