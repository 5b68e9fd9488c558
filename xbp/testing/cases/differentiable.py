"""The table of primitives that return an array and its backward.

The accelerators of a primitive are compared with its reference on each line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xbp import primitives
from xbp.backend import Array, array_namespace
from xbp.testing.cases.arrays import ends, masked, normal, sparse, wide
from xbp.testing.cases.primitives import WINDOWS, Shape
from xbp.testing.cases.recurrent import RECURRENCES

SIDE_BY_SIDE: list[tuple[Shape, dict[str, tuple[int, int]]]] = [
    # windows without overlap or padding; the second kind does not cover the whole image
    ((18, 6, 8, 8), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
    ((33, 5, 7, 11), {"kernel": (2, 3), "stride": (2, 3), "padding": (0, 0)}),
]


CONVOLUTIONS = [
    # shapes of images and weight, stride, padding
    ((5, 2, 8, 7), (3, 2, 3, 2), (2, 1), (1, 1)),
    ((18, 1, 13, 12), (6, 1, 5, 5), (1, 1), (2, 2)),
    ((33, 6, 9, 9), (17, 6, 5, 5), (1, 1), (0, 0)),
    ((4, 3, 5, 5), (2, 3, 1, 1), (1, 1), (0, 0)),
    ((2, 2, 9, 8), (2, 2, 2, 2), (3, 3), (0, 0)),
    ((3, 16, 6, 7), (16, 16, 3, 3), (1, 1), (1, 1)),
]
BLOCKS: list[list[tuple[str, dict[str, Any]]]] = [
    # operations that follow a convolution
    [("rectify", {}), ("max_pool", {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)})],
    [("rectify", {})],
    [("max_pool", {"kernel_size": (3, 2), "stride": (3, 2), "padding": (0, 0)})],
]
LENET: list[tuple[str, dict[str, Any]]] = [
    ("convolve", {"stride": (1, 1), "padding": (1, 1)}),
    *BLOCKS[0],
    ("flatten", {}),
    ("affine", {}),
    ("rectify", {}),
    ("affine", {}),
    ("tanh", {}),
]


def _operation(operation: Callable[..., Any], x: Array, *parameters: Array, **options: Any) -> Any:
    """An operation, and its gradients as a backward."""
    y, gradients = operation(x, *parameters, **options)
    return y, lambda dy: _given(gradients(dy))


def _of_transposed(operation: Callable[..., Any], x: Array, *, transposed: bool) -> Any:
    """An operation of x, or of a transposed view of it."""
    if not transposed:
        return _operation(operation, x)
    y, gradients = operation(_transposed(x))
    return y, lambda dy: _transposed(_given(gradients(dy)))


def _pool(operation: Callable[..., Any], x: Array, kernel: Any, **window: Any) -> Any:
    return _operation(operation, x, kernel_size=kernel, **window)


def _chain(operations: Sequence[tuple[str, dict[str, Any]]], x: Array, *parameters: Array) -> Any:
    """A chain, and its gradients as a backward.

    `parameters` are weight and bias of each operation that has parameters.
    """
    rest, own = list(parameters), []
    for name, _ in operations:
        own.append([rest.pop(0), rest.pop(0)] if name in ("affine", "convolve") else [])
    steps = [(getattr(primitives, name), tuple(given.items())) for name, given in operations]
    y, gradients = primitives.chain(x, steps, own)

    def backward(dy: Array) -> Any:
        dx, *found = gradients(dy)  # in reverse order of operations
        pairs = [found[i : i + 2] for i in range(0, len(found), 2)]
        return _given((dx, *(gradient for pair in reversed(pairs) for gradient in pair)))

    return y, backward


def _given(gradients: tuple[Array | None, ...]) -> Any:
    """The gradients without those of absent biases; a single one alone."""
    found = tuple(gradient for gradient in gradients if gradient is not None)
    return found if len(found) > 1 else found[0]


def _batch_normalize(x: Array, weight: Array, bias: Array, *, eps: float, kept: bool) -> Any:
    """Batch normalization, with constants as running statistics if `kept`."""
    xp, mean, variance = array_namespace(x), None, None
    if kept:
        mean, variance = (xp.full_like(weight, value) for value in (0.3, 1.7))
    y, gradients = primitives.batch_normalize(x, weight, bias, mean, variance, eps=eps)
    return y, lambda dy: gradients(dy)[:3]


def _batch_normalize_pooled(x: Array, weight: Array, bias: Array, *, eps: float) -> Any:
    """Batch normalization over three processes with equal data, so that moments do not change."""

    def sum_(array: Array) -> None:
        array *= 3

    y, gradients = primitives.batch_normalize(x, weight, bias, None, None, eps=eps, sum_=sum_)
    return y, lambda dy: gradients(dy)[:3]


def _normalized(transposed: bool, x: Array, weight: Array, bias: Array) -> Any:
    """Batch normalization, then ReLU, without the moments; of x, or of a transposed view of it."""
    operations = [(primitives.batch_normalize, (("eps", 0.1),)), (primitives.rectify, ())]
    parameters = [(weight, bias, None, None), ()]
    y, gradients = primitives.chain(_transposed(x) if transposed else x, operations, parameters)

    def backward(dy: Array) -> Any:
        dx, *others = gradients(dy)[:3]
        return (_transposed(dx) if transposed else dx, *others)

    return y, backward


def _transposed(x: Array) -> Array:
    return array_namespace(x).permute_dims(x, tuple(reversed(range(x.ndim))))


def _attention(q: Array, k: Array, v: Array, *ignored: Array, causal: bool) -> Any:
    """Attention, with None as the gradient of a boolean mask."""
    y, backward = primitives.attention(q, k, v, *ignored, causal=causal)
    return y, lambda dy: (*backward(dy), *(None for _ in ignored))


DIFFERENTIABLE: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    # name, a function of arrays that returns its backward, the arrays or their shapes
    *(
        (name, partial(_of_transposed, getattr(primitives, name), transposed=transposed), (x,))
        for name in ("rectify", "tanh")
        for transposed in (False, True)
        for x in ((7, 9), sparse(5, 2, 67, 59), (257, 129), ends(5, 6), ends(257, 129))
    ),
    *(
        (
            name,
            partial(_of_transposed, partial(getattr(primitives, name), **how), transposed=axes),
            (x,),
        )
        for name, how in (
            ("logistic", {}),
            ("silu", {}),
            ("gelu", {}),
            ("gelu", {"approximate": "tanh"}),
        )
        for axes in (False, True)
        for x in ((7, 9), 3 * normal(37, 29), wide(5, 6), ends(5, 6), ends(37, 29))
    ),
    *(
        ("softmax", partial(_operation, primitives.softmax, axis=axis), (x,))
        for x in ((7, 9), (4, 3, 17), wide(5, 6), ends(5, 6), ends(5, 4, 33), masked(5, 40))
        for axis in (-1, 1, 0)
    ),
    *(
        ("flatten", partial(_of_transposed, primitives.flatten, transposed=transposed), (shape,))
        for shape in ((3, 2), (37, 3, 5, 4), (2, 1, 1, 7))
        for transposed in (False, True)
    ),
    *(
        ("affine", partial(_operation, primitives.affine), (x, (out, x[-1]), *bias))
        for x, out in (((5, 40), 3), ((37, 90), 21), ((64, 300), 150), ((3, 7, 33), 65))
        for bias in ((), ((out,),))
    ),
    ("affine", partial(_operation, primitives.affine), (ends(37, 90), (21, 90))),
    *(
        ("normalize", partial(primitives.normalize, axes=axes, eps=0.1, centre=centre), (x, w, w))
        for x, w, axes in (
            ((4, 3, 5), (5,), (2,)),
            ((4, 3, 5), (3, 5), (1, 2)),
            ((2, 2, 3, 5), (2, 3, 1), (2, 3)),
            ((33, 130), (130,), (1,)),
            (ends(5, 3, 6), (6,), (2,)),
            (ends(5, 3, 37), (37,), (2,)),
        )
        for centre in (True, False)
    ),
    *(
        ("batch_normalize", partial(_batch_normalize, eps=0.1, kept=kept), (x, (3,), (3,)))
        for x in ((5, 3), (4, 3, 5), (2, 3, 4, 5), (33, 3, 7, 9), ends(5, 3, 6))
        for kept in (False, True)
    ),
    ("batch_normalize", partial(_batch_normalize_pooled, eps=0.1), ((4, 3, 5), (3,), (3,))),
    *(
        (
            "convolve",
            partial(_operation, primitives.convolve, padding=(1, 1)),
            (ends(*x), (3, 2, 3, 3)),
        )
        for x in ((5, 2, 7, 6), (18, 2, 7, 6))
    ),
    *(
        (
            "convolve",
            partial(_operation, primitives.convolve, stride=stride, padding=padding),
            (x, w, *bias),
        )
        for x, w, stride, padding in CONVOLUTIONS
        for bias in ((), ((w[0],),))
    ),
    *(
        ("convolve", partial(_operation, primitives.convolve, **options), (x, w, (w[0],)))
        for x, w, options in (
            ((5, 2, 9, 8), (3, 2, 3, 2), {"dilation": (2, 3), "padding": (1, 2)}),
            ((33, 2, 7, 6), (3, 2, 3, 3), {"dilation": (2, 1), "padding": (1, 2)}),
            ((18, 6, 7, 6), (4, 3, 3, 3), {"groups": 2, "stride": (2, 1)}),
            ((33, 3, 7, 6), (3, 1, 3, 3), {"groups": 3, "padding": (1, 1)}),
            ((2, 6, 3, 4), (6, 1, 2, 2), {"groups": 6}),
            ((4, 2, 5, 6), (3, 2, 2, 4), {"padding": ((0, 1), (1, 2))}),
            ((4, 9, 5, 6), (17, 9, 3, 2), {"stride": (2, 1), "padding": (1, 1)}),  # many channels
            ((3, 16, 5, 6), (32, 8, 3, 3), {"groups": 2, "dilation": (1, 2), "padding": (1, 2)}),
        )
    ),
    *(
        (name, partial(_operation, getattr(primitives, name), name="bfloat16", **options), arrays)
        for name, options, arrays in (
            ("rounded_affine", {}, ((5, 40), (3, 40))),
            ("rounded_convolve", {"stride": (2, 1)}, ((3, 8, 5, 6), (16, 8, 3, 2), (16,))),
            ("rounded_convolve_transposed", {}, ((5, 2, 4, 3), (2, 3, 3, 2), (3,))),
        )
    ),
    *(
        (
            "convolve_transposed",
            partial(_operation, primitives.convolve_transposed, **options),
            (x, w, (out,)),
        )
        for x, w, out, options in (
            ((5, 2, 4, 3), (2, 3, 3, 2), 3, {"stride": (2, 1), "padding": (1, 0)}),
            (
                (18, 4, 3, 4),
                (4, 2, 2, 3),
                4,
                {"groups": 2, "output_padding": (1, 1), "stride": (2, 2)},
            ),
            ((4, 2, 3, 4), (2, 1, 2, 2), 1, {"dilation": (3, 2), "output_padding": (2, 1)}),
        )
    ),
    *(
        ("convolve1d", partial(_operation, primitives.convolve1d, **options), (x, w, (w[0],)))
        for x, w, options in (
            ((5, 2, 9), (3, 2, 4), {"stride": (1, 2), "padding": (0, 1)}),
            ((18, 4, 7), (6, 2, 3), {"groups": 2, "dilation": (1, 2)}),
        )
    ),
    *(
        (
            name,
            partial(_pool, getattr(primitives, name), kernel=(1, 3), stride=stride, padding=p),
            (x,),
        )
        for name in ("max_pool1d", "average_pool1d")
        for stride, p in (((1, 3), (0, 0)), ((1, 2), (0, 1)))
        for x in (normal(5, 2, 9), sparse(18, 3, 7))
    ),
    *(
        ("zero_pad", partial(_operation, primitives.zero_pad, padding=padding), ((3, 2, 4, 5),))
        for padding in ((1, 2), ((1, 0), (-1, 3)))
    ),
    *(
        (
            "adaptive_average_pool",
            partial(_operation, primitives.adaptive_average_pool, output_size=size),
            (x,),
        )
        for x, size in (((5, 2, 5, 7), (3, None)), ((33, 3, 6, 6), (1, 1)))
    ),
    *(
        ("upsample", partial(_operation, primitives.upsample, **options), (x,))
        for x in ((5, 2, 4, 3), (18, 1, 5, 6))
        for options in (
            {"scale_factor": (2.0, 2.0)},
            {"size": (7, 5), "mode": "bilinear"},
            {"size": (3, 8), "mode": "bilinear", "align_corners": True},
        )
    ),
    *(
        ("attention", partial(_attention, causal=causal), (q, (2, 3, 6, 4), (2, 3, 6, 5), *ignored))
        for q in ((2, 3, 5, 4), (2, 3, 1, 4), ends(2, 3, 7, 4))
        for causal in (False, True)
        for ignored in ((), (np.asarray([[0, 0, 1, 0, 1, 1], [1] * 6], bool),))
    ),
    *(
        ("embedding", primitives.embedding, (tokens, (7, 3)))
        for tokens in (np.arange(1, 7), np.arange(24).reshape(2, 3, 4) ** 2 % 9 - 1)
    ),
    *(
        (name, partial(_pool, getattr(primitives, name), **w), (x,))
        for name in ("max_pool", "average_pool")
        for shape, w in (*WINDOWS, *SIDE_BY_SIDE)
        for x in (normal(*shape), sparse(*shape), *((ends(*shape),) if shape[0] > 1 else ()))
        if 2 * max(w["padding"]) <= min(w["kernel"])
    ),
    *(
        (
            "chain",
            partial(_chain, [("convolve", {"stride": stride, "padding": padding}), *block]),
            (x, w, (w[0],)),
        )
        for x, w, stride, padding in CONVOLUTIONS
        for block in BLOCKS
    ),
    *(
        (
            "chain",
            partial(_chain, [("convolve", {"padding": (1, 0), **options}), *BLOCKS[0]]),
            (x, (6, 2, 3, 3), (6,)),
        )
        for x, options in (
            ((33, 4, 7, 6), {"groups": 2}),
            ((5, 2, 9, 8), {"dilation": (2, 1)}),
        )
    ),
    *(
        ("chain", partial(_chain, [("affine", {}), ("rectify", {})]), (x, (out, x[-1]), (out,)))
        for x, out in (((5, 40), 3), ((37, 90), 21), ((64, 300), 150), ((3, 7, 33), 65))
    ),
    *(
        ("chain", partial(_normalized, transposed), (x, (channels,), (channels,)))
        for x, channels, transposed in (
            ((5, 3, 4, 5), 3, False),
            ((5, 3, 4, 5), 4, True),
            ((33, 3, 7, 9), 3, False),
            ((33, 3, 7, 9), 7, True),
            (ends(40, 3, 6), 3, False),
            (ends(40, 3, 6), 3, True),
        )
    ),
    (
        "chain",
        partial(_chain, LENET),
        ((17, 2, 6, 6), (3, 2, 3, 3), (3,), (21, 27), (21,), (4, 21), (4,)),
    ),
    *RECURRENCES,
]
