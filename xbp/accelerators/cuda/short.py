"""Products of factors that are stored in 16 bits, by cuBLAS on tensor cores.

Each factor is rounded and stored by one pass (`short.cu`), and read by the products from there:
half as many bytes as in float32. The same bits are what a forward keeps for its backward. Sums are
float32's. Products too small for cuBLAS are left to the reference, which rounds to float32, so that
a product has as many launches either way.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from xbp.accelerators.cuda import tuned, wide
from xbp.accelerators.cuda.large import affine_by
from xbp.accelerators.cuda.launch import (
    MOST_ENTRIES,
    PROCESSORS,
    blocks,
    dense,
    fits,
    lanes,
    machine_of,
    pointer,
    structure,
)
from xbp.accelerators.cuda.passes import add_up
from xbp.accelerators.shared import Array, Pair, dense_order, incoming, inverse, is_plain
from xbp.primitives.images import Padding, as_nchw, output_size, rows_first, unfold_rows
from xbp.primitives.rounded import sum_but_along

Task = structure("Task", x=pointer, to=pointer, size=ctypes.c_longlong)
THREADS = 256  # as in short.cu
MOST_BLOCKS = 32 * PROCESSORS
LEAST = 2**24
"""The least m · n · k for cuBLAS: 256³, an estimate. `product.LEAST_LARGE` is more, as there a
kernel saves passes that reduced precision has anyway."""


def shorten(x: Array, name: str) -> Array:
    """`x`, of float32, as the bits of a format, in an array of uint16.

    In the memory order of `x`; in row-major order if that has gaps.
    """
    order = dense_order(x)
    if order is None:
        x, order = dense(x), tuple(range(x.ndim))
    laid_out, machine = x.transpose(order), machine_of(x)
    bits = machine.empty(laid_out.shape, "uint16")
    places = machine.address(laid_out), machine.address(bits)
    vector = lanes(x.dtype, x.size, *places)
    grid = (min(blocks(x.size // vector, THREADS), MOST_BLOCKS), 1)
    macros = {"real": "float", "VECTOR": vector, "FORMAT": name}
    machine.launch(("short.cu", "shorten"), macros, grid, THREADS, Task(*places, x.size))
    return bits.transpose(inverse(order))


def takes(name: str, *arrays: Array | None) -> bool:
    """Whether arrays are float32, and cuBLAS multiplies the format."""
    first = arrays[0]
    return (
        first is not None
        and first.dtype.name == "float32"
        and fits(first, *arrays[1:])
        and machine_of(first).multiplies_short(name)
    )


def is_large(array: Array, key: str, size: tuple[int, int, int]) -> bool:
    """Whether cuBLAS should take a product of these sizes: measured, or from `LEAST` on."""
    decision, rule = tuned.Decision("short", key, size), int(math.prod(size) >= LEAST)
    return tuned.number(machine_of(array), decision, (0, 1), rule) == 1


def product(a: Array, b: Array, name: str) -> Array:
    """The product of two matrices, or stacks of matrices, of bits; float32, in row-major order."""
    machine = machine_of(a)
    c = machine.empty((*a.shape[:-1], b.shape[-1]), "float32")
    if not machine.multiply(a, b, c, name):  # rows too close for BLAS, such as of one number
        found = machine.multiply(dense(a), dense(b), c, name)
        assert found
    return c


def rounded_matmul(a: Array, b: Array, *, name: str) -> Any:
    """See `xbp.primitives.rounded_matmul`; `b` has no leading axes, or those of `a`."""
    if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2] or not takes(name, a, b):
        return NotImplemented
    shape = (*a.shape[:-1], b.shape[-1])
    if b.ndim == 2:
        if not is_large(a, name, (math.prod(shape[:-1]), shape[-1], a.shape[-1])):
            return NotImplemented
        a = a.reshape(-1, a.shape[-1])
    elif a.shape[:-2] == b.shape[:-2]:
        a, b = (array.reshape(-1, *array.shape[-2:]) for array in (a, b))
    else:
        return NotImplemented
    return product(shorten(a, name), shorten(b, name), name).reshape(shape)


def rounded_affine(x: Array, weight: Array, bias: Array | None = None, *, name: str) -> Any:
    """See `xbp.primitives.rounded_affine`."""
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1]:
        return NotImplemented
    size = (math.prod(x.shape[:-1]), *weight.shape)
    if not is_large(x, name, size) or not takes(name, x, weight, bias):
        return NotImplemented
    if bias is not None and bias.shape != weight.shape[:1]:
        return NotImplemented
    return affine_by(partial(product, name=name), partial(shorten, name=name), x, weight, bias)


def rounded_convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    name: str,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Any:
    """See `xbp.primitives.rounded_convolve`; for many channels, without dilation and groups.

    As in the reference of `convolve`, each row of y is a product; all rows are one stack of them.
    ∂L/∂x is a convolution of ∂L/∂y, with zeros between its pixels where windows have a stride, by
    the mirrored weight. A weight that is not finite makes ∂L/∂x nan also where it would meet these
    zeros, or lie outside.
    """
    n, c, h, w = x.shape
    o, channels, kh, kw = weight.shape
    oh, ow = output_size((h, w), (kh, kw), stride, padding, dilation)
    if (
        groups != 1
        or channels != c
        or (bias is not None and bias.shape != (o,))
        or not is_plain(padding, dilation)
        or not wide.suits(weight.shape, stride, groups)
        or min(oh, ow) < 1
        or not is_large(x, f"{name} convolve", (o, n * oh * ow, c * kh * kw))
        or max(n * o * oh * ow, (h + 2 * padding[0]) * c * kw * ow * n) >= MOST_ENTRIES
        or not takes(name, x, weight, bias)
    ):
        return NotImplemented
    shape, dtype, machine = (n, o, oh, ow), x.dtype, machine_of(x)
    x, weight = shorten(x, name), shorten(weight, name)
    kernel, plain = (kh, kw), (1, 1)
    y = convolved(x, weight, stride, padding, (oh, ow), name)
    has_bias = bias is not None
    if bias is not None:
        y += bias.reshape(-1, 1, 1)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dy = incoming(dy, shape, dtype)
        delta = shorten(dy, name)

        def to_weight() -> tuple[Array, Array | None]:
            U = windows_of(x, kernel, stride, padding, (oh, ow))
            rows = rows_first(delta).reshape(oh, o, ow * n)
            each = product(rows, U.swapaxes(1, 2), name)  # (oh, out, kh·in·kw)
            total = add_up(each.reshape(oh, -1)) if oh > 1 else each
            dW = total.reshape(o, kh, c, kw).transpose(0, 2, 1, 3)
            return dW, sum_but_along(1, dy) if has_bias else None

        def to_input() -> Array:
            mirrored = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
            spread, around = spread_out(delta, stride, kernel, padding, (h, w))
            return convolved(spread, mirrored, plain, around, (h, w), name)

        if not wants_dx:
            return None, *to_weight()
        of_weight, dx = machine.side_by_side(to_weight, to_input)
        return dx, *of_weight

    return y, gradients


def convolved(
    x: Array, weight: Array, stride: Pair, padding: Padding, size: Pair, name: str
) -> Array:
    """The convolution of two arrays of bits, for an output of this size."""
    o = weight.shape[0]
    U = windows_of(x, weight.shape[2:], stride, padding, size)
    W = weight.transpose(0, 2, 1, 3).reshape(o, -1)
    stack = machine_of(x).strided(W, (size[0], *W.shape), (0, *W.strides))
    return as_nchw(product(stack, U, name).reshape(size[0], o, size[1], -1))


def windows_of(x: Array, kernel: Pair, stride: Pair, padding: Padding, size: Pair) -> Array:
    """For each row of an output, all of its windows: (OH, kh·in·kw, OW·N), with overlaps."""
    unfolded = unfold_rows(x, kernel, stride, padding)  # (H + 2p, in, kw, OW, N)
    row, entry = unfolded.strides[0], unfolded.itemsize
    height, columns = kernel[0] * math.prod(unfolded.shape[1:3]), math.prod(unfolded.shape[3:])
    shape, strides = (size[0], height, columns), (stride[0] * row, columns * entry, entry)
    return machine_of(x).strided(unfolded, shape, strides)


def spread_out(
    delta: Array, stride: Pair, kernel: Pair, padding: Padding, size: Pair
) -> tuple[Array, Padding]:
    """∂L/∂y with zeros between its pixels, and the padding whose convolution has the size of x."""
    n, o, oh, ow = delta.shape
    inner = [(count - 1) * s + 1 for count, s in zip((oh, ow), stride, strict=True)]
    if stride != (1, 1):
        bits = machine_of(delta).empty((inner[0], o, inner[1], n), delta.dtype)
        bits[...] = 0
        bits[:: stride[0], :, :: stride[1], :] = rows_first(delta)
        delta = as_nchw(bits)
    before = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]  # type: ignore[operator]
    after = [s + k - 1 - b - i for s, k, b, i in zip(size, kernel, before, inner, strict=True)]
    return delta, ((before[0], after[0]), (before[1], after[1]))


ACCELERATORS: tuple[Callable[..., Any], ...] = (rounded_matmul, rounded_affine, rounded_convolve)
