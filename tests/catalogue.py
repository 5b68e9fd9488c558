"""One table: every layer and loss, what to feed it, and what must come out.

Adding a line here gives a layer its forward oracle, its gradient check, and its parity on every
backend. `make` looks its class up when it is called, so that tests/mutation.py can swap it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
from numpy.typing import NDArray

from xbp import nn

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
        """The name of the class in xbp.nn."""
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


def regression(oracle: Any, *arguments: Any, **keywords: Any) -> Any:
    return lambda s, y, t: oracle(y, t, *arguments, **keywords)


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
    Case("MaxPool2d", lambda: nn.MaxPool2d(2), distinct(2, 3, 4, 6),
         lambda s, x: oracles.max_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("MaxPool2d with a rest", lambda: nn.MaxPool2d(2), distinct(2, 1, 5, 7),
         lambda s, x: oracles.max_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("MaxPool2d overlapping, padded", lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 1)),
         distinct(2, 2, 6, 5), lambda s, x: oracles.max_pool2d(x, (3, 2), (2, 1), (1, 1))),
    Case("AvgPool2d", lambda: nn.AvgPool2d(2), normal(2, 3, 4, 6),
         lambda s, x: oracles.avg_pool2d(x, (2, 2), (2, 2), (0, 0))),
    Case("AvgPool2d overlapping, padded", lambda: nn.AvgPool2d((3, 2), (1, 2), (1, 1)),
         normal(2, 2, 5, 6), lambda s, x: oracles.avg_pool2d(x, (3, 2), (1, 2), (1, 1))),
    Case("Flatten", lambda: nn.Flatten(), normal(3, 2, 4, 5), lambda s, x: oracles.flatten(x)),
    Case("Dropout", lambda: nn.Dropout(0.3), normal(3, 7), dropout_oracle(0.3), False),
    Case("Dropout of images", lambda: nn.Dropout(0.5), normal(2, 3, 3, 3), dropout_oracle(0.5),
         False),
    Case("Dropout of nothing", lambda: nn.Dropout(0.0), normal(3, 7), lambda s, x: x),
    Case("ReLU", lambda: nn.ReLU(), away_from_zero(4, 6), lambda s, x: oracles.relu(x)),
    Case("LeakyReLU", lambda: nn.LeakyReLU(0.2), away_from_zero(4, 6),
         lambda s, x: oracles.leaky_relu(x, 0.2)),
    Case("Sigmoid", lambda: nn.Sigmoid(), normal(4, 6), lambda s, x: oracles.sigmoid(x)),
    Case("Tanh", lambda: nn.Tanh(), normal(2, 3, 4, 2), lambda s, x: oracles.tanh(x)),
    Case("Softmax", lambda: nn.Softmax(), normal(4, 6), lambda s, x: oracles.softmax(x, -1)),
    Case("Softmax along channels", lambda: nn.Softmax(axis=1), normal(2, 3, 2, 2),
         lambda s, x: oracles.softmax(x, 1)),
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
    Case("CrossEntropyLoss", lambda: nn.CrossEntropyLoss(), with_labels(5, 3),
         regression(oracles.cross_entropy)),
    Case("CrossEntropyLoss summed, uint8", lambda: nn.CrossEntropyLoss("sum"),
         with_labels(6, 4, dtype="uint8"), regression(oracles.cross_entropy, "sum")),
    Case("CrossEntropyLoss of probabilities", lambda: nn.CrossEntropyLoss(),
         with_probabilities(5, 3), regression(oracles.cross_entropy)),
    Case("CrossEntropyLoss of weights that do not sum to 1", lambda: nn.CrossEntropyLoss("sum"),
         lambda: (*normal(5, 3)(), np.arange(15.0).reshape(5, 3)),
         regression(oracles.cross_entropy, "sum")),
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
