"""Products in reduced precision: what they are on every backend, and where they are asked for.

A product of reduced precision rounds both factors to a format, to the nearest, and is exact from
there on but for the sum, which has the precision of the arrays: that is what tensor cores compute.
Two numbers of a format have at most 11 digits each, so that their product is exact in float32. Thus
an ordinary product of rounded arrays is already the one that is asked for, with any BLAS or kernel,
and backends differ by no more than the order of a sum does.

Only products are rounded. Sums, such as the gradient of a bias, normalization, softmax, losses and
updates keep the precision of the arrays, as do the arrays between layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from xbp import registry
from xbp.arguments import described
from xbp.errors import InputError
from xbp.primitives.attention import attention
from xbp.primitives.recurrence import recurrence
from xbp.primitives.rounded import (
    rounded_affine,
    rounded_convolve,
    rounded_convolve1d,
    rounded_convolve_transposed,
    rounded_matmul,
)
from xbp.primitives.rounding import FORMATS

PRECISIONS = ("float32", *FORMATS)
"""The names that `precision` takes; "float32" leaves products as they are."""

BILINEAR: dict[str, Callable[..., Any]] = {
    "matmul": rounded_matmul,
    "affine": rounded_affine,
    "convolve": rounded_convolve,
    "convolve1d": rounded_convolve1d,
    "convolve_transposed": rounded_convolve_transposed,
}
"""What stands in for operations that are linear in each of two arguments."""

COMPOSED = (attention, recurrence)
"""Operations whose references consist of products, with other arithmetic in between."""


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Within the block, products round their factors to a format and are summed as ever.

    These are the products of all layers, forward and backward: linear, convolutional, recurrent,
    attention. A backward rounds as its forward did, wherever it is called. Everything else has the
    dtype of the arrays. The block holds for the current thread and context, and an inner one takes
    precedence.

    Parameters
    ----------
    name : {"float32", "tf32", "float16", "bfloat16"}
        The format of the factors; "float32" leaves them as they are.

    Raises
    ------
    InputError
        There is no precision of that name.

    Notes
    -----
    On numpy and other libraries without such arithmetic the numbers are those of a GPU, up to the
    order of sums, at some cost of time. A result that differs from another backend's by rounding
    may be rounded to another number when it becomes a factor.

    Examples
    --------
    >>> import numpy as np
    >>> import xbp
    >>> layer = xbp.nn.Linear(1, 1, bias=False, rng=0)
    >>> layer.load_state_dict({"weight": np.ones((1, 1), "float32")})
    >>> with xbp.precision("bfloat16"):
    ...     print(layer(np.full((1, 1), 1.005, "float32")))
    [[1.0078125]]
    """
    check_precision(name)
    with registry.using(None if name == "float32" else arithmetic_of(name)):
        yield


def check_precision(name: Any) -> str:
    """A name that `precision` takes, as it is.

    Raises
    ------
    InputError
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        shown = repr(name) if isinstance(name, str) else described(name)
        msg = f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {shown}"
        raise InputError(msg)
    return name


def current_precision() -> str:
    """The name of the innermost block of `precision`."""
    arithmetic = registry.arithmetic()
    return "float32" if arithmetic is None else arithmetic.name


@cache
def arithmetic_of(name: str) -> registry.Arithmetic:
    """The arithmetic that rounds factors to a format."""
    functions: dict[str, Callable[..., Any] | None] = {
        "chain": None,
        "chain_to_loss": None,
    }
    for operation, rounded in BILINEAR.items():
        functions[operation] = partial(rounded, name=name)
    for composed in COMPOSED:
        functions[_name(composed)] = _composed(composed, name)
    return registry.Arithmetic(name, functions)


def _name(operation: Any) -> str:
    return str(operation.name)


def _composed(operation: Any, name: str) -> Callable[..., Any]:
    """What stands in for an operation of `COMPOSED`: its reference, whose products are rounded."""

    def rounded(*arguments: Any, **options: Any) -> Any:
        with registry.using(arithmetic_of(name)):
            y, gradients = operation.reference(*arguments, **options)

        def backward(*arguments: Any, **options: Any) -> Any:
            with registry.using(arithmetic_of(name)):
                return gradients(*arguments, **options)

        return y, backward

    return rounded
