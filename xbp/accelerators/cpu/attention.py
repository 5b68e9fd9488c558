"""Compiled attention, of each sample and head while it is in cache, for numpy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.calls import DTYPES, address, addressable, descriptor, incoming, run

Real = NDArray[Any]
LEAST_TIMES = 4
"""With fewer queries, turning the keys takes longer than the products."""
LEAST_FOR_THREADS = 2**16


def attention(
    q: Real,
    k: Real,
    v: Real,
    ignored: Real | None = None,
    mask: Real | None = None,
    *,
    causal: bool = False,
) -> Any:
    """See `xbp.primitives.attention`; without masks."""
    dtype, alike = q.dtype, q.ndim == k.ndim == v.ndim == 4 and q.dtype == k.dtype == v.dtype
    if ignored is not None or mask is not None or not alike or dtype not in DTYPES:
        return NotImplemented
    (n, heads, times, d), (s, e) = q.shape, v.shape[2:]
    fits = k.shape == (n, heads, s, d) and v.shape[:2] == (n, heads)
    if not fits or times < LEAST_TIMES or not (q.size and v.size):
        return NotImplemented
    q, k, v = map(addressable, (q, k, v))
    wide = -(-s // native.lanes(dtype.itemsize)) * native.lanes(dtype.itemsize)
    powers, totals = np.empty((n, heads, times, wide), dtype), np.empty((n, heads, times), dtype)
    y = by_time(n, heads, times, e, dtype)
    products = n * heads * times * s * (d + e)
    task = native.Attention(
        *map(descriptor, (q, k, v, y)), powers=address(powers), totals=address(totals),
        n=n, heads=heads, times=times, s=s, d=d, e=e, scale=1 / math.sqrt(d), causal=causal,
        threads=native.threads() if products >= LEAST_FOR_THREADS else 1,
    )  # fmt: skip
    run("attention", dtype, task, (q, k, v), (y, powers, totals))

    def backward(dy: Real, wants_dx: bool = True) -> tuple[Real | None, Real, Real]:
        dy = incoming(dy, (n, heads, times, e), dtype)
        dq = by_time(n, heads, times, d, dtype) if wants_dx else None
        dk, dv = by_time(n, heads, s, d, dtype), by_time(n, heads, s, e, dtype)
        task.q, task.k, task.v, task.y = map(descriptor, (q, k, v, y))  # all stay alive
        task.powers, task.totals = address(powers), address(totals)
        task.dy, task.dq, task.dk, task.dv = map(descriptor, (dy, dq, dk, dv))
        run("attention_backward", dtype, task, (q, k, v, y, dy, powers, totals), (dq, dk, dv))
        return dq, dk, dv

    return y, backward


def by_time(n: int, heads: int, times: int, features: int, dtype: np.dtype[Any]) -> Real:
    """Room for (n, heads, times, features), a step's heads side by side, as layers join them."""
    return np.empty((n, times, heads, features), dtype).transpose(0, 2, 1, 3)


ACCELERATORS = (attention,)
