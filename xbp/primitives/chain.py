"""A run of operations as one call, in which an accelerator may do several in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from xbp.backend import Array
from xbp.primitives.dispatch import Gradients, Primitive, check_gradient

Operation: TypeAlias = "tuple[Any, tuple[tuple[str, Any], ...]]"
"""A primitive and its options, (name, value) each."""
Arrays: TypeAlias = "Sequence[Array | None]"
Pass: TypeAlias = "tuple[Array, Gradients, int]"
"""An output, its gradients, and how many operations that were."""


class Chain(Primitive[Callable[..., Iterator[Pass]]]):
    """A primitive that gives its output pass by pass; called, it is one operation of all of them.

    An accelerator has the arguments of the reference, and yields what it yields; the chain rule is
    here, once.
    """

    def __call__(
        self, x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
    ) -> tuple[Array, Gradients]:
        """y = f_n(… f_2(f_1(x))), and the chain rule: ∂L/∂x through all of them, from the last on.

        Parameters
        ----------
        x : array
        operations : sequence of (primitive, options)
        parameters : sequence of sequences of arrays or None
            Those of each operation.

        Returns
        -------
        y : array
        gradients : callable
            From ∂L/∂y to ∂L/∂x and the parameters' gradients, those of the last operation first.
            If ∂L/∂x is not wanted, it ends at the first operation that has parameters.
        """
        without = 0  # operations before the first one that has parameters
        while without < len(parameters) and not parameters[without]:
            without += 1
        steps: list[tuple[Gradients, tuple[int, ...]]] = []
        first = done = 0  # the pass of that one
        y = x
        for y, gradients, count in self.passes(x, operations, parameters):
            steps.append((gradients, y.shape))
            done += count
            if done <= without:
                first += 1

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
        """The passes of whoever computes it, one after the other, as they are asked for."""
        found: Iterator[Pass] = super().__call__(x, operations, parameters)
        return found

    def outputs(
        self, x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
    ) -> Iterator[Array]:
        """The output of each pass, the last one being y; for inference.

        To take one lets go of the one before, and of what a backward would need.
        """
        for each in self.passes(x, operations, parameters):
            x = each[0]
            del each
            yield x


@Chain
def chain(
    x: Array, operations: Sequence[Operation], parameters: Sequence[Arrays]
) -> Iterator[Pass]:
    """Do one operation after the other; an accelerator may do several neighbours in one pass.

    Parameters
    ----------
    x, operations, parameters
        As for `Chain.__call__`.

    Yields
    ------
    y : array
    gradients : callable
        As that of an operation; of several, with the parameters' gradients of the last one first.
    count : int
        How many operations this pass has done: here 1.
    """
    for index, (operation, options) in enumerate(operations):
        done = operation(x, *parameters[index], **dict(options))
        x = done[0]
        yield (*done, 1)
        del done  # before the next operation takes memory
