"""Convolution, alone or fused with ReLU and maximum pooling; pooling; for numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.accelerators.cpu import native
from xbp.accelerators.cpu.calls import (
    DTYPES,
    address,
    addressable,
    aligned,
    descriptor,
    incoming,
    run,
)
from xbp.accelerators.shared import MOST_PLACES, Pair, is_plain
from xbp.primitives.dispatch import check_gradient, of_input
from xbp.primitives.images import Padding, output_size

Real = NDArray[Any]
MOST_SUMS = native.MOST_THREADS
"""Groups of images whose gradients are summed apart, if results must not depend on threads."""
FEW, LEAST_FOR_FEW = 8, 2**20
"""At a stride a vector holds one number of each of several images. With an eighth of them or less,
and so many products or more, the reference is faster, as a BLAS fills vectors with positions."""
MOST_TURNED = 2**21
"""Numbers of ∂L/∂y that are put in another order as a whole, for kernels 1 × 1: beyond it they go
through memory once more, which takes longer than the products."""
LEAST_A_GROUP = 2**13
"""Least number of products in a group for which a call per group is faster than the reference."""


def convolve(
    x: Real,
    weight: Real,
    bias: Real | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool = False,
    pool: Pair = (1, 1),
) -> Any:
    """`xbp.primitives.convolve`, then ReLU, if `relu`, and the maximum of `pool` windows."""
    if groups > 1:
        window = {"stride": stride, "padding": padding, "dilation": dilation}
        return _by_group(x, weight, bias, groups, **window, relu=relu, pool=pool)
    of_positions = (*stride,) == (1, 1)  # a stride may be an array
    if not is_plain(padding, (1, 1) if of_positions else dilation):
        return NotImplemented
    dtype = x.dtype
    n, c, h, w = x.shape
    o, _, kh, kw = weight.shape
    reach = (dilation[0] * (kh - 1), dilation[1] * (kw - 1))
    fits = padding[0] <= reach[0] and padding[1] <= reach[1]
    fits = fits and pool[0] * pool[1] <= MOST_PLACES
    alike = weight.dtype == dtype and weight.shape[1] == c
    if bias is not None:
        alike = alike and bias.dtype == dtype and bias.shape == (o,)
    if dtype not in DTYPES or n == 0 or not fits or not alike:
        return NotImplemented
    oh, ow = output_size((h, w), (kh, kw), stride, padding, dilation)
    lanes = native.lanes(dtype.itemsize)
    if of_positions and (*dilation,) == (1, 1):
        innermost = n == 1 or x.strides[0] == x.itemsize
        of_positions = by_positions(n, c, o, (kh, kw), oh * ow, lanes, innermost)
    products = n * oh * ow * weight.size
    if not of_positions and FEW * n <= lanes and products >= LEAST_FOR_FEW:
        return NotImplemented
    x, weight = addressable(x), np.ascontiguousarray(weight)
    bias = None if bias is None else np.ascontiguousarray(bias)
    y = empty((n, o, oh // pool[0], ow // pool[1]), dtype)
    where = places(y) if relu or pool != (1, 1) else None
    task = native.Convolution(
        x=descriptor(x), y=descriptor(y), weight=address(weight),
        bias=address(bias), where=address(where),
        n=n, c=c, h=h, w=w, o=o, kh=kh, kw=kw,
        stride_h=stride[0], stride_w=stride[1], pad_h=padding[0], pad_w=padding[1],
        oh=oh, ow=ow, pool_h=pool[0], pool_w=pool[1], apart_h=dilation[0], apart_w=dilation[1],
        relu=relu, threads=native.threads(),
        groups=MOST_SUMS if native.reproducible() else native.threads(),
    )  # fmt: skip
    kernel = "convolve_positions" if of_positions and y.size else "convolve"
    run(kernel, dtype, task, (x, weight, bias), (y, where))
    shape = y.shape

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Real | None, Real, Real | None]:
        dy, dx = incoming(dy, shape, dtype), empty(x.shape, dtype) if wants_dx else None
        dweight, dbias = np.empty(weight.shape, dtype), np.empty(o, dtype)
        task.y, task.dx = descriptor(dy), descriptor(dx)
        task.dweight, task.dbias = address(dweight), address(dbias)
        task.where = address(where)  # unchanged, but kept alive by this closure
        run(f"{kernel}_backward", dtype, task, (x, weight, bias, where, dy), (dx, dweight, dbias))
        return dx, dweight, None if bias is None else dbias

    return y, gradients


def by_positions(
    n: int,
    channels: int,
    outputs: int,
    kernel: Pair,
    pixels: int,
    lanes: int,
    innermost: bool = True,
) -> bool:
    """Whether vectors hold positions of a row (`positions.h`) and not images, at stride 1.

    The bounds are measured: see benchmarks/LOG.md. With vectors of images a kernel 3 × 3 has a
    quarter of the products, if there are enough channels (`winograd.h`). If the batch is not
    `innermost` in memory, images are rearranged as a whole, or block by block.
    """
    size = kernel[0] * kernel[1]
    if size == 1 and 2 * n > lanes:
        fits = n * pixels * max(outputs, lanes) <= MOST_TURNED
        return fits and 2 * outputs >= lanes and (innermost or n <= lanes or channels < 4 * outputs)
    if kernel == (3, 3) and min(channels, outputs) >= lanes // 2:
        return 3 * n <= lanes
    return 2 * n <= lanes or (size > 9 and 2 * channels >= lanes and outputs >= lanes)


def _by_group(x: Real, weight: Real, bias: Real | None, groups: int, **options: Any) -> Any:
    """A convolution for each group of channels."""
    outputs, (o, c) = [], weight.shape[:2]
    each, pixels = o // groups, x.shape[0] * x.shape[2] * x.shape[3]
    if pixels * weight.size < LEAST_A_GROUP * groups:
        return NotImplemented
    for g in range(groups):
        own = slice(g * each, (g + 1) * each)
        offset = None if bias is None else bias[own]
        done = convolve(x[:, g * c : (g + 1) * c], weight[own], offset, **options)
        if done is NotImplemented:
            return NotImplemented
        outputs.append(done)
    n, _, oh, ow = outputs[0][0].shape
    y = empty((n, o, oh, ow), x.dtype)
    for g, (part, _) in enumerate(outputs):
        y[:, g * each : (g + 1) * each] = part

    def gradients(dy: Real, wants_dx: bool = True) -> tuple[Real | None, Real, Real | None]:
        check_gradient(dy, y.shape)
        dx = empty(x.shape, x.dtype) if wants_dx else None
        dweight, dbias = np.empty(weight.shape, x.dtype), np.empty(o, x.dtype)
        for g, (_, backward) in enumerate(outputs):
            own = slice(g * each, (g + 1) * each)
            part, dweight[own], offset = backward(dy[:, own], wants_dx)
            if dx is not None:
                dx[:, g * c : (g + 1) * c] = part
            if bias is not None:
                dbias[own] = offset
        return dx, dweight, None if bias is None else dbias

    return y, gradients


def max_pool(x: Real, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Any:
    """See `xbp.primitives.max_pool`."""
    return _pool(x, kernel_size, stride, padding, average=False)


def average_pool(x: Real, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Any:
    """See `xbp.primitives.average_pool`."""
    return _pool(x, kernel_size, stride, padding, average=True)


def flatten(x: Real) -> Any:
    """`xbp.primitives.flatten`, of images stored with the batch innermost."""
    dtype = x.dtype
    if dtype not in DTYPES or x.ndim != 4 or x.strides[0] != x.itemsize or len(x) == 0:
        return NotImplemented
    x = addressable(x)
    n, c, h, w = x.shape
    y = np.empty((n, c * h * w), dtype)
    task = native.Flattening(descriptor(x), address(y), n, c, h, w, native.threads())
    run("flatten", dtype, task, (x,), (y,))
    shape = x.shape
    return y, of_input(lambda dy: dy.reshape(shape))


def _pool(x: Real, kernel: Pair, stride: Pair, padding: Pair, *, average: bool) -> Any:
    dtype = x.dtype
    n, c, h, w = x.shape
    kh, kw = kernel
    if dtype not in DTYPES or n == 0 or (not average and kh * kw > MOST_PLACES):
        return NotImplemented
    oh, ow = output_size((h, w), kernel, stride, padding)
    x, y = addressable(x), empty((n, c, oh, ow), dtype)
    where = None if average else places(y)
    task = native.Pooling(
        x=descriptor(x), y=descriptor(y), where=address(where),
        n=n, c=c, h=h, w=w, kh=kh, kw=kw,
        stride_h=stride[0], stride_w=stride[1], pad_h=padding[0], pad_w=padding[1],
        oh=oh, ow=ow, average=average, threads=native.threads(),
    )  # fmt: skip
    run("pool", dtype, task, (x,), (y, where))
    shape, output = x.shape, y.shape

    def input_gradient(dy: Real) -> Real:
        dy, dx = incoming(dy, output, dtype), empty(shape, dtype)
        task.x, task.y, task.where = descriptor(dx), descriptor(dy), address(where)
        run("pool_backward", dtype, task, (where, dy), (dx,))
        return dx

    return y, of_input(input_gradient)


# --- memory ---


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Real:
    """Uninitialized images in the memory layout of `xbp.primitives.images`."""
    n, c, h, w = shape
    return aligned((h, c, w, n), dtype).transpose(3, 1, 0, 2)


def places(y: Real) -> NDArray[np.uint8]:
    """Uninitialized positions of the maxima y in their windows, for whole blocks of images."""
    n, lanes = y.shape[0], native.lanes(y.itemsize)
    return np.empty(-(-n // lanes) * lanes * (y.size // n), np.uint8)


ACCELERATORS = (convolve, max_pool, average_pool, flatten)
