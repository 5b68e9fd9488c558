"""Matrix products on the workers: small ones directly, large ones by blocks or by numpy's BLAS."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections import deque
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.calls import DTYPES, address
from xbp.accelerators.shared import stored
from xbp.backend import RECORDING

Real = NDArray[Any]
LEAST_PRODUCTS = 2**18
"""Below this OpenBLAS uses one thread, and numpy's own call costs least."""
MOST_DIRECT = 2**23
MOST_DIRECT_OF_WIDE_VECTORS = 2**27  # of 64 bytes
"""Above this it is faster to copy the operands first: see affine.h and blocked.h."""
LEAST_BLOCKED = 2**21
"""Below this a BLAS is faster, where a product is not computed directly."""
LEAST_ROWS, LEAST_COLUMNS = 16, 64
"""Of the result; the copies for a smaller one take as long as its products."""
ORDERS = NOT_TRANSPOSED, TRANSPOSED = 111, 112  # as in cblas.h
LEAST_KEPT = 2**25  # bytes; malloc itself keeps smaller freed blocks, see `NumPy.activate`
COUNTS_REFERENCES = (
    sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
)
_probe = deque([object()])
FREE = sys.getrefcount(_probe[0])  # reference count of an object held only by the deque


def matmul(a: Real, b: Real) -> Any:
    """See `xbp.primitives.matmul`; for two matrices of memory layouts that BLAS can read."""
    dtype = a.dtype
    if native.reproducible():
        return _in_order(a, b)
    if dtype not in DTYPES or a.ndim != 2 or b.ndim != 2 or b.dtype != dtype:
        return NotImplemented
    (m, k), n, threads = a.shape, b.shape[1], native.threads()
    products = m * n * k
    if b.shape[0] != k or products < LEAST_PRODUCTS:
        return NotImplemented
    left, right = stored(a), stored(b)
    if left is None or right is None or not (a.flags.aligned and b.flags.aligned):
        return NotImplemented
    direct = products <= most_direct() and not right[0] and n >= native.lanes(a.itemsize)
    blocked = is_blocked(m, n, products) and not direct
    functions = (None, None, None) if direct or blocked else blas(dtype)
    if functions is None or (threads == 1 and not direct and not blocked):
        return NotImplemented
    c = memory((m, n), dtype)
    gemm, get_threads, set_threads = functions
    task = native.Product(
        gemm=gemm, get_threads=get_threads, set_threads=set_threads,
        a=address(a), b=address(b), c=address(c), m=m, n=n, k=k,
        lda=left[1], ldb=right[1], trans_a=ORDERS[left[0]], trans_b=ORDERS[right[0]],
        threads=threads,
    )  # fmt: skip
    name = "multiply_direct" if direct else "multiply_blocked" if blocked else "multiply"
    multiply = _kernel(name, dtype)
    multiply(ctypes.byref(task))
    if task.failed:  # no memory for copies
        return NotImplemented
    if RECORDING.tape is not None:
        whole = replay.ProductTask(ctypes.cast(multiply, ctypes.c_void_p), task)
        replay.note("xbp_product_task_run", whole, (a, b), (c,))
    return c


def most_direct() -> int:
    """The number of multiplications up to which a product is computed directly."""
    return MOST_DIRECT_OF_WIDE_VECTORS if native.lanes(4) == 16 else MOST_DIRECT


def is_blocked(m: int, n: int, products: int) -> bool:
    """Whether a product is computed by blocks if it is not computed directly."""
    enough = products >= LEAST_BLOCKED and m >= LEAST_ROWS and n >= LEAST_COLUMNS
    return enough and native.lanes(4) == 16  # vectors of 64 bytes: a BLAS makes the best of others


def _in_order(a: Real, b: Real) -> Any:
    """The product of matrices or stacks of them, all sums over k in the order of k."""
    dtype = a.dtype
    fits = min(a.ndim, b.ndim) >= 2 and a.size and b.size and a.shape[-1] == b.shape[-2]
    if dtype not in DTYPES or b.dtype != dtype or not fits:
        return NotImplemented
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape, (k, n) = (*stack, a.shape[-2], b.shape[-1]), b.shape[-2:]
    if b.ndim == 2:  # one product of all rows
        a, b = a.reshape(1, -1, k), b[None]
    else:
        a, b = (np.broadcast_to(x, stack + x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b))
    wide = max(n, native.lanes(a.itemsize))  # whole vectors are read
    if wide > n:
        b = np.pad(b, ((0, 0), (0, 0), (0, wide - n)))
    left, right = stored(a), stored(b)
    if left is None or not a.flags.aligned:
        a, left = np.array(a, order="C"), (False, k)
    if right is None or right[0] or not b.flags.aligned:
        b, right = np.array(b, order="C"), (False, wide)
    count, m = a.shape[:2]
    c = np.empty((count, m, wide), dtype)
    task = native.Product(
        m=m, n=wide, k=k, lda=left[1], ldb=right[1],
        trans_a=ORDERS[left[0]], trans_b=NOT_TRANSPOSED,
        threads=native.threads() if m * n * k >= LEAST_PRODUCTS else 1,
    )  # fmt: skip
    kernel, places = _kernel("multiply_direct", dtype), [address(x) or 0 for x in (a, b, c)]
    steps = [x.strides[0] for x in (a, b, c)]
    for i in range(count):
        task.a, task.b, task.c = (
            place + i * step for place, step in zip(places, steps, strict=True)
        )
        kernel(ctypes.byref(task))
    return (c if wide == n else c[..., :n]).reshape(shape)


_kept: deque[Real] = deque(maxlen=4)
_lock = Lock()


def _after_fork() -> None:
    """Reset the lock in a forked process: a thread that held it does not exist there."""
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def memory(shape: tuple[int, int], dtype: np.dtype[Any]) -> Real:
    """Memory for a result; a large block is reused when nothing refers to it or to a view of it.

    malloc returns blocks above 32 MiB to the system at once. For the gradient of a large weight,
    zeroing new pages in each step would take half as long as the product.
    """
    if math.prod(shape) * dtype.itemsize < LEAST_KEPT or not COUNTS_REFERENCES:
        return np.empty(shape, dtype)
    with _lock:  # until the new reference exists, or two threads would get the same block
        for index in range(len(_kept)):
            held = sys.getrefcount(_kept[index])
            if held == FREE and _kept[index].shape == shape and _kept[index].dtype == dtype:
                return _kept[index]
        _kept.append(np.empty(shape, dtype))
        return _kept[-1]


@cache
def blas(dtype: np.dtype[Any]) -> tuple[int, int, int] | None:
    """The addresses of gemm for a dtype, and of the getter and setter of the number of threads.

    These are functions of the OpenBLAS in numpy's wheels; None if numpy has another BLAS.
    """
    kind = {"float32": "s", "float64": "d"}.get(dtype.name)
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")  # Linux and Windows; macOS
    found = (path for folder in folders for path in sorted(folder.glob("libscipy_openblas64_*")))
    for path in found if kind else ():
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
def _kernel(name: str, dtype: np.dtype[Any]) -> Any:
    return native.function(f"{name}_{dtype.name}", result=None)


ACCELERATORS = (matmul,)
