"""Matrix products on the kernels' own threads, by the BLAS inside numpy's wheels."""

from __future__ import annotations

import ctypes
import math
import sys
from collections import deque
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators import native

Real = NDArray[Any]
LEAST_PRODUCTS = 2**18
"""Below this OpenBLAS uses one thread, and numpy's own call is the shortest way to it."""
NOT_TRANSPOSED, TRANSPOSED = 111, 112  # as in cblas.h
LEAST_KEPT = 2**25  # bytes; below it malloc keeps freed memory itself, see NumPy in xbp/backend.py
COUNTS_REFERENCES = (
    sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
)
_probe = deque([object()])
FREE = sys.getrefcount(_probe[0])  # of what the deque alone holds, asked in this way


def matmul(a: Real, b: Real) -> Any:
    """See `xbp.primitives.matmul`; for two matrices that lie in memory as BLAS can read them."""
    dtype = a.dtype
    if a.ndim != 2 or b.ndim != 2 or b.dtype != dtype or a.shape[1] != b.shape[0]:
        return NotImplemented
    (m, k), n = a.shape, b.shape[1]
    if m * n * k < LEAST_PRODUCTS or native.threads() == 1:
        return NotImplemented
    functions, left, right = blas(dtype), stored(a), stored(b)
    if functions is None or left is None or right is None:
        return NotImplemented
    c = memory((m, n), dtype)
    gemm, get_threads, set_threads = functions
    task = native.Product(
        gemm=gemm, get_threads=get_threads, set_threads=set_threads,
        a=a.ctypes.data, b=b.ctypes.data, c=c.ctypes.data, m=m, n=n, k=k,
        lda=left[1], ldb=right[1], trans_a=left[0], trans_b=right[0], threads=native.threads(),
    )  # fmt: skip
    _kernel(dtype)(ctypes.byref(task))
    return c


_kept: deque[Real] = deque(maxlen=4)
_lock = Lock()


def memory(shape: tuple[int, int], dtype: np.dtype[Any]) -> Real:
    """Memory for a result; a large one is used again when nobody holds it, or a view of it.

    malloc gives blocks above 32 MiB back to the system at once, and to zero new pages for the
    gradient of a large weight, each step, takes half as long as the product.
    """
    if math.prod(shape) * dtype.itemsize < LEAST_KEPT or not COUNTS_REFERENCES:
        return np.empty(shape, dtype)
    with _lock:  # from the look to the new reference, or two threads would get the same
        for index in range(len(_kept)):
            held = sys.getrefcount(_kept[index])
            if held == FREE and _kept[index].shape == shape and _kept[index].dtype == dtype:
                return _kept[index]
        _kept.append(np.empty(shape, dtype))
        return _kept[-1]


def stored(matrix: Real) -> tuple[int, int] | None:
    """Whether a matrix is stored as its transpose, and how far rows are apart there.

    None where BLAS cannot read it.
    """
    size = matrix.itemsize
    rows, columns = matrix.strides
    if not matrix.flags.aligned:
        return None
    if columns == size and rows % size == 0 and rows >= size * matrix.shape[1]:
        return NOT_TRANSPOSED, rows // size
    if rows == size and columns % size == 0 and columns >= size * matrix.shape[0]:
        return TRANSPOSED, columns // size
    return None


@cache
def blas(dtype: np.dtype[Any]) -> tuple[int, int, int] | None:
    """The addresses of gemm for a dtype, and of what tells and sets the number of threads.

    They are those of the OpenBLAS that numpy's wheels carry; None where numpy has another.
    """
    kind = {"float32": "s", "float64": "d"}.get(dtype.name)
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("libscipy_openblas64_*")) if kind else ():
        try:
            loaded = ctypes.CDLL(str(path))
            functions = (
                getattr(loaded, f"scipy_cblas_{kind}gemm64_"),
                loaded.scipy_openblas_get_num_threads64_,
                loaded.scipy_openblas_set_num_threads64_,
            )
        except (OSError, AttributeError):
            continue
        one, two, three = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions)
        return one, two, three
    return None


@cache
def _kernel(dtype: np.dtype[Any]) -> Any:
    function = getattr(native.library(), f"multiply_{dtype.name}")
    function.restype = None
    return function


ACCELERATORS = (matmul,)
