"""Problems for compiled recurrent layers: arguments and gradients, and the reference's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from layouts import elsewhere
from numpy.typing import NDArray

from xbp import accelerators, primitives
from xbp.primitives import cells

Real = NDArray[Any]
CELLS: list[Callable[..., Any]] = [cells.elman, cells.rectified, cells.lstm, cells.gru]
# T, N, features, hidden: one step, one sample, one unit; tiles, panels and vectors not full
SHAPES = [(1, 9, 2, 17), (9, 1, 1, 1), (3, 14, 5, 70), (4, 5, 33, 3), (5, 2, 4, 129)]
FORMS: list[dict[str, Any]] = [
    {},
    {"bias": False, "reverse": True, "chunk": 2, "padded": True},
    {"chunk": 2, "padded": True},
    {"bias": False, "reverse": True},
]


def as_such(x: Real) -> Real:
    copy = np.empty(x.shape, x.dtype)
    copy[...] = x
    return copy


def batch_first(x: Real) -> Real:
    """As layers have it: each sample's time steps side by side."""
    return as_such(x.swapaxes(0, 1)).swapaxes(0, 1) if x.ndim == 3 else as_such(x)


def mirrored(x: Real) -> Real:
    return as_such(x[..., ::-1])[..., ::-1]


def unaligned(x: Real) -> Real:
    return np.frombuffer(b"0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)


LAYOUTS = [as_such, batch_first, mirrored, unaligned]


class Problem:
    """Arguments and gradients for one cell, and their results."""

    def __init__(
        self,
        step: Callable[..., Any],
        shape: tuple[int, int, int, int],
        dtype: str,
        layout: Callable[[Real], Real] = as_such,
        *,
        bias: bool = True,
        padded: bool = False,
        **options: Any,
    ) -> None:
        (T, N, features, hidden), rng = shape, np.random.default_rng(0)
        width = hidden * {cells.lstm: 4, cells.gru: 3}.get(step, 1)

        def draw(*sizes: int) -> Real:
            return layout(rng.normal(size=sizes).astype(dtype) / 2)

        states = tuple(draw(N, hidden) for _ in range(1 + (step is cells.lstm)))
        biases = [draw(width) if bias else None for _ in range(2)]
        self.arguments: list[Any] = [
            *(draw(T, N, features), draw(width, features), draw(width, hidden), *biases, *states)
        ]
        self.options = {"step": step, **options}
        if padded:
            self.options["padding"] = rng.random((N, T)) < 0.4
        self.given = draw(T, N, hidden), tuple(draw(N, hidden) for _ in states)

    def solve(self, function: Callable[..., Any]) -> list[Any]:
        """h, the last states; then the gradients: of x, the states, weights, biases."""
        settings = np.geterr()

        def run() -> Any:
            with np.errstate(**settings):  # threads begin with the default
                (h, last), gradients = function(*self.arguments, **self.options)
                return h, last, gradients(*self.given)

        h, last, (dx, dstates, *found) = elsewhere(run)
        return [h, *last, dx, *dstates, *found]

    def truth(self) -> list[Any]:
        self.arguments, self.given = wide(self.arguments), wide(self.given)
        with accelerators.disabled():
            return self.solve(primitives.recurrence.reference)  # type: ignore[attr-defined]


def wide(given: Any) -> Any:
    if isinstance(given, list | tuple):
        return type(given)(map(wide, given))
    return None if given is None else given.astype("f8")
