"""Linear layers of moderate size, compiled, for numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native, replay
from xbp.accelerators.cpu.calls import DTYPES, address, incoming, run
from xbp.accelerators.cpu.product import most_direct

Real = NDArray[Any]
LEAST_ROWS = 4
"""Below this the product takes less time than packing the weights."""
LEAST_FOR_THREADS = 2**16
"""Below this one thread is done before another has started."""


def affine(x: Real, weight: Real, bias: Real | None = None, *, relu: bool = False) -> Any:
    """See `xbp.primitives.affine`; followed by ReLU if `relu`."""
    dtype, (out, features) = x.dtype, weight.shape
    rows = x.size // features
    products = rows * features * out
    if (
        dtype not in DTYPES
        or x.ndim == 0
        or x.shape[-1] != features
        or features < native.lanes(x.itemsize)
        or not LEAST_ROWS * features * out <= products <= most_direct()
        or weight.dtype != dtype
        or (bias is not None and (bias.dtype != dtype or bias.shape != (out,)))
    ):
        return NotImplemented
    x, weight = contiguous(x), contiguous(weight)
    bias = None if bias is None else contiguous(bias)
    y = np.empty((*x.shape[:-1], out), dtype)
    threads = native.threads() if products >= LEAST_FOR_THREADS else 1
    task = native.Affine(
        address(x), address(weight), address(bias), y=address(y),
        n=rows, inputs=features, outputs=out, relu=relu, threads=threads,
        by_outputs=1 < threads <= out and rows <= out and not native.reproducible(),
    )  # fmt: skip
    run("affine", dtype, task, (x, weight, bias), (y,))
    shape = y.shape

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Real | None, Real, Real | None]:
        dy = contiguous(incoming(dy, shape, dtype))
        dx, dweight = np.empty_like(x) if wants_dx else None, np.empty_like(weight)
        dbias = None if bias is None else np.empty_like(bias)
        task.dy, task.dx = address(dy), address(dx)
        task.dweight, task.dbias = address(dweight), address(dbias)
        task.x, task.weight, task.y = address(x), address(weight), address(y)
        run("affine_backward", dtype, task, (x, weight, bias, y, dy), (dx, dweight, dbias))
        return dx, dweight, dbias

    return y, gradients


def contiguous(array: Real, given: Real | None = None) -> Real:
    """`array`, or a copy in row-major order and aligned; it may be a conversion of one `given`."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array if given is None else replay.copied(array, given)
    return replay.copied(np.array(array, order="C"), array if given is None else given)


ACCELERATORS = (affine,)
