"""Recurrent layers and their primitive, with states as parts of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from xbp import nn, primitives
from xbp.backend import Array, array_namespace
from xbp.primitives import cells
from xbp.testing import oracles
from xbp.testing.cases.arrays import Host, ends, normal
from xbp.testing.cases.case import Call, Layer, fed


class Product(nn.Recurrent):
    """A user's own cell: h = h₋/2 + p ∘ q, c = c₋/2 + h.

    It has two states, and different gradients for p and q.
    """

    gates, states = 1, ("h", "c")

    def step(self, xp: Any, p: Array, q: Array, *states: Array) -> Any:
        h = 0.5 * states[0] + p * q

        def backward(dh: Array, dc: Array) -> Any:
            dh = dh + dc
            return dh * q, dh * p, (0.5 * dh, 0.5 * dc)

        return (h, 0.5 * states[1] + h), backward


class Carried(nn.Layer):
    """A recurrent layer with its initial and final states as parts of input and output.

    The first S rows of x (N, S + T, size) are the initial states, and the last S rows of
    y (N, T · D + S, size) the final ones, so that their gradients are checked too. input_size and
    hidden_size are equal.
    """

    def __init__(self, layer: nn.Recurrent) -> None:
        self.layer = layer
        self.scans, self.kinds = layer.num_layers * len(layer.directions), len(layer.states)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp, S = self.check_input(x), self.scans * self.kinds
        (y, final), backward = self.layer.run(
            x[:, S:, :], self.state(xp, x[:, :S, :]), training=training, rng=rng
        )
        directions = y.shape[2] // x.shape[2]
        by_rows = xp.reshape(y, (x.shape[0], y.shape[1] * directions, x.shape[2]))

        def backward_all(dy: Any) -> Any:
            length = by_rows.shape[1]
            dy, dfinal = dy[:, :length, :], self.state(xp, dy[:, length:, :])
            dx, dinitial = backward(xp.reshape(dy, y.shape), dfinal)
            return xp.concat([self.rows(xp, dinitial), dx], axis=1)

        return xp.concat([by_rows, self.rows(xp, final)], axis=1), backward_all

    def state(self, xp: Any, rows: Any) -> Any:
        """(N, S, size) → states as `Recurrent.run` takes them."""
        parts = [rows[:, k * self.scans : (k + 1) * self.scans, :] for k in range(self.kinds)]
        states = tuple(xp.permute_dims(part, (1, 0, 2)) for part in parts)
        return states if self.kinds > 1 else states[0]

    def rows(self, xp: Any, state: Any) -> Any:
        """The inverse of `state`."""
        parts = state if self.kinds > 1 else (state,)
        return xp.concat([xp.permute_dims(part, (1, 0, 2)) for part in parts], axis=1)


class Padded(nn.Layer):
    """A recurrent layer for which every third time step is padding, the first one included."""

    def __init__(self, layer: nn.Recurrent) -> None:
        self.layer = layer

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        every_third = xp.arange(x.shape[1], device=x.device) % 3 == 0
        padding = (x[:, :, 0] == x[:, :, 0]) & every_third
        (y, _), backward = self.layer.run(x, padding_mask=padding, training=training)
        return y, lambda dy: backward(dy)[0]


def padded(cell: Any) -> Callable[..., Host]:
    """The definition of a `Padded` layer: the outputs without padding, each repeated over it."""

    def oracle(state: Any, x: Host, features: int, hidden: int) -> Host:
        weights = {name.removeprefix("layer."): value for name, value in state.items()}
        y, last = np.zeros((*x.shape[:2], hidden)), np.zeros((len(x), hidden))
        kept = [t for t in range(x.shape[1]) if t % 3]
        steps = iter(np.swapaxes(oracles.recurrent(cell, x[:, kept], weights)[0], 0, 1))
        for t in range(x.shape[1]):
            last = next(steps) if t % 3 else last
            y[:, t] = last
        return y

    return oracle


def scanned(cell: Any) -> Callable[..., Host]:
    """The definition of a recurrent layer that starts from 0."""

    def oracle(state: Any, x: Host, *sizes: int, nonlinearity: str = "", **options: Any) -> Host:
        used = oracles.relu_cell if nonlinearity == "relu" else cell
        return oracles.recurrent(used, x, state)[0]

    return oracle


def carried_oracle(cell: Any, kinds: int) -> Callable[..., Host]:
    """The definition of a `Carried` layer with this number of states."""

    def oracle(
        state: Any,
        x: Host,
        features: int,
        hidden: int,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> Host:
        scans = layers * (1 + bidirectional)
        weights = {name.removeprefix("layer."): value for name, value in state.items()}
        h = [x[:, i] for i in range(kinds * scans)]
        c = h[scans:] or h
        y, ends = oracles.recurrent(
            cell, x[:, kinds * scans :], weights, list(zip(h[:scans], c, strict=True))
        )
        rows = [end[k] for k in range(kinds) for end in ends]
        by_rows = y.reshape(len(x), -1, x.shape[2])
        return np.concatenate([by_rows, np.stack(rows, axis=1)], axis=1)

    return oracle


def with_states(name: str, kind: type[nn.Recurrent], oracle: Any, call: Call) -> Layer:
    """The line of a recurrent layer with its states as inputs and outputs."""

    def make(*sizes: int, **options: Any) -> nn.Layer:
        return Carried(kind(*sizes, **options))

    reason = "a file has no states that come in and go out"
    title = f"{name} with states"
    return Layer(name, oracle, [call], make=make, title=title, not_in_onnx=reason)


ALL = [
    fed((2, 5, 3), 3, 4),
    fed((2, 5, 3), 3, 2, 2, bidirectional=True),
    fed((2, 5, 3), 3, 4, bias=False, truncate=2),
]
RELU = [
    fed((2, 5, 3), 3, 4, nonlinearity="relu"),
    fed((2, 5, 3), 3, 4, nonlinearity="relu", bias=False),
]

RECURRENT = [
    Layer("RNN", scanned(oracles.elman_cell), [*ALL, *RELU]),
    Layer("LSTM", scanned(oracles.lstm_cell), ALL),
    Layer("GRU", scanned(oracles.gru_cell), ALL),
    Layer("Recurrent", scanned(oracles.product_cell), [
        fed((2, 4, 2), 2, 3, 2, bidirectional=True), fed((2, 4, 2), 2, 3),
    ], make=Product),
    with_states("RNN", nn.RNN, carried_oracle(oracles.elman_cell, 1), fed((2, 5, 3), 3, 3, 2)),
    with_states("LSTM", nn.LSTM, carried_oracle(oracles.lstm_cell, 2), fed((2, 7, 3), 3, 3, 2)),
    with_states("GRU", nn.GRU, carried_oracle(oracles.gru_cell, 1), fed((2, 5, 3), 3, 3, 2)),
    with_states("Recurrent", Product, carried_oracle(oracles.product_cell, 2),
                fed((2, 11, 2), 2, 2, 2, bidirectional=True)),
    *(Layer(kind.__name__, padded(cell), [fed((3, 5, 3), 3, 2)], title=f"{kind.__name__} padded",
            make=lambda *sizes, kind=kind, **options: Padded(kind(*sizes, **options)))
      for kind, cell in [(nn.LSTM, oracles.lstm_cell), (nn.GRU, oracles.gru_cell)]),
]  # fmt: skip


# --- the primitive ---


def recurrence(
    cell: str, x: Array, weight_ih: Array, *others: Array, padded: bool = False, **options: Any
) -> Any:
    """The primitive `recurrence`, its output followed by the last states.

    `others` are W_hh, perhaps two biases, and the first states; with `padded`, every third time
    step of a sample is padding, and the first one of all.
    """
    xp, kinds = array_namespace(x), 1 + (cell == "lstm")
    weight_hh, *biases = others[:-kinds]
    bias_ih, bias_hh = biases or (None, None)
    if padded:
        numbers = (xp.arange(size, device=x.device) for size in x.shape[1::-1])
        samples, times = next(numbers), next(numbers)
        options["padding"] = (times + xp.expand_dims(samples, axis=1)) * times % 3 == 0
    step, T = getattr(cells, cell), x.shape[0]
    (h, states), gradients = primitives.recurrence(
        x, weight_ih, weight_hh, bias_ih, bias_hh, *others[-kinds:], step=step, **options
    )

    def backward(dy: Array) -> Any:
        dx, dstates, *found = gradients(dy[:T, ...], tuple(dy[T + i, ...] for i in range(kinds)))
        return (dx, *(d for d in found if d is not None), *dstates)

    return xp.concat([h, *(xp.expand_dims(s, axis=0) for s in states)], axis=0), backward


def _shapes(cell: str, bias: bool, x: tuple[int, ...], hidden: int) -> tuple[Any, ...]:
    """The shapes of all arrays after x (T, N, features)."""
    rows = hidden * {"lstm": 4, "gru": 3}.get(cell, 1)
    states = [(x[1], hidden)] * (1 + (cell == "lstm"))
    return (rows, x[2]), (rows, hidden), *[(rows,)] * (2 * bias), *states


CELLS = ("elman", "rectified", "lstm", "gru")
RECURRENCES: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("recurrence", partial(recurrence, cell, **options), (x, *_shapes(cell, bias, x.shape, hidden)))
    for cell, (x, hidden, bias, options) in product(
        CELLS,
        [
            (normal(5, 7, 3), 4, True, {}),
            (normal(3, 8, 2), 17, False, {"reverse": True, "padded": True}),
            (normal(9, 2, 5), 35, True, {"padded": True}),
            (normal(6, 3, 1), 1, True, {"reverse": True}),
            (ends(4, 5, 3), 3, True, {}),
        ],
    )
]
"""Name, function that returns its backward, arrays or their shapes; as in `primitives`."""
