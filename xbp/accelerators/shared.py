"""Checks of arrays that the wrappers of C and CUDA kernels share."""

from __future__ import annotations

from typing import Any, TypeAlias

from xbp.primitives.dispatch import check_gradient

Array: TypeAlias = Any
Shape: TypeAlias = "tuple[int, ...]"
Pair: TypeAlias = "tuple[int, int]"

MOST_PLACES = 255
"""The largest window of a maximum: its position is stored in a byte, with one value reserved."""


def incoming(dy: Array, shape: Shape, dtype: Any) -> Array:
    """∂L/∂y for a kernel, which does not check shape and dtype itself.

    Raises
    ------
    InputError
        Its shape is not that of y.
    """
    check_gradient(dy, shape)
    return dy.astype(dtype, copy=False)


def is_plain(padding: Any, dilation: Pair) -> bool:
    """Whether kernels support a convolution: equal padding on both sides, and no dilation."""
    p, q = padding
    return dilation == (1, 1) and isinstance(p, int) and isinstance(q, int)


def dense_order(array: Array) -> Shape | None:
    """The axes from the outermost to the innermost, if the array has no gaps; else None."""
    if array.flags.c_contiguous:
        return tuple(range(array.ndim))
    order = tuple(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
    return order if array.transpose(order).flags.c_contiguous else None


def inverse(order: Shape) -> Shape:
    """The inverse of a permutation of axes."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def stored(matrix: Array) -> tuple[bool, int] | None:
    """Whether a matrix is stored as its transpose, and the distance between the stored rows.

    Of a stack of matrices the last two axes count. None if BLAS cannot read it: there are gaps
    between entries, rows overlap, or rows begin between entries.
    """
    size = matrix.itemsize
    rows, columns = matrix.strides[-2:]
    if columns == size and rows % size == 0 and rows >= size * matrix.shape[-1]:
        return False, rows // size
    if rows == size and columns % size == 0 and columns >= size * matrix.shape[-2]:
        return True, columns // size
    return None
