"""A chain of operations as one call, so that an accelerator may fuse several into one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from xbp.backend import Array
from xbp.primitives.dispatch import Gradients, Primitive, check_gradient

Operation: TypeAlias = "tuple[Any, tuple[tuple[str, Any], ...]]"
"""A primitive and its options, (name, value) each."""
Arrays: TypeAlias = "Sequence[Array | None]"
Pass: TypeAlias = "tuple[Array, Gradients, int]"
"""An output, its gradients, and how many operations that were."""


class Chain(Primitive[Callable[..., Iterator[Pass]]]):
    """A primitive whose implementations yield outputs pass by pass; a call composes the passes.

    An accelerator has the arguments of the reference and yields the same; this class applies the
    chain rule to the passes of either.
    """

    def __call__(
        self, x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
    ) -> tuple[Array, Gradients]:
        """y = f_n(… f_2(f_1(x))), and the gradients by the chain rule, from the last to the first.

        Parameters
        ----------
        x : array
        operations : sequence of (primitive, options)
        parameters : sequence of sequences of arrays or None
            The parameters of each operation.

        Returns
        -------
        y : array
        gradients : callable
            From ∂L/∂y to ∂L/∂x and the parameters' gradients, those of the last operation first.
            Without ∂L/∂x, it stops at the first operation that has parameters.
        """
        steps: list[tuple[Gradients, tuple[int, ...]]] = []
        counts: list[int] = []
        y = x
        for y, gradients, count in self.passes(x, operations, parameters):
            if count == len(operations):  # all at once
                return y, _checked(gradients, y.shape)
            steps.append((gradients, y.shape))
            counts.append(count)
        without = next((i for i, own in enumerate(parameters) if own), len(parameters))
        # the pass of the first operation that has parameters
        first = sum(done <= without for done in accumulate(counts))

        def through(dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
            found: list[Array | None] = []
            last = 0 if wants_dx else first
            for index in range(len(steps) - 1, last - 1, -1):
                gradients, shape = steps[index]
                check_gradient(dy, shape)
                dy, *own = gradients(dy, wants_dx or index > last)
                found += own
            return (dy if wants_dx else None, *found)

        return y, through

    def passes(
        self, x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
    ) -> Iterator[Pass]:
        """The passes of an accelerator or the reference, computed lazily."""
        found: Iterator[Pass] = super().__call__(x, operations, parameters)
        return found

    def outputs(
        self, x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
    ) -> Iterator[Array]:
        """The output of each pass, the last one being y; for inference.

        Each step frees the previous output, and everything that only a backward would need.
        """
        for each in self.passes(x, operations, parameters):
            x = each[0]
            del each
            yield x


def _checked(gradients: Gradients, shape: tuple[int, ...]) -> Gradients:
    """The gradients of a single pass, preceded by a check of ∂L/∂y."""

    def checked(dy: Array, wants_dx: bool = True) -> tuple[Array | None, ...]:
        check_gradient(dy, shape)
        return gradients(dy, wants_dx)

    return checked


@Chain
def chain(
    x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
) -> Iterator[Pass]:
    """Do one operation after the other, each in one pass; an accelerator may fuse neighbours.

    Parameters
    ----------
    x, operations, parameters
        As for `Chain.__call__`.

    Yields
    ------
    y : array
    gradients : callable
        As for an operation; for fused ones, with the parameters' gradients of the last one first.
    count : int
        The number of operations of this pass; in the reference 1.
    """
    for index, (operation, options) in enumerate(operations):
        done = operation(x, *parameters[index], **dict(options))
        x = done[0]
        yield (*done, 1)
        del done  # frees memory for the next operation
