"""Strategies of the property tests: numbers, sizes, dtypes, memory orders; and their comparisons.

There are two kinds of numbers. *Quarters* are small multiples of ¼: sums of their products are
exact in float32, in any order. So results made of sums, products and maxima must equal their
definition to the last bit, in either dtype, in any memory order, in any blocking. All other
functions get *normal* numbers, rounded to float32, and a tolerance in roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from xbp import accelerators

Host = NDArray[Any]
Pair = tuple[int, int]

dtypes = st.sampled_from(["float32", "float64"])
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
batches = st.integers(1, 9) | st.sampled_from([15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70])
"""One, a few, and the neighbours of multiples of 16, where blocks of kernels end."""


def quarters(rng: np.random.Generator, *shape: int, largest: int = 8) -> Host:
    """k/4 with |k| ≤ `largest`: products are sixteenths of at most 4, and float32 adds 2¹⁸ of them
    without rounding.
    """
    return rng.integers(-largest, largest + 1, shape) / 4


def normals(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Host:
    """Normal numbers that are float32 numbers too, so that both dtypes start from the same."""
    return (scale * rng.normal(size=shape)).astype(np.float32).astype(np.float64)


def off_zero(rng: np.random.Generator, *shape: int) -> Host:
    """Quarters except 0, at least ¼ from a kink at 0."""
    return rng.integers(1, 9, shape) / 4 * rng.choice([-1, 1], shape)


def distinct(rng: np.random.Generator, n: int, c: int, h: int, w: int) -> Host:
    """Quarters that are distinct within an image."""
    images = [rng.permutation(h * w) - h * w // 2 for _ in range(n * c)]
    return np.reshape(images, (n, c, h, w)) / 4


def is_dyadic(number: float) -> bool:
    """Whether multiplication by it is exact."""
    return bool(np.frexp(number)[0] == 0.5)


def sizes(draw: st.DrawFn, budget: int, *strategies: st.SearchStrategy[int]) -> list[int]:
    """A size from each strategy, all at least 1 and their product within `budget`.

    Which of them may be large is drawn, too: many images of one channel, or one of many.
    """
    chosen = [draw(strategy) for strategy in strategies]
    for axis in draw(st.permutations(range(len(chosen)))):
        chosen[axis] = max(min(chosen[axis], budget), 1)
        budget //= chosen[axis]
    return chosen


# --- memory --------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """The memory layout of an array; axes beyond its own are ignored."""

    order: tuple[int, ...]  # axes from the outermost in memory to the innermost
    steps: tuple[int, ...]  # the distance between neighbours along each axis, with its sign
    writeable: bool

    def __call__(self, array: Host) -> Host:
        """A copy of `array` with this layout, in a buffer with nan in its gaps."""
        axes = [axis for axis in self.order if axis < array.ndim]
        axes += range(len(axes), array.ndim)
        shape = [array.shape[axis] * abs(self.steps[axis]) for axis in axes]
        buffer = np.full(shape, np.nan if array.dtype.kind == "f" else 99, array.dtype)
        steps = (slice(None, None, self.steps[axis]) for axis in range(array.ndim))
        view = buffer.transpose(np.argsort(axes).astype(int))[(..., *steps)]
        view[...] = array
        view.flags.writeable = self.writeable
        return view


FORWARD = (1,) * 5
layouts = st.builds(
    Layout,
    st.sampled_from([(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 2, 3, 0), (2, 1, 3, 0)])
    | st.permutations(range(5)).map(tuple),
    st.just(FORWARD) | st.tuples(*[st.sampled_from([1, 2, -1, -2])] * 5),
    st.booleans(),
)
"""C, Fortran, batch innermost, rows first and any other order; mirrored, with gaps, read-only."""


def everything_of(array: Host) -> bytes:
    """All bytes of the memory of `array`, gaps included."""
    owner = array if array.base is None else array.base
    return owner.tobytes(order="A")


# --- agreement -----------------------------------------------------------------------------------


def ways() -> Iterator[AbstractContextManager[Any]]:
    """Blocks with all accelerators, and without them."""
    yield nullcontext()
    yield accelerators.disabled()


ROUNDINGS = 16
"""How many roundings of the result, or of all that enters, may explain a distance to the truth; the
rule of `xbp.testing.check_parity`."""
MOVES = 3
"""One alone may happen to move a result little: a gradient of four numbers, in one of 200 cases."""


def bound(
    dtype: str,
    truth: Host,
    function: Callable[..., Host],
    inputs: Sequence[Host],
    scale: float = 0.0,
) -> float:
    """How far rounding takes a result of `dtype` from the truth: ROUNDINGS times the rounding of
    the result itself, or of numbers of size `scale` whose difference it is, and what moving each
    input by a relative ε does to the truth, at most in `MOVES` of them.
    """
    rng, epsilon = np.random.default_rng(0), float(np.finfo(dtype).eps)
    distance = 0.0
    for _ in range(MOVES):
        moved = function(*(x * (1 + epsilon * rng.choice([-1.0, 1.0], x.shape)) for x in inputs))
        distance = max(distance, largest(moved - truth))
    return ROUNDINGS * (epsilon * max(largest(truth), scale) + distance)


def largest(array: Any) -> float:
    return float(np.max(np.abs(array), initial=0.0))


def check(result: Any, truth: Any, dtype: str, allowed: float, what: str) -> None:
    """Check the shape, dtype and distance of `result` from the truth."""
    assert result.shape == truth.shape, f"{what} has shape {result.shape}, not {truth.shape}"
    assert result.dtype == dtype, f"{what} is {result.dtype}, not {dtype}"
    error = largest(np.asarray(result, np.float64) - truth)
    assert error <= allowed, f"{what} is wrong by {error:.3g}, where {allowed:.3g} is allowed"
