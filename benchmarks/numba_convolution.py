"""Numba or C for CPU kernels: the time of a convolution compiled by Numba, and of xbp's in C.

    pip install numba && python benchmarks/numba_convolution.py

Both compute the two convolutions of LeNet-5, forward, for 128 images on one thread. xbp's kernels
include bias, ReLU and pooling, Numba's the bias alone. LOG.md has the conclusion.
"""

from __future__ import annotations

import os

os.environ["NUMBA_NUM_THREADS"] = os.environ["XBP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np

from xbp import primitives

IMAGES, LANES = 128, 16


@numba.njit(fastmath=True, parallel=True)
def convolve(x, weight, bias, y):  # type: ignore[no-untyped-def]
    """x (H, C, W, N), padded; y (OH, O, OW, N): xbp's layout, with blocks of images innermost."""
    for r in numba.prange(y.shape[0]):
        for o in range(y.shape[1]):
            for s in range(y.shape[2]):
                for n in range(0, y.shape[3], LANES):
                    for lane in range(LANES):
                        y[r, o, s, n + lane] = bias[o]
                    for c in range(weight.shape[1]):
                        for i in range(weight.shape[2]):
                            for j in range(weight.shape[3]):
                                w = weight[o, c, i, j]
                                for lane in range(LANES):
                                    y[r, o, s, n + lane] += w * x[r + i, c, s + j, n + lane]


def microseconds(call: Callable[[], object]) -> float:
    """The minimum of 50 calls, divided by the number of images."""
    times = []
    for _ in range(50):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) / IMAGES * 1e6


rng = np.random.default_rng(0)
for name, channels, size, outputs in (("C1", 1, 32, 6), ("C3", 6, 14, 16)):
    x = rng.normal(size=(size, channels, size, IMAGES)).astype(np.float32)
    weight = rng.normal(size=(outputs, channels, 5, 5)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    y = np.empty((size - 4, outputs, size - 4, IMAGES), np.float32)
    images = x.transpose(3, 1, 0, 2)
    start = time.perf_counter()
    convolve(x, weight, bias, y)
    first = time.perf_counter() - start
    expected, _ = primitives.convolve(images, weight, bias)
    np.testing.assert_allclose(y.transpose(3, 1, 0, 2), expected, rtol=1e-3, atol=1e-3)
    by_numba = microseconds(partial(convolve, x, weight, bias, y))
    pool = (("kernel_size", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0)))
    operations = (
        (primitives.convolve, (("stride", (1, 1)), ("padding", (0, 0)))),
        (primitives.rectify, ()),
        (primitives.max_pool, pool),
    )
    by_xbp = microseconds(partial(primitives.chain, images, operations, [(weight, bias), (), ()]))
    print(f"{name}: Numba {by_numba:.1f} µs an image (first call {first:.1f} s), xbp {by_xbp:.1f}")
