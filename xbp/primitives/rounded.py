"""Operations whose products have rounded factors, one for each that is linear in x and its weight.

A product of two numbers of a format is exact in float32, so that an ordinary product of rounded
arrays is the one that is asked for: the references round, and multiply as ever. An accelerator may
store rounded numbers in 16 bits, and multiply those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from xbp import registry
from xbp.backend import Array, array_namespace
from xbp.primitives.convolution import convolve, convolve_transposed
from xbp.primitives.dispatch import primitive
from xbp.primitives.product import affine, matmul, rows_of
from xbp.primitives.rounding import round_to
from xbp.primitives.signals import of_one_row


@cache
def of_rounded(name: str) -> registry.Arithmetic:
    """The arithmetic for factors that have been rounded to a format: any product will do."""
    return registry.Arithmetic(name, {})


@primitive
def rounded_matmul(a: Array, b: Array, *, name: str) -> Array:
    """The product of a and b, both rounded to the format `name`; see `matmul` and `round_to`."""
    with registry.using(of_rounded(name)):
        return matmul(round_to(a, name), round_to(b, name))


def _bilinear(operation: Callable[..., Any], axis: int) -> Callable[..., Any]:
    """An operation whose three products have rounded factors if its arguments are rounded.

    The gradient of the bias, whose axis in y is `axis`, is a sum, and so is not rounded.
    """

    def rounded(
        x: Array, weight: Array, bias: Array | None = None, *, name: str, **options: Any
    ) -> Any:
        with registry.using(of_rounded(name)):
            y, gradients = operation(round_to(x, name), round_to(weight, name), bias, **options)
        has_bias = bias is not None

        def backward(dy: Array, wants_dx: bool = True) -> tuple[Array | None, Array, Array | None]:
            with registry.using(of_rounded(name)):
                dx, dweight, dbias = gradients(round_to(dy, name), wants_dx)
            return dx, dweight, sum_but_along(axis, dy) if has_bias else dbias

        return y, backward

    of = str(operation.name)  # type: ignore[attr-defined]
    rounded.__name__ = f"rounded_{of}"
    rounded.__doc__ = f"`{of}` of x and a weight rounded to the format `name`, and of dy as well."
    return primitive(rounded)


rounded_affine = _bilinear(affine, -1)
rounded_convolve = _bilinear(convolve, 1)
rounded_convolve_transposed = _bilinear(convolve_transposed, 1)


def rounded_convolve1d(
    x: Array, weight: Array, bias: Array | None = None, *, name: str, **window: Any
) -> Any:
    """`rounded_convolve` of images of one row."""
    return of_one_row(rounded_convolve, x, weight, bias, name=name, **window)


def sum_but_along(axis: int, array: Array) -> Array:
    """The sums over all axes but one, which is the last one or has a number from 0 on."""
    xp = array_namespace(array)
    if axis == -1:
        return xp.sum(rows_of(xp, array), axis=0)
    return xp.sum(array, axis=tuple(i for i in range(array.ndim) if i != axis))
