"""Primitives as single ONNX nodes, in place of the many nodes of their references.

They are accelerators for ndonnx's arrays, without a backward, which inference does not need.
onnxruntime supports convolution and average pooling in float32 only, so other dtypes are left to
the references.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias
from unittest.mock import patch

import ndonnx
import ndonnx._typed_array.onnx as typed
import numpy as np
import spox.opset.ai.onnx.v21 as op
from spox import _value_prop

from xbp import registry
from xbp.backend import Array
from xbp.primitives.images import Padding, Pair, sides
from xbp.primitives.resampling import Matrix, averaging, interpolating

Result: TypeAlias = Any
"""Output and backward, or NotImplemented."""


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
    operands = (array.unwrap_spox() for array in (x, weight, bias) if array is not None)
    (top, bottom), (left, right) = sides(padding)
    window: dict[str, Any] = {"strides": stride, "pads": (top, left, bottom, right)}
    if dilation != (1, 1):  # only then, as files of earlier versions have it
        window["dilations"] = dilation
    return _made(op.conv(*operands, **window, group=groups))


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
    operands = [array.unwrap_spox() for array in (x, weight, bias) if array is not None]
    window = {"strides": stride, "dilations": dilation, "group": groups}
    (p, q), (more, wider) = padding, output_padding
    if more < stride[0] and wider < stride[1]:
        given = {"pads": padding * 2, "output_padding": output_padding}
        return _made(op.conv_transpose(*operands, **window, **given))
    # onnxruntime refuses an output padding of a stride or more
    y = _made(op.conv_transpose(*operands[:2], **window))[0]
    y, _ = zero_pad(y, padding=((-p, more - p), (-q, wider - q)))
    return (y if bias is None else y + ndonnx.reshape(bias, (-1, 1, 1))), _no_backward


def rectify(x: Array) -> Result:
    return _made(op.relu(x.unwrap_spox()))


def max_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Result:
    window = {"kernel_shape": kernel_size, "strides": stride, "pads": padding * 2}
    return _made(op.max_pool(x.unwrap_spox(), **window)[0])


def average_pool(x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair) -> Result:
    if x.dtype != ndonnx.float32:
        return NotImplemented
    window = {"kernel_shape": kernel_size, "strides": stride, "pads": padding * 2}
    return _made(op.average_pool(x.unwrap_spox(), **window, count_include_pad=1))


def zero_pad(x: Array, *, padding: Padding) -> Result:
    (top, bottom), (left, right) = sides(padding)
    pads, axes = (op.const(np.asarray(it)) for it in ((top, left, bottom, right), (2, 3)))
    return _made(op.pad(x.unwrap_spox(), pads, axes=axes))


def adaptive_average_pool(x: Array, *, output_size: tuple[int | None, int | None]) -> Result:
    if x.dtype != ndonnx.float32 or output_size != (1, 1):
        return _product(x, averaging(x.shape[2:], output_size))
    return _made(op.global_average_pool(x.unwrap_spox()))


def upsample(
    x: Array,
    *,
    size: Pair | None = None,
    scale_factor: tuple[float, float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
) -> Result:
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


def _product(x: Array, matrices: tuple[Matrix, Matrix]) -> Result:
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


def normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axes: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> Result:
    """LayerNorm: the last axes, with a weight for each number along them."""
    last = tuple(range(x.ndim - len(axes), x.ndim))
    if not centre or weight is None or axes != last or weight.ndim != len(axes):
        return NotImplemented
    operands = (None if array is None else array.unwrap_spox() for array in (x, weight, bias))
    return _made(op.layer_normalization(*operands, axis=-len(axes), epsilon=eps)[0])


def _made(var: Any) -> Result:
    """The output of a node as an array, with a backward that refuses."""
    return ndonnx.asarray(var), _no_backward


def _no_backward(*_: Any) -> Any:
    msg = "an ONNX graph has no backward"
    raise NotImplementedError(msg)


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
