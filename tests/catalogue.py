"""One table: every layer and loss, what to feed it, and what must come out.

Adding a line here gives a layer its forward oracle, its gradient check, its parity on every
backend, and faults planted in all of it, to be caught (tests/mutation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
from numpy.typing import NDArray

import xbp
from xbp import initializers, nn
from xbp.models.lenet1998 import (
    EuclideanRBF,
    Negation,
    PartialConv2d,
    RejectingCrossEntropyLoss,
    Subsample2d,
)

Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Any]
    inputs: Callable[[], Arrays]
    oracle: Callable[..., Any]  # (state_dict, *inputs) -> the expected output, or value
    deterministic: bool = True

    @property
    def kind(self) -> str:
        """The name of the class, in xbp.nn or in xbp.models.lenet1998."""
        return self.name.partition(" ")[0]


def normal(*shape: int) -> Callable[[], Arrays]:
    return lambda: (np.random.default_rng(1).normal(size=shape),)


def away_from_zero(*shape: int) -> Callable[[], Arrays]:
    """Entries of ±[0.1, 2]: kinks at 0 are far from every difference quotient."""

    def draw() -> Arrays:
        rng = np.random.default_rng(1)
        return (rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape),)

    return draw


def distinct(*shape: int) -> Callable[[], Arrays]:
    """All entries differ by at least 0.1: a maximum does not change under a difference quotient."""
    size = int(np.prod(shape))
    return lambda: (0.1 * np.random.default_rng(1).permutation(size).reshape(shape) - 3.0,)


def with_targets(prediction: Callable[[], Arrays], *shape: int) -> Callable[[], Arrays]:
    return lambda: (*prediction(), np.random.default_rng(2).normal(size=shape) * 5)


def with_labels(*shape: int, dtype: str = "int64") -> Callable[[], Arrays]:
    n, classes = shape
    return lambda: (*normal(*shape)(), (np.arange(n) % classes).astype(dtype))


def with_events(*shape: int) -> Callable[[], Arrays]:
    """Logits, and targets of which some are 0, some 1 and some between."""
    return lambda: (*normal(*shape)(), np.random.default_rng(2).uniform(-1, 2, shape).clip(0, 1))


def with_probabilities(*shape: int) -> Callable[[], Arrays]:
    return lambda: (
        *normal(*shape)(),
        np.random.default_rng(2).dirichlet(np.ones(shape[1]), shape[0]),
    )


def conv(*arguments: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: nn.Conv2d(*arguments, **keywords, dtype="float64", rng=0)


def conv_oracle(stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> Any:
    return lambda s, x: oracles.conv2d(x, s["weight"], s.get("bias"), stride, padding)


def dropout_oracle(p: float) -> Any:
    """Dropout with seed 0, its mask drawn word by word from the plain-integer Philox."""

    def oracle(state: Any, x: NDArray[Any]) -> NDArray[Any]:
        key = np.random.SeedSequence(0).generate_state(2, np.uint32)
        y = np.zeros(x.size)
        for i, value in enumerate(x.ravel()):
            block = oracles.philox4x32((i // 4, 0, 0, 0), (int(key[0]), int(key[1])))
            y[i] = value / (1 - p) if block[i % 4] >= p * 2**32 else 0.0
        return y.reshape(x.shape)

    return oracle


class Carried(nn.Layer):
    """A recurrent layer whose initial and final states belong to its input and output.

    The first rows of x (N, S + T, size) are the initial states, the last of y (N, T · D + S, size)
    the final ones: so the table checks their gradients, too. input_size is hidden_size here.
    """

    def __init__(self, layer: nn.Recurrent) -> None:
        self.layer = layer
        self.scans, self.kinds = layer.num_layers * len(layer.directions), len(layer.states)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        xp, S = self.namespace(x), self.scans * self.kinds
        (y, final), backward = self.layer.run(
            x[:, S:, :], self.state(xp, x[:, :S, :]), training=training, rng=rng
        )
        by_rows = xp.reshape(y, (x.shape[0], -1, x.shape[2]))

        def backward_all(dy: Any) -> Any:
            length = by_rows.shape[1]
            dy, dfinal = dy[:, :length, :], self.state(xp, dy[:, length:, :])
            dx, dinitial = backward(xp.reshape(dy, y.shape), dfinal)
            return xp.concat([self.rows(xp, dinitial), dx], axis=1)

        return xp.concat([by_rows, self.rows(xp, final)], axis=1), backward_all

    def state(self, xp: Any, rows: Any) -> Any:
        """(N, S, size) → the form of `run`."""
        parts = [rows[:, k * self.scans : (k + 1) * self.scans, :] for k in range(self.kinds)]
        states = tuple(xp.permute_dims(part, (1, 0, 2)) for part in parts)
        return states if self.kinds > 1 else states[0]

    def rows(self, xp: Any, state: Any) -> Any:
        """The inverse."""
        parts = state if self.kinds > 1 else (state,)
        return xp.concat([xp.permute_dims(part, (1, 0, 2)) for part in parts], axis=1)


def product_cell(*sizes: int, **options: Any) -> nn.Recurrent:
    """A cell of one's own: two states, and other gradients for p than for q."""

    class Product(nn.Recurrent):
        gates, states = 1, ("h", "c")

        def step(self, xp: Any, p: Any, q: Any, *states: Any) -> Any:
            h = 0.5 * states[0] + p * q

            def backward(dh: Any, dc: Any) -> Any:
                dh = dh + dc
                return dh * q, dh * p, (0.5 * dh, 0.5 * dc)

            return (h, 0.5 * states[1] + h), backward

    return Product(*sizes, **options, dtype="float64", rng=0)


