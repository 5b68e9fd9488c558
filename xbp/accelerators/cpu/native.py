"""The compiled library for this processor, and its structures."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from xbp.accelerators.cpu.build import digest, library_path

LEVELS = {  # the processor features that each needs, best first
    "avx512": ("AVX512F", "AVX512BW", "AVX512DQ", "AVX512VL", "AVX2", "FMA3"),
    "avx2": ("AVX2", "FMA3"),
    "neon": (),  # every 64-bit Arm processor
    "baseline": (),
}
MOST_THREADS = 64


@cache
def library() -> ctypes.CDLL | None:
    """The kernels for this processor; None if there is no library to load."""
    return _load()[0]


def function(name: str, arguments: Sequence[Any] | None = None, result: Any = ctypes.c_int) -> Any:
    """A function of the kernels' library, as a new object with types of its own.

    An attribute of the library is one object for all threads. Without the global interpreter lock
    its types must not be set while another thread calls it.
    """
    found: Any = library()[name]  # type: ignore[index]
    found.argtypes, found.restype = arguments, result
    return found


@cache
def status() -> str:
    """The level of the instruction set in use, or why there is none."""
    return _load()[1]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    features, wanted = _features(), os.environ.get("XBP_ACCELERATE")
    if reproducible() and wanted not in LEVELS:
        features["AVX512F"] = False
    problem = "not built; install xbp where there is a C compiler"
    for level, needed in LEVELS.items():
        if wanted in LEVELS and level != wanted:
            continue
        path = library_path(level)
        if not all(features.get(name) for name in needed) or not path.exists():
            continue
        try:
            loaded = ctypes.CDLL(str(path))
            built_from = ctypes.c_uint.in_dll(loaded, "xbp_digest").value
        except (OSError, ValueError) as error:
            problem = f"cannot be loaded ({error}); install xbp again"
            continue
        if built_from == digest():
            return loaded, level
        problem = (
            "built from other sources; install xbp again, or run xbp/accelerators/cpu/build.py"
        )
    return None, problem


@cache
def reproducible() -> bool:
    """Whether results must not depend on threads and processor: XBP_REPRODUCIBLE=1.

    Then kernels sum over fixed groups, whatever the number of threads; they compute all matrix
    products, as the BLAS chooses its order by processor and threads; and AVX-512 is not used, so
    that all x86-64 processors with fused multiply-add run the same code. This costs time.
    """
    return os.environ.get("XBP_REPRODUCIBLE", "0") not in ("", "0")


def _features() -> dict[str, bool]:
    """The processor's features, as numpy detected them."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__
    except ImportError:
        return {}
    return dict(__cpu_features__)


@cache
def lanes(itemsize: int) -> int:
    """The number of lanes of a vector for numbers of this size, which is the images of a block."""
    loaded = library()
    return 1 if loaded is None else int(loaded.xbp_lanes(itemsize))


@cache
def threads() -> int:
    """The number of threads: XBP_NUM_THREADS, else OMP_NUM_THREADS, else all cores."""
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

    _fields_ = (("data", ctypes.c_void_p), *((axis, ctypes.c_int64) for axis in "nchw"))


class Product(ctypes.Structure):
    """`product` in kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gemm", "get_threads", "set_threads")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c")),
        *((name, ctypes.c_int64) for name in ("m", "n", "k", "lda", "ldb")),
        *((name, ctypes.c_int) for name in ("trans_a", "trans_b", "threads", "failed")),
    )


class Affine(ctypes.Structure):
    """`affine` in kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "dy")),
        *((name, ctypes.c_void_p) for name in ("y", "dx", "dweight", "dbias")),
        *((name, ctypes.c_int64) for name in ("n", "inputs", "outputs")),
        *((name, ctypes.c_int) for name in ("relu", "by_outputs", "threads")),
    )


class BatchNorm(ctypes.Structure):
    """`batch_norm` in kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "dy")),
        *((name, ctypes.c_void_p) for name in ("y", "dx", "constants", "sums")),
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int) for name in ("known", "relu", "threads")),
    )


class Rows(ctypes.Structure):
    """`rows` in kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "dy")),
        *((name, ctypes.c_void_p) for name in ("y", "dx", "moments", "sums")),
        *((name, ctypes.c_int64) for name in ("n", "c", "blocks")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int) for name in ("centre", "threads")),
    )


class Recurrence(ctypes.Structure):
    """`recurrence` in kernels.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ),
        *((name, ctypes.c_void_p) for name in ("padding", "h", "c", "kept", "dh", "delta")),
        *((name, ctypes.c_void_p) for name in ("dh_before", "dc_before", "around", "sums", "dx")),
        *((name, ctypes.c_int64) for name in ("steps", "n", "features", "hidden", "chunk")),
        *((name, ctypes.c_int64) for name in ("dh_step", "dh_row", "hh_row", "groups")),
        *((name, ctypes.c_int) for name in ("cell", "reverse", "threads")),
    )


class Attention(ctypes.Structure):
    """`attention` in kernels.h."""

    _fields_ = (
        *((name, Images) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
        *((name, ctypes.c_void_p) for name in ("powers", "totals")),
        *((name, ctypes.c_int64) for name in ("n", "heads", "times", "s", "d", "e")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int) for name in ("causal", "threads")),
    )


class Lookup(ctypes.Structure):
    """`lookup` in kernels.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("index", "table", "rows")),
        *((name, ctypes.c_int64) for name in ("n", "length", "width", "left_out")),
        ("threads", ctypes.c_int),
    )


class Flattening(ctypes.Structure):
    """`flattening` in kernels.h."""

    _fields_ = (
        ("x", Images),
        ("y", ctypes.c_void_p),
        *((axis, ctypes.c_int64) for axis in "nchw"),
        ("threads", ctypes.c_int),
    )


class Pooling(ctypes.Structure):
    """`pooling` in kernels.h."""

    _fields_ = (
        ("x", Images),
        ("y", Images),
        ("where", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("n", "c", "h", "w", "kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w"),
                *("oh", "ow"),
            )
        ),
        ("average", ctypes.c_int),
        ("threads", ctypes.c_int),
    )


class Convolution(ctypes.Structure):
    """`convolution` in kernels.h."""

    _fields_ = (
        *((name, Images) for name in ("x", "y", "dx")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "dweight", "dbias", "where")),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("n", "c", "h", "w", "o", "kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w"),
                *("oh", "ow", "pool_h", "pool_w", "groups", "apart_h", "apart_w"),
            )
        ),
        ("relu", ctypes.c_int),
        ("threads", ctypes.c_int),
    )
