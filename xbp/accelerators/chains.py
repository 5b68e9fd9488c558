"""Fusion: neighbouring operations of a chain in one pass of a kernel over memory.

ReLU and max pooling after a convolution are best done while its entries are in registers, since the
image in between is the largest array of a convolutional network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

from xbp.primitives.chain import Arrays, Operation, Pass
from xbp.primitives.convolution import convolve
from xbp.primitives.elementwise import rectify
from xbp.primitives.images import Pair
from xbp.primitives.normalization import batch_normalize
from xbp.primitives.pooling import max_pool
from xbp.primitives.product import affine

Function: TypeAlias = Callable[..., Any]
Match: TypeAlias = "tuple[int, dict[str, Any]] | None"
"""How many operations, from the first on, are one pass, and the options of its function."""
Fusions: TypeAlias = "Mapping[Callable[[Sequence[Operation]], Match], Function]"
PLANS = 256
"""The number of chains whose plans are cached."""


class Step(NamedTuple):
    """One pass: `function` with `options` does several operations, only the first with parameters.

    If it declines a call, the `singles` do one operation each.
    """

    function: Function
    options: Mapping[str, Any]
    singles: tuple[tuple[Any, Mapping[str, Any]], ...]


def accelerated(fusions: Fusions) -> Function:
    """The accelerator of the primitive `chain` by the given fusions.

    Parameters
    ----------
    fusions : mapping
        From a function that finds operations to fuse, such as `convolution_block`, to the fused
        operation: it takes x, the first operation's parameters and the options found, returns what
        an operation returns, and may decline a call with ``NotImplemented``.
    """
    planned = lru_cache(PLANS)(partial(plan, fusions))

    def chain(
        x: Any, operations: tuple[Operation, ...], parameters: Sequence[Arrays]
    ) -> Iterator[Pass]:
        """See `xbp.primitives.chain`."""
        try:
            steps = planned(operations)
        except TypeError:  # an unhashable option
            steps = plan(fusions, operations)
        start = 0
        for function, options, singles in steps:
            length = len(singles)
            if length > 1:
                singles[0][0].check(x, parameters[start])
            done = function(x, *parameters[start], **options)
            if done is not NotImplemented:
                x = done[0]
                yield (*done, length)
                del done  # frees memory for the next pass
            else:
                for (operation, given), own in zip(singles, parameters[start:], strict=False):
                    done = operation(x, *own, **given)
                    x = done[0]
                    yield (*done, 1)
                    del done
            start += length

    return chain


def plan(fusions: Fusions, operations: Sequence[Operation]) -> tuple[Step, ...]:
    """The passes of a chain."""
    steps, index = [], 0
    while index < len(operations):
        rest = operations[index:]
        function, length, options = rest[0][0], 1, dict(rest[0][1])
        for match, fused in fusions.items():
            found = match(rest)
            if found is not None:
                function, (length, options) = fused, found
        singles = tuple((operation, dict(given)) for operation, given in rest[:length])
        steps.append(Step(function, options, singles))
        index += length
    return tuple(steps)


def convolution_block(operations: Sequence[Operation]) -> Match:
    """A convolution, then optionally ReLU, then optionally non-overlapping max pooling."""
    (first, options), *after = operations
    if first is not convolve:
        return None
    relu = bool(after) and after[0][0] is rectify
    pool = _side_by_side(after[relu:])
    length = 1 + relu + (pool != (1, 1))
    return None if length == 1 else (length, {**dict(options), "relu": relu, "pool": pool})


def rectified_affine(operations: Sequence[Operation]) -> Match:
    """A linear layer, then ReLU."""
    if len(operations) > 1 and operations[0][0] is affine and operations[1][0] is rectify:
        return 2, {"relu": True}
    return None


def rectified_batch_norm(operations: Sequence[Operation]) -> Match:
    """A batch normalization, then ReLU."""
    (first, options), *after = operations
    if first is batch_normalize and after and after[0][0] is rectify:
        return 2, {**dict(options), "relu": True}
    return None


def _side_by_side(operations: Sequence[Operation]) -> Pair:
    """The window of a leading max pooling without overlap and padding; else (1, 1)."""
    if operations and operations[0][0] is max_pool:
        window = dict(operations[0][1])
        if window["stride"] == window["kernel_size"] and window["padding"] == (0, 0):
            size: Pair = window["kernel_size"]
            return size
    return (1, 1)