def carried_oracle(cell: Any, scans: int, kinds: int) -> Any:
    def oracle(state: Any, x: NDArray[Any]) -> NDArray[Any]:
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


def regression(oracle: Any, *arguments: Any, **keywords: Any) -> Any:
    return lambda s, y, t: oracle(y, t, *arguments, **keywords)


TABLE = [[1, 0, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]]
"""Connections of 4 output maps and 3 input maps."""

LENET: dict[str, Any] = {"dtype": "float64", "rng": 0, "bias_init": initializers.normal}


CASES = [
    Case("Linear", lambda: nn.Linear(5, 3, dtype="float64", rng=0), normal(4, 5),
         lambda s, x: oracles.linear(x, s["weight"], s["bias"])),
    Case("Linear without bias", lambda: nn.Linear(5, 1, bias=False, dtype="float64", rng=0),
         normal(7, 5), lambda s, x: oracles.linear(x, s["weight"])),
    Case("Linear over sequences", lambda: nn.Linear(4, 3, dtype="float64", rng=0), normal(2, 3, 4),
         lambda s, x: oracles.linear(x.reshape(-1, 4), s["weight"], s["bias"]).reshape(2, 3, 3)),
    Case("Conv2d", conv(2, 3, 3), normal(2, 2, 6, 5), conv_oracle()),
    Case("Conv2d without bias", conv(1, 2, 2, bias=False), normal(3, 1, 4, 4), conv_oracle()),
    Case("Conv2d 1 × 1", conv(3, 2, 1), normal(2, 3, 4, 4), conv_oracle()),
    Case("Conv2d as LeNet-5's first", conv(1, 6, 5, padding=2), normal(1, 1, 9, 9),
         conv_oracle(padding=(2, 2))),
    Case("Conv2d with strides and padding", conv(2, 2, (3, 2), (2, 1), (1, 2)),
         normal(3, 2, 7, 6), conv_oracle((2, 1), (1, 2))),
    Case("Conv2d with gaps", conv(2, 2, 2, 3), normal(2, 2, 9, 8), conv_oracle((3, 3))),
    Case("PartialConv2d", lambda: PartialConv2d(TABLE, 3, **LENET), normal(2, 3, 5, 6),
         lambda s, x: oracles.partial_conv2d(x, s["weight"], s["bias"], TABLE)),
    Case("PartialConv2d without bias, with strides and padding",
         lambda: PartialConv2d(TABLE, (3, 2), (2, 1), (1, 2), False, dtype="float64", rng=0),
         normal(2, 3, 7, 6), lambda s, x: oracles.partial_conv2d(
             x, s["weight"], None, TABLE, (2, 1), (1, 2))),
    Case("MaxPool2d", lambda: nn.MaxPool2d(2), distinct(2, 3, 4, 6),
         lambda s, x: oracles.max_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("MaxPool2d with a rest", lambda: nn.MaxPool2d(2), distinct(2, 1, 5, 7),
         lambda s, x: oracles.max_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("MaxPool2d overlapping, padded", lambda: nn.MaxPool2d((3, 4), (2, 1), (1, 2)),
         distinct(2, 2, 6, 5), lambda s, x: oracles.max_pool2d(x, (3, 4), (2, 1), (1, 2))),
    Case("AvgPool2d", lambda: nn.AvgPool2d(2), normal(2, 3, 4, 6),
         lambda s, x: oracles.avg_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("AvgPool2d overlapping, padded", lambda: nn.AvgPool2d((3, 2), (1, 2), (0, 1)),
         normal(2, 2, 5, 6), lambda s, x: oracles.avg_pool2d(x, (3, 2), (1, 2), (0, 1))),
    Case("Recurrent with a cell of one's own",
         lambda: Carried(product_cell(2, 2, 2, bidirectional=True)), normal(2, 11, 2),
         carried_oracle(oracles.product_cell, 4, 2)),
    Case("Recurrent from zero", lambda: product_cell(2, 3), normal(2, 4, 2),
         lambda s, x: oracles.recurrent(oracles.product_cell, x, s)[0]),
    Case("RNN", lambda: nn.RNN(3, 4, dtype="float64", rng=0), normal(2, 5, 3),
         lambda s, x: oracles.recurrent(oracles.elman_cell, x, s)[0]),
    Case("RNN of two layers, both directions",
         lambda: nn.RNN(3, 2, 2, bidirectional=True, dtype="float64", rng=0), normal(2, 4, 3),
         lambda s, x: oracles.recurrent(oracles.elman_cell, x, s)[0]),
    Case("RNN with states",
         lambda: Carried(nn.RNN(3, 3, 2, dtype="float64", rng=0)), normal(2, 5, 3),
         carried_oracle(oracles.elman_cell, 2, 1)),
    Case("RNN of ReLU, without bias",
         lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False, dtype="float64", rng=0),
         normal(2, 5, 3), lambda s, x: oracles.recurrent(oracles.relu_cell, x, s)[0]),
    Case("LSTM", lambda: nn.LSTM(3, 4, dtype="float64", rng=0), normal(2, 5, 3),
         lambda s, x: oracles.recurrent(oracles.lstm_cell, x, s)[0]),
    Case("LSTM of two layers, both directions",
         lambda: nn.LSTM(3, 2, 2, bidirectional=True, dtype="float64", rng=0), normal(2, 4, 3),
         lambda s, x: oracles.recurrent(oracles.lstm_cell, x, s)[0]),
    Case("LSTM with states",
         lambda: Carried(nn.LSTM(3, 3, 2, dtype="float64", rng=0)), normal(2, 7, 3),
         carried_oracle(oracles.lstm_cell, 2, 2)),
    Case("GRU", lambda: nn.GRU(3, 4, dtype="float64", rng=0), normal(2, 5, 3),
         lambda s, x: oracles.recurrent(oracles.gru_cell, x, s)[0]),
    Case("GRU of two layers, both directions",
         lambda: nn.GRU(3, 2, 2, bidirectional=True, dtype="float64", rng=0), normal(2, 4, 3),
         lambda s, x: oracles.recurrent(oracles.gru_cell, x, s)[0]),
    Case("GRU with states",
         lambda: Carried(nn.GRU(3, 3, 2, dtype="float64", rng=0)), normal(2, 5, 3),
         carried_oracle(oracles.gru_cell, 2, 1)),
    Case("Last", lambda: nn.Last(), normal(3, 4, 2),
         lambda s, x: np.array([sample[-1] for sample in x])),
    Case("Subsample2d", lambda: Subsample2d(3, **LENET), normal(2, 3, 4, 6),
         lambda s, x: oracles.subsample2d(x, s["weight"], s["bias"], (2, 2), (2, 2), (0, 0))),
    Case("Subsample2d overlapping, padded",
         lambda: Subsample2d(2, (3, 2), (1, 2), (0, 1), **LENET), normal(2, 2, 5, 6),
         lambda s, x: oracles.subsample2d(x, s["weight"], s["bias"], (3, 2), (1, 2), (0, 1))),
    Case("Flatten", lambda: nn.Flatten(), normal(3, 2, 4, 5), lambda s, x: oracles.flatten(x)),
    Case("Dropout", lambda: nn.Dropout(0.3), normal(3, 7), dropout_oracle(0.3), False),
    Case("Dropout of images", lambda: nn.Dropout(0.5), normal(2, 3, 3, 3), dropout_oracle(0.5),
         False),
    Case("Dropout of nothing", lambda: nn.Dropout(0.0), normal(3, 7), lambda s, x: x),
    Case("ReLU", lambda: nn.ReLU(), away_from_zero(4, 6), lambda s, x: oracles.relu(x)),
    Case("LeakyReLU", lambda: nn.LeakyReLU(0.2), away_from_zero(4, 6),
         lambda s, x: oracles.leaky_relu(x, 0.2)),
    Case("PReLU", lambda: nn.PReLU(dtype="float64"), away_from_zero(4, 6),
         lambda s, x: oracles.prelu(x, s["weight"])),
    Case("PReLU a channel", lambda: nn.PReLU(3, init=-0.5, dtype="float64"),
         away_from_zero(2, 3, 2, 2), lambda s, x: oracles.prelu(x, s["weight"])),
    Case("ELU", lambda: nn.ELU(), normal(4, 6), lambda s, x: oracles.elu(x)),
    Case("ELU with a kink", lambda: nn.ELU(0.3), away_from_zero(4, 6),
         lambda s, x: oracles.elu(x, 0.3)),
    Case("SELU", lambda: nn.SELU(), away_from_zero(4, 6), lambda s, x: oracles.selu(x)),
    Case("GELU", lambda: nn.GELU(), normal(4, 6), lambda s, x: oracles.gelu(x)),
    Case("GELU by tanh", lambda: nn.GELU("tanh"), normal(4, 6),
         lambda s, x: oracles.gelu_tanh(x)),
    Case("SiLU", lambda: nn.SiLU(), normal(4, 6), lambda s, x: oracles.silu(x)),
    Case("Softplus", lambda: nn.Softplus(), normal(4, 6), lambda s, x: oracles.softplus(x)),
    Case("Softplus with beta", lambda: nn.Softplus(3.0), normal(4, 6),
         lambda s, x: oracles.softplus(x, 3.0)),
    Case("Sigmoid", lambda: nn.Sigmoid(), normal(4, 6), lambda s, x: oracles.sigmoid(x)),
    Case("Tanh", lambda: nn.Tanh(), normal(2, 3, 4, 2), lambda s, x: oracles.tanh(x)),
    Case("ScaledTanh", lambda: nn.ScaledTanh(), normal(4, 6),
         lambda s, x: oracles.scaled_tanh(x, 1.7159, 2 / 3)),
    Case("ScaledTanh with options", lambda: nn.ScaledTanh(0.5, 3.0), normal(4, 6),
         lambda s, x: oracles.scaled_tanh(x, 0.5, 3.0)),
    Case("Negation", lambda: Negation(), normal(4, 6), lambda s, x: 0.0 - x),
    Case("EuclideanRBF", lambda: EuclideanRBF([[1, -1, 1], [0.5, 1, 2]], dtype="float64"),
         normal(4, 3), lambda s, x: oracles.euclidean_rbf(x, s["codes"])),
    Case("EuclideanRBF over sequences", lambda: EuclideanRBF([[1, -1]] * 3, dtype="float64"),
         normal(4, 5, 2), lambda s, x: oracles.euclidean_rbf(x.reshape(-1, 2), s["codes"])
         .reshape(4, 5, 3)),
    Case("Softmax", lambda: nn.Softmax(), normal(4, 6), lambda s, x: oracles.softmax(x, -1)),
    Case("Softmax along channels", lambda: nn.Softmax(axis=1), normal(2, 3, 2, 2),
         lambda s, x: oracles.softmax(x, 1)),
    Case("LogSoftmax", lambda: nn.LogSoftmax(), normal(4, 6),
         lambda s, x: oracles.log_softmax(x, -1)),
    Case("LogSoftmax along channels", lambda: nn.LogSoftmax(axis=1), normal(2, 3, 2, 2),
         lambda s, x: oracles.log_softmax(x, 1)),
    Case("MSELoss", lambda: nn.MSELoss(), with_targets(normal(4, 3), 4, 3),
         regression(oracles.mse_loss)),
    Case("MSELoss as ½Σ", lambda: nn.MSELoss("sum", factor=0.5), with_targets(normal(4, 3), 4, 3),
         regression(oracles.mse_loss, "sum", factor=0.5)),
    Case("MSELoss as 1/2N Σ", lambda: nn.MSELoss("batchmean", factor=0.5),
         with_targets(normal(4, 3), 4, 3), regression(oracles.mse_loss, "batchmean", factor=0.5)),
    Case("L1Loss", lambda: nn.L1Loss(), with_targets(normal(4, 3), 4, 3),
         regression(oracles.l1_loss)),
    Case("L1Loss summed", lambda: nn.L1Loss("sum"), with_targets(normal(5), 5),
         regression(oracles.l1_loss, "sum")),
    Case("HuberLoss", lambda: nn.HuberLoss(), with_targets(normal(4, 3), 4, 3),
         regression(oracles.huber_loss, 1.0)),
    Case("HuberLoss as SmoothL1", lambda: nn.HuberLoss("sum", factor=1 / 3, delta=3.0),
         with_targets(normal(4, 3), 4, 3),
         regression(oracles.huber_loss, 3.0, "sum", factor=1 / 3)),
    Case("BCEWithLogitsLoss", lambda: nn.BCEWithLogitsLoss(), with_events(5, 3),
         regression(oracles.binary_cross_entropy)),
    Case("BCEWithLogitsLoss summed, of one column", lambda: nn.BCEWithLogitsLoss("sum"),
         with_events(6, 1), regression(oracles.binary_cross_entropy, reduction="sum")),
    Case("BCEWithLogitsLoss with a weight", lambda: nn.BCEWithLogitsLoss(pos_weight=2.5),
         with_events(5, 3), regression(oracles.binary_cross_entropy, 2.5)),
    Case("BCEWithLogitsLoss with a weight a column",
         lambda: nn.BCEWithLogitsLoss(pos_weight=xbp.asarray([2.6, 0.0, 1.0])), with_events(5, 3),
         regression(oracles.binary_cross_entropy, np.array([2.6, 0.0, 1.0]))),
    Case("CrossEntropyLoss", lambda: nn.CrossEntropyLoss(), with_labels(5, 3),
         regression(oracles.cross_entropy)),
    Case("CrossEntropyLoss summed, uint8", lambda: nn.CrossEntropyLoss("sum"),
         with_labels(6, 4, dtype="uint8"), regression(oracles.cross_entropy, "sum")),
    Case("CrossEntropyLoss of probabilities", lambda: nn.CrossEntropyLoss(),
         with_probabilities(5, 3), regression(oracles.cross_entropy)),
    Case("CrossEntropyLoss of weights that do not sum to 1", lambda: nn.CrossEntropyLoss("sum"),
         lambda: (*normal(5, 3)(), np.arange(15.0).reshape(5, 3)),
         regression(oracles.cross_entropy, "sum")),
    Case("RejectingCrossEntropyLoss", lambda: RejectingCrossEntropyLoss(), with_labels(5, 3),
         regression(oracles.rejecting_cross_entropy, 1.0)),
    Case("RejectingCrossEntropyLoss summed, with another penalty, uint8",
         lambda: RejectingCrossEntropyLoss("sum", penalty=-0.5), with_labels(6, 4, dtype="uint8"),
         regression(oracles.rejecting_cross_entropy, -0.5, "sum")),
]  # fmt: skip


def forward(case: Case, inputs: Arrays, *, training: bool = True) -> tuple[Any, Any]:
    """(state, output) of a case's layer, or (empty state, value) of its loss; seed 0."""
    subject = case.make()
    if hasattr(subject, "forward"):
        y = subject.forward(*inputs, training=training, rng=0)[0]
        return subject.state_dict(), y
    return {}, subject(*inputs)[0]


def check_oracle(case: Case) -> None:
    inputs = case.inputs()
    state, y = forward(case, inputs)
    # Both are float64 sums of at most 30 products of order 1, in another order.
    np.testing.assert_allclose(y, case.oracle(state, *inputs), rtol=1e-13, atol=1e-13)
