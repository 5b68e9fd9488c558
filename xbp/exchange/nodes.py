"""Primitives as single ONNX nodes, in place of the many nodes of their references.

They are accelerators for ndonnx's arrays. The gradients of convolution and pooling are nodes, too;
those of the others are the references'. onnxruntime supports convolution and average pooling in
float32 only, so other dtypes are left to the references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeAlias
from unittest.mock import patch

import ndonnx
import ndonnx._typed_array.onnx as typed
import numpy as np
import spox.opset.ai.onnx.v21 as op
from spox import _value_prop

from xbp import primitives, registry
from xbp.backend import Array
from xbp.primitives.dispatch import of_input
from xbp.primitives.images import Padding, Pair, sides
from xbp.primitives.resampling import Matrix, averaging, interpolating

Result: TypeAlias = Any
"""Output and gradients, or NotImplemented."""


def output_alone(function: Callable[..., Any]) -> Callable[..., Result]:
    """An accelerator that computes the output, with the gradients of its reference.

    The reference is traced where gradients are asked for. What it adds for its own output is
    unused, and left out of the file.
    """
    reference = getattr(primitives, function.__name__).reference

    @wraps(function)
    def both(*args: Any, **options: Any) -> Result:
        y = function(*args, **options)
        if y is NotImplemented:
            return y
        return y, lambda *dy: reference(*args, **options)[1](*dy)

    return both


# --- convolution ---


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Result:
    if x.dtype != ndonnx.float32:
        return NotImplemented
    window = (stride, padding, dilation, groups)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        dx = _to_input(dy, weight, x.shape, *window) if wants_dx else None
        db = None if bias is None else ndonnx.sum(dy, axis=(0, 2, 3))
        return dx, _to_weight(x, dy, weight.shape, *window), db

    return _conv(x, weight, bias, *window), gradients


def convolve_transposed(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    output_padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Result:
    if x.dtype != ndonnx.float32:
        return NotImplemented
    window = (stride, padding, dilation, groups)

    def gradients(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
        # Of the convolution of dy, which has more windows than x where much padding was added.
        dx = _conv(dy, weight, None, *window)[:, :, : x.shape[2], : x.shape[3]]
        db = None if bias is None else ndonnx.sum(dy, axis=(0, 2, 3))
        return dx if wants_dx else None, _to_weight(dy, x, weight.shape, *window), db

    operands = [array.unwrap_spox() for array in (x, weight, bias) if array is not None]
    given: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups}
    (p, q), (more, wider) = padding, output_padding
    if more < stride[0] and wider < stride[1]:
        given |= {"pads": padding * 2, "output_padding": output_padding}
        return _made(op.conv_transpose(*operands, **given)), gradients
    # onnxruntime refuses an output padding of a stride or more
    y = _padded(_made(op.conv_transpose(*operands[:2], **given)), ((-p, more - p), (-q, wider - q)))
    return (y if bias is None else y + ndonnx.reshape(bias, (-1, 1, 1))), gradients


def _conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    operands = (array.unwrap_spox() for array in (x, weight, bias) if array is not None)
    (top, bottom), (left, right) = sides(padding)
    window: dict[str, Any] = {"strides": stride, "pads": (top, left, bottom, right)}
    if dilation != (1, 1):  # only then, as files of earlier versions have it
        window["dilations"] = dilation
    return _made(op.conv(*operands, **window, group=groups))


def _to_input(
    dy: Array,
    weight: Array,
    shape: tuple[Any, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """∂L/∂x of a convolution of x of this shape: each entry of dy adds a multiple of a kernel.

    The transposed convolution without padding, cut by the padding, and continued by zeros for
    entries of x behind the last window.
    """
    operands = (array.unwrap_spox() for array in (dy, weight))
    window: dict[str, Any] = {"strides": stride, "group": groups}
    if dilation != (1, 1):
        window["dilations"] = dilation
    frame = []
    for axis, (before, _) in enumerate(sides(padding)):
        size, kernel = dy.shape[2 + axis], weight.shape[2 + axis]
        covered = (size - 1) * stride[axis] + (kernel - 1) * dilation[axis] + 1
        frame.append((before, covered - before - shape[2 + axis]))
    (top, bottom), (left, right) = frame
    if min(bottom, right) >= 0:
        return _made(op.conv_transpose(*operands, **window, pads=(top, left, bottom, right)))
    y = _made(op.conv_transpose(*operands, **window))
    return _padded(y, ((-top, -bottom), (-left, -right)))


def _to_weight(
    x: Array,
    dy: Array,
    shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """∂L/∂W[o, c, i, j] = Σ_nrs dy[n, o, r, s] x[n, c, r·stride + i·dilation, …]: a convolution.

    Channels of x are its batch, samples its channels, dy its kernels, and stride and dilation
    change places. A last row or column, of entries behind the last window, is cut off.
    """
    _, channels, kh, kw = shape
    n, _, h, w = x.shape
    by_group = ndonnx.permute_dims(ndonnx.reshape(x, (n, groups, channels, h, w)), (2, 1, 0, 3, 4))
    images = ndonnx.reshape(by_group, (channels, groups * n, h, w))
    kernels = ndonnx.permute_dims(dy, (1, 0, 2, 3))
    dW = _conv(images, kernels, None, dilation, padding, stride, groups)
    return ndonnx.permute_dims(dW, (1, 0, 2, 3))[:, :, :kh, :kw]


# --- pooling ---


def max_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Result:
    window = {"kernel_shape": kernel_size, "strides": stride, "pads": padding * 2}
    y, places = op.max_pool(x.unwrap_spox(), **window)

    def input_gradient(dy: Array) -> Array:
        """The sums of dy at the places of the maxima; places count the entries of x."""
        zeros, flat = ndonnx.zeros(math.prod(x.shape), dtype=x.dtype), op.const([-1])
        at, share = (op.reshape(var, flat) for var in (places, dy.unwrap_spox()))
        dx = op.scatter_elements(zeros.unwrap_spox(), at, share, reduction="add")
        return ndonnx.reshape(_made(dx), x.shape)

    return _made(y), of_input(input_gradient)


def average_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)) -> Result:
    if x.dtype != ndonnx.float32:
        return NotImplemented
    window = {"kernel_shape": kernel_size, "strides": stride, "pads": padding * 2}
    y = op.average_pool(x.unwrap_spox(), **window, count_include_pad=1)

    def input_gradient(dy: Array) -> Array:
        h, w = x.shape[2:]
        mean = np.full((1, 1, *kernel_size), 1 / math.prod(kernel_size), "float32")
        single = ndonnx.reshape(dy, (-1, 1, *dy.shape[2:]))
        dx = _to_input(single, ndonnx.asarray(mean), (0, 1, h, w), stride, padding, (1, 1), 1)
        return ndonnx.reshape(dx, x.shape)

    return _made(y), of_input(input_gradient)


# --- others ---


@output_alone
def rectify(x: Array) -> Array:
    return _made(op.relu(x.unwrap_spox()))


@output_alone
def zero_pad(x: Array, *, padding: Padding) -> Array:
    return _padded(x, sides(padding))


def _padded(x: Array, padding: tuple[Pair, Pair]) -> Array:
    (top, bottom), (left, right) = padding
    pads, axes = (op.const(np.asarray(it)) for it in ((top, left, bottom, right), (2, 3)))
    return _made(op.pad(x.unwrap_spox(), pads, axes=axes))


@output_alone
def adaptive_average_pool(x: Array, *, output_size: tuple[int | None, int | None]) -> Array:
    if x.dtype != ndonnx.float32 or output_size != (1, 1):
        return _product(x, averaging(x.shape[2:], output_size))
    return _made(op.global_average_pool(x.unwrap_spox()))


@output_alone
def upsample(
    x: Array,
    *,
    size: Pair | None = None,
    scale_factor: tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> Array:
    if x.dtype != ndonnx.float32:
        return _product(x, interpolating(x.shape[2:], size, scale_factor, mode, align_corners))
    if mode == "nearest":
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if align_corners:
            how["coordinate_transformation_mode"] = "align_corners"
    to = (
        {"sizes": op.const(np.asarray(size, "int64"))}
        if scale_factor is None
        else {"scales": op.const(np.asarray(scale_factor, "float32"))}
    )
    return _made(op.resize(x.unwrap_spox(), **to, axes=(2, 3), **how))


def _product(x: Array, matrices: tuple[Matrix, Matrix]) -> Array:
    """A x Bᵀ, with zeros; so an infinity in x makes the results of other rows nan, too."""
    dense = []
    for matrix, columns in zip(matrices, x.shape[2:], strict=True):
        full = np.zeros((len(matrix), columns), x.dtype.unwrap_numpy())
        for r, entries in enumerate(matrix):
            for i, entry in entries:
                full[r, i] = entry
        dense.append(full)
    A, B = dense
    return _made(op.matmul(op.matmul(op.const(A), x.unwrap_spox()), op.const(B.T.copy())))


@output_alone
def normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axes: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> Array:
    """LayerNorm: the last axes, with a weight for each number along them."""
    last = tuple(range(x.ndim - len(axes), x.ndim))
    if not centre or weight is None or axes != last or weight.ndim != len(axes):
        return NotImplemented
    operands = (None if array is None else array.unwrap_spox() for array in (x, weight, bias))
    return _made(op.layer_normalization(*operands, axis=-len(axes), epsilon=eps)[0])


def _made(var: Any) -> Array:
    """The output of a node as an array."""
    return ndonnx.asarray(var)


@contextmanager
def without_detours() -> Iterator[None]:
    """Within the block, ndonnx builds the same ONNX graph in a tenth of the time.

    It propagates constants without onnxruntime, and makes a single node of a matrix product instead
    of a model that tests for empty operands. These are internals of ndonnx; a name that a version
    lacks is skipped, which only costs time.
    """
    details = (
        (typed, "_matmul_mitigate_zero_sized", _matmul),
        (_value_prop, "_VALUE_PROP_BACKEND", _value_prop.ValuePropBackend.REFERENCE),
    )
    with ExitStack() as stack:
        for owner, name, ours in details:
            if hasattr(owner, name):
                stack.enter_context(patch.object(owner, name, ours))
        yield


def _matmul(a: Any, b: Any) -> Any:
    return type(a)(typed.op.matmul(a._var, b._var))


registry.register(
    ndonnx.Array,
    (
        convolve,
        convolve_transposed,
        rectify,
        max_pool,
        average_pool,
        adaptive_average_pool,
        upsample,
        zero_pad,
        normalize,
    ),
)
