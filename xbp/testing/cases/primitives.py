"""The table of primitives that return arrays: functions, and the arrays or their shapes.

Those that return an array and its backward are in `differentiable`. The accelerators of a
primitive are compared with its reference on each line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from xbp import primitives
from xbp.backend import Array, array_namespace
from xbp.primitives.rounding import FORMATS
from xbp.testing.cases.arrays import ends, masked, normal, scattered, wide, words
from xbp.testing.cases.to_loss import TO_LOSS

Shape: TypeAlias = "tuple[int, ...]"

WINDOWS: list[tuple[Shape, dict[str, tuple[int, int]]]] = [
    # shape of the images, and the window
    ((2, 3, 7, 6), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 2)}),
    ((17, 1, 9, 9), {"kernel": (5, 5), "stride": (1, 1), "padding": (2, 2)}),
    ((2, 2, 4, 5), {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}),
    ((1, 2, 9, 8), {"kernel": (2, 2), "stride": (3, 3), "padding": (0, 0)}),
]


def _unfolded(shape: Shape, kernel: Any, stride: Any, padding: Any) -> Shape:
    """The shape of the result of `unfold_rows`."""
    n, c, height, width = shape
    columns = primitives.output_size((height, width), kernel, stride, padding)[1]
    return height + 2 * padding[0], c, kernel[1], columns, n


def _philox(*counter: Array) -> Array:
    return array_namespace(counter[0]).stack(primitives.philox4x32(counter, (1, 2**32 - 1)))


def _bits(like: Array) -> Array:
    return primitives.random_bits(like, (5, 7, 3), key=(3, 2**31), counter=(1, 2**32 - 1, 7))


def _updated(how: str, update: Callable[..., Any], number: Any, p: Array, *others: Array) -> Array:
    """`p` after `update` changed it in place."""
    if how == "scattered":  # except `p`
        others = tuple(scattered(array) for array in others)
    update(number, p, *others)
    return p


def _add_scaled(factor: float, p: Array, g: Array) -> None:
    primitives.add_scaled(p, factor, g)


def _plus_scaled(g: Array, p: Array) -> Array:
    made: Array = primitives.plus_scaled(g, 0.3, p)
    return made


def _accumulate(numbers: tuple[float, float], total: Array, g: Array) -> None:
    beta, share = numbers
    primitives.accumulate(total, beta, g, share)


def _rescale(factor: float, p: Array) -> None:
    primitives.rescale(p, factor)


def _average(beta: float, mean: Array, *factors: Array) -> None:
    primitives.average(mean, beta, *factors)


def _normalized_step(numbers: tuple[float, ...], p: Array, m: Array, v: Array) -> None:
    rate, scale, eps = numbers
    primitives.normalized_step(p, rate, m, scale, v, eps)


def _adaptive_step(numbers: tuple[float, ...], p: Array, m: Array, v: Array, g: Array) -> Array:
    primitives.adaptive_step(p, m, v, g, *numbers)
    return _joined((p, m, v))


def _row_appended(index: Array, *arrays: Array) -> Array:
    xp, half = array_namespace(index), len(arrays) // 2
    index, *tables = (xp.asarray(array, copy=True) for array in (index, *arrays[:half]))
    primitives.append_row(index, *tables, *arrays[half:])
    return _joined((*tables, xp.astype(index, tables[0].dtype)))


def _tracked(count: Array, *arrays: Array) -> Array:
    mean, variance = arrays[:2]
    primitives.track(mean, variance, count, *arrays[2:], share=0.25, correction=1.5)
    return _joined((mean, variance, array_namespace(count).astype(count, mean.dtype)))


def _rounded(name: str, x: Array) -> Array:
    return primitives.round_to(x, name)


def _row_appended_meanwhile(index: Array, *arrays: Array) -> Array:
    xp, half = array_namespace(index), len(arrays) // 2
    index, *tables = (xp.asarray(array, copy=True) for array in (index, *arrays[:half]))
    other = xp.asarray(arrays[0], copy=True)
    with primitives.appending(index, *tables, *arrays[half:]):
        primitives.add_scaled(other, 0.5, arrays[0])
    return _joined((*tables, other, xp.astype(index, tables[0].dtype)))


def _row_taken(index: Array, *tables: Array) -> Array:
    return _joined(primitives.take_row(index, *tables))


def _gathered(order: Array, start: Array, *arrays: Array) -> Array:
    return _joined(primitives.gather(order, start, (1, 8, 3), *arrays))


def _step_taken(index: Array, order: Array, *arrays: Array) -> Array:
    rows, batch = primitives.take_step(index, order, (1, 8, 3), arrays[:2], arrays[2:])
    xp = array_namespace(index)
    return _joined((xp.astype(rows[0], rows[1].dtype), rows[1], *batch))


def _joined(arrays: tuple[Array, ...]) -> Array:
    """All their numbers, in one row."""
    xp = array_namespace(arrays[0])
    return xp.concat([xp.reshape(array, (-1,)) for array in arrays])


PRIMITIVES: list[tuple[str, Callable[..., Array], tuple[Any, ...]]] = [
    # name, a function of arrays, the arrays or their shapes
    *(("unfold_rows", partial(primitives.unfold_rows, **w), (shape,)) for shape, w in WINDOWS),
    *(
        ("fold_rows", partial(primitives.fold_rows, shape=shape, **w), (_unfolded(shape, **w),))
        for shape, w in WINDOWS
    ),
    ("pad2d", lambda x: primitives.pad2d(x, (1, 2), -0.5), ((2, 3, 4, 5),)),
    ("unpad2d", lambda x: primitives.unpad2d(x, (1, 2)), ((2, 3, 4, 5),)),
    *(("track", _tracked, (np.asarray(3), *((size,),) * 4)) for size in (3, 300)),
    *(("add", primitives.add, (shape, shape)) for shape in ((7, 9), (2, 3, 4, 5), (257, 129))),
    ("bincount", partial(primitives.bincount, length=9), (np.arange(50) ** 2 % 13 - 1,)),
    *(
        (name, getattr(primitives, name), (x,))
        for name in ("erf", "erfc", "sigmoid")
        for x in ((7, 9), 3 * normal(64), wide(5, 6), ends(5, 6), 3 * normal(37, 29), ends(37, 29))
    ),
    *(
        ("cross_entropy", partial(primitives.cross_entropy, **options), (z, t))
        for z, options in ((normal(5, 3), {"scale": 0.2}), (wide(33, 10), {"scale": 1.0}))
        for t in (np.arange(len(z)) % z.shape[1], normal(*z.shape) ** 2)
    ),
    *(
        ("cross_entropy", partial(primitives.cross_entropy, scale=0.5), (z, t))
        for z in (masked(6, 4), ends(6, 4), masked(5, 40))
        for t in (np.arange(len(z)) % z.shape[1], np.eye(*z.shape))
    ),
    ("plus_scaled", _plus_scaled, (normal(7, 9), ends(7, 9))),
    ("plus_scaled", _plus_scaled, (normal(257, 129), normal(257, 129, seed=2))),
    *(
        (name, partial(_updated, "", *numbers), (normal(*shape, seed=4), *others))
        for shape in ((7, 9), (257, 129))
        for name, numbers, others in (
            ("add_scaled", (_add_scaled, 0.3), (ends(*shape),)),
            ("accumulate", (_accumulate, (0.9, 1.0)), (ends(*shape),)),
            ("average", (_average, 0.9), (ends(*shape),)),
            ("average", (_average, 0.7), (ends(*shape), ends(*shape))),
            (
                "normalized_step",
                (_normalized_step, (0.1, 1.5, 1e-3)),
                (ends(*shape), ends(*shape) ** 2),
            ),
        )
    ),
    *(
        (name, partial(_updated, how, *numbers), (shape, *others))
        for shape in ((7, 9), (257, 129))
        for how in ("", "scattered")
        for name, numbers, others in (
            ("add_scaled", (_add_scaled, 0.3), (normal(*shape, seed=2),)),
            ("accumulate", (_accumulate, (0.9, 1.0)), (normal(*shape, seed=2),)),
            ("accumulate", (_accumulate, (0.7, 0.25)), (normal(*shape, seed=2),)),
            ("rescale", (_rescale, 0.7), ()),
            ("average", (_average, 0.9), (normal(*shape, seed=2),)),
            ("average", (_average, 0.7), (normal(*shape, seed=2), normal(*shape, seed=3))),
            (
                "normalized_step",
                (_normalized_step, (0.1, 1.5, 1e-3)),
                (normal(*shape, seed=2), normal(*shape, seed=3) ** 2),
            ),
        )
    ),
    *(
        (
            "adaptive_step",
            partial(_adaptive_step, (0.9, 0.99, 0.1, 1.5, 1e-3)),
            (shape, shape, normal(*shape, seed=3) ** 2, last),
        )
        for shape in ((7, 9), (257, 129))
        for last in (normal(*shape, seed=4), ends(*shape))
    ),
    *(
        ("matmul", primitives.matmul, (a, (a[-1], n)))
        for a, n in (((7, 9), 5), ((3, 4, 5), 2), ((129, 70), 90), ((2, 600), 300))
    ),
    *(("matmul", primitives.matmul, (ends(m, 70), (70, 90))) for m in (5, 129)),
    *(
        ("round_to", partial(_rounded, name), (x,))
        for name in FORMATS
        for x in ((7, 9), wide(5, 6), ends(37, 29))
    ),
    *(
        ("rounded_matmul", partial(primitives.rounded_matmul, name=name), shapes)
        for name in ("float16", "bfloat16")
        for shapes in (((7, 9), (9, 5)), ((2, 3, 5, 8), (2, 3, 8, 4)))
    ),
    *(
        ("scatter_add", partial(primitives.scatter_add, length=length), (values, index))
        for values, length in ((normal(50, 3), 9), (normal(7, 1), 2), (ends(33, 5), 40))
        for index in (np.arange(len(values)) ** 2 % 13 - 1, np.ones(len(values), np.int64))
    ),
    *(
        (name, function, (*numbers, normal(7, 5), normal(7, 3, 4)))
        for name, function, numbers in (
            ("take_row", _row_taken, (np.asarray([6]),)),
            ("gather", _gathered, (np.arange(12) * 5 % 7, np.asarray(4))),
        )
    ),
    (
        "take_step",
        _step_taken,
        (
            *(np.asarray([2]), np.arange(12) * 5 % 7, np.asarray([[0, 5], [1, 6], [4, 7]])),
            *(normal(3, 6), normal(7, 5), normal(7, 2, 3, 4)),
        ),
    ),
    (
        "append_row",
        _row_appended,
        (np.asarray([2]), normal(5, 3), normal(4), normal(3, seed=2), np.asarray(0.5)),
    ),
    (
        "appending",
        _row_appended_meanwhile,
        (np.asarray([2]), normal(5, 3), normal(4), normal(3, seed=2), np.asarray(0.5)),
    ),
    *TO_LOSS,
    ("philox4x32", _philox, tuple(words(4, 33))),
    ("random_bits", _bits, ((2,),)),
]
