"""Fusion: neighbouring operations of a chain in one pass of a kernel over memory.

ReLU and max pooling after a convolution are best done while its entries are in registers, since the
image in between is the largest array of a convolutional network. Small linear layers are best
done all at once, since a call costs more than their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain as _chain
from typing import Any, NamedTuple, TypeAlias

from xbp.primitives.chain import Arrays, Operation, Pass
from xbp.primitives.convolution import convolve
from xbp.primitives.elementwise import gelu, logistic, rectify, silu, tanh
from xbp.primitives.images import Pair
from xbp.primitives.normalization import batch_normalize
from xbp.primitives.pooling import max_pool
from xbp.primitives.product import affine

chained = _chain.from_iterable
Function: TypeAlias = Callable[..., Any]
Match: TypeAlias = "tuple[int, dict[str, Any]] | None"
"""How many operations, from the first on, are one pass, and the options of its function."""
Fusion: TypeAlias = "tuple[Callable[[Sequence[Operation]], Match], Function]"
Fusions: TypeAlias = "Mapping[Callable[[Sequence[Operation]], Match], Function]"
MOST_DENSE = 16
"""Linear layers in one pass."""
AFTER_AFFINE = (rectify, tanh, logistic)
"""Activations whose slope is known from their value."""
ACTIVATIONS = (*AFTER_AFFINE, silu, gelu)
"""All elementwise operations."""
PLANS = 256
"""The number of chains whose plans are cached."""


class Step(NamedTuple):
    """One pass: `function` with `options` does the first `length` operations of a rest of a chain.

    If it declines a call, the steps of `otherwise` do them.
    """

    function: Function
    options: Mapping[str, Any]
    length: int
    check: Function | None
    """Refuses arrays of another library or device, which several operations in one do not check."""
    otherwise: tuple[Any, ...]  # of Step


def accelerated(fusions: Fusions) -> Function:
    """The accelerator of the primitive `chain` by the given fusions.

    Parameters
    ----------
    fusions : mapping
        From a function that finds operations to fuse, such as `convolution_block`, to the fused
        operation; of several that fit, the first is tried first. It takes x, the parameters of its
        operations and the options found, returns what an operation returns, with the gradients of
        the last operation's parameters first, and may decline a call with ``NotImplemented``.
    """
    planned = lru_cache(PLANS)(partial(plan, tuple(fusions.items())))

    def chain(
        x: Any, operations: tuple[Operation, ...], parameters: Sequence[Arrays]
    ) -> Iterator[Pass]:
        """See `xbp.primitives.chain`."""
        try:
            steps = planned(operations)
        except TypeError:  # an unhashable option
            steps = plan(tuple(fusions.items()), operations)
        return run(steps, x, parameters, 0)

    return chain


def run(
    steps: tuple[Step, ...], x: Any, parameters: Sequence[Arrays], start: int
) -> Iterator[Pass]:
    """Do the passes of a plan, the first of them from the operation `start` on."""
    for function, options, length, check, otherwise in steps:
        own = parameters[start]
        if length > 1:
            own = list(chained(parameters[start : start + length]))
        if check is not None:
            check(x, own)
        done = function(x, *own, **options)
        if done is not NotImplemented:
            x = done[0]
            yield (*done, length)
            del done  # frees memory for the next pass
        else:
            for done in run(otherwise, x, parameters, start):
                x = done[0]
                yield done
                del done
        start += length


def plan(fusions: tuple[Fusion, ...], operations: Sequence[Operation]) -> tuple[Step, ...]:
    """The passes of a chain."""
    steps, index = [], 0
    while index < len(operations):
        rest = operations[index:]
        step = Step(rest[0][0], dict(rest[0][1]), 1, None, ())
        for place, (match, fused) in enumerate(fusions):
            found = match(rest)
            if found is not None:
                length, options = found
                otherwise = plan(fusions[place + 1 :], rest[:length])
                step = Step(fused, options, length, rest[0][0].check, otherwise)
                break
        steps.append(step)
        index += step.length
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


def dense_layers(operations: Sequence[Operation]) -> Match:
    """Two or more of linear layers and activations after them, from a linear layer on."""
    found: list[str | None] = []
    length = 0
    for index, (operation, options) in enumerate(operations[: 2 * MOST_DENSE]):
        if operation is affine and not options and len(found) < MOST_DENSE:
            found.append(None)
        elif (
            operation in AFTER_AFFINE
            and not options
            and index
            and operations[index - 1][0] is affine
        ):
            found[-1] = operation.name
        else:
            break
        length = index + 1
    return (length, {"activations": tuple(found)}) if length > 1 else None


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


def activated_batch_norm(operations: Sequence[Operation]) -> Match:
    """A batch normalization, then an activation."""
    (first, options), *after = operations
    if first is batch_normalize and after and after[0][0] in ACTIVATIONS:
        function, more = after[0]
        return 2, {**dict(options), "activation": function.name, **dict(more)}
    return None


def _side_by_side(operations: Sequence[Operation]) -> Pair:
    """The window of a leading max pooling without overlap and padding; else (1, 1)."""
    if operations and operations[0][0] is max_pool:
        window = dict(operations[0][1])
        if window["stride"] == window["kernel_size"] and window["padding"] == (0, 0):
            size: Pair = window["kernel_size"]
            return size
    return (1, 1)
