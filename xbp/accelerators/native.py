"""The compiled library: which one this processor can run, and its functions and structures."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEVELS = {  # what the processor must have for each, best first
    "avx512": ("AVX512F", "AVX512BW", "AVX512DQ", "AVX512VL", "AVX2", "FMA3"),
    "avx2": ("AVX2", "FMA3"),
    "baseline": (),
}
MOST_THREADS = 64


@cache
def library() -> ctypes.CDLL | None:
    """The kernels for this processor; None where they were not built, or cannot be loaded."""
    level = available_level()
    if level is None:
        return None
    try:
        return ctypes.CDLL(str(HERE / f"_kernels_{level}.so"))
    except OSError:
        return None


def available_level() -> str | None:
    """The best level that is built and that this processor can run."""
    features = _features()
    for level, needed in LEVELS.items():
        if all(features.get(name) for name in needed) and (HERE / f"_kernels_{level}.so").exists():
            return level
    return None


def _features() -> dict[str, bool]:
    """What numpy found out about the processor."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__
    except ImportError:
        return {}
    return dict(__cpu_features__)


@cache
def threads() -> int:
    """How many threads the kernels use: XBP_NUM_THREADS, else OMP_NUM_THREADS, else all cores."""
    for name in ("XBP_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > 0:
            return min(int(value), MOST_THREADS)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return min(cores, MOST_THREADS)


class Images(ctypes.Structure):
    """`images` in kernels.h: data and strides of an array (N, C, H, W)."""

    _fields_ = (("data", ctypes.c_void_p), *((axis, ctypes.c_long) for axis in "nchw"))


def images(array: Any) -> Images:
    """The description of a 4-D array."""
    size = array.itemsize
    n, c, h, w = array.strides
    return Images(array.ctypes.data, n // size, c // size, h // size, w // size)


class Convolution(ctypes.Structure):
    """`convolution` in kernels.h."""

    _fields_ = (
        *((name, Images) for name in ("x", "y", "dx")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "dweight", "dbias", "where")),
        *(
            (name, ctypes.c_long)
            for name in (
                *("n", "c", "h", "w", "o", "kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w"),
                *("oh", "ow", "pool_h", "pool_w"),
            )
        ),
        ("relu", ctypes.c_int),
        ("threads", ctypes.c_int),
    )
