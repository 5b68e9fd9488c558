"""One table: for each layer and loss, problems with drawn options, shapes and numbers.

A class that has no strategy of its own here is drawn from its lines in xbp.testing.cases, with
other batch sizes; so nothing in `xbp.nn` is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from catalogue import CASES
from hypothesis import strategies as st
from properties.drawing import (
    Host,
    Pair,
    batches,
    distinct,
    is_dyadic,
    normals,
    off_zero,
    quarters,
    seeds,
    sizes,
)

from xbp import nn, primitives
from xbp.models import lenet1998
from xbp.testing import oracles
from xbp.testing.cases.layers import dropout as dropout_oracle

SMOOTH = 2.0**-17
"""The step of a central difference where its error, of h² for truncation and ε/h for rounding, is
least (oracles.numeric_gradient); a relative error of 1e-10."""
KINKED = 2.0**-5
"""A step so short that no quarter reaches the next: one entry moves by at most 2h = 1/16, and two
by 1/8 from each other. For what is a polynomial of degree 2 between its kinks a difference
quotient of any step is exact; where there are no kinks, the step is 1."""


class Problem(NamedTuple):
    """A layer or loss in float64, what goes in, and its definition."""

    subject: Any
    inputs: tuple[Host, ...]  # of a loss with its target
    oracle: Callable[..., Any]  # (state_dict, *inputs) → the output or value
    step: float = SMOOTH  # of a difference quotient of the oracle
    exact: bool = False  # whether nothing is rounded; then all numbers are small dyadic ones
    by_sample: bool = True  # whether each image has an output of its own
    inference: bool = True  # whether inference is the training forward; else it is the identity
    kinks: bool = False  # whether a difference quotient may meet one


def regression(oracle: Any, *arguments: Any, **keywords: Any) -> Any:
    return lambda s, y, t: oracle(y, t, *arguments, **keywords)


Problems = Callable[[int], st.SearchStrategy[Problem]]
"""From the number of multiplications that an oracle may need, to a strategy."""


# --- windows -------------------------------------------------------------------------------------


class Windows(NamedTuple):
    shape: tuple[int, int, int, int]  # (N, C, H, W)
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        return self.kernel, self.stride, self.padding


@st.composite
def windows(draw: st.DrawFn, budget: int, most_padding: Any, outputs: int = 20) -> Windows:
    """Images, 1 × 1 ones too, and windows that fit: kernels beyond the stride and strides beyond
    the kernel, and rests at the edge.
    """
    small, channels = st.integers(1, 5), st.integers(1, 20)
    n, c, o, *rest = sizes(
        draw, budget, batches, channels, st.integers(1, outputs), small, small, small, small
    )
    kernel, counts = (rest[0], rest[1]), (rest[2], rest[3])
    stride = draw(st.tuples(small, small))
    padding = tuple(draw(st.integers(0, most_padding(k))) for k in kernel)
    height, width = (
        max((many - 1) * s + k - 2 * p + draw(st.integers(0, s - 1)), 1)
        for many, k, s, p in zip(counts, kernel, stride, padding, strict=True)
    )
    return Windows((n, c, height, width), o, kernel, stride, padding)


@st.composite
def conv2d(draw: st.DrawFn, budget: int) -> Problem:
    w, bias = draw(windows(budget, lambda k: k)), draw(st.booleans())
    return Problem(
        nn.Conv2d(w.shape[1], w.out_channels, *w.window, bias, dtype="float64", rng=0),
        (quarters(draw(seeds), *w.shape),),
        lambda s, x: oracles.conv2d(x, s["weight"], s.get("bias"), w.stride, w.padding),
        step=1.0,
        exact=True,
    )


@st.composite
def partial_conv2d(draw: st.DrawFn, budget: int) -> Problem:
    w, rng = draw(windows(budget, lambda k: k)), draw(seeds)
    table = rng.integers(0, 2, (w.out_channels, w.shape[1]))
    table[:, rng.integers(w.shape[1])] = 1  # each output map needs an input
    bias, table = draw(st.booleans()), table.tolist()
    return Problem(
        lenet1998.PartialConv2d(table, *w.window, bias, dtype="float64", rng=0),
        (quarters(rng, *w.shape),),
        lambda s, x: oracles.partial_conv2d(
            x, s["weight"], s.get("bias"), table, w.stride, w.padding
        ),
        step=1.0,
        exact=True,
    )


@st.composite
def max_pool2d(draw: st.DrawFn, budget: int) -> Problem:
    w = draw(windows(budget, lambda k: k // 2, 1))
    return Problem(
        nn.MaxPool2d(*w.window),
        (distinct(draw(seeds), *w.shape),),
        lambda s, x: oracles.max_pool2d(x, *w.window),
        step=KINKED,
        exact=True,
    )


@st.composite
def avg_pool2d(draw: st.DrawFn, budget: int) -> Problem:
    w = draw(windows(budget, lambda k: k // 2, 1))
    return Problem(
        nn.AvgPool2d(*w.window),
        (quarters(draw(seeds), *w.shape),),
        lambda s, x: oracles.avg_pool2d(x, *w.window),
        step=1.0,
        exact=is_dyadic(w.kernel[0] * w.kernel[1]),
    )


@st.composite
def subsample2d(draw: st.DrawFn, budget: int) -> Problem:
    w = draw(windows(budget, lambda k: k // 2, 1))
    return Problem(
        lenet1998.Subsample2d(w.shape[1], *w.window, dtype="float64", rng=0),
        (quarters(draw(seeds), *w.shape),),
        lambda s, x: oracles.subsample2d(x, s["weight"], s["bias"], *w.window),
        step=1.0,
        exact=is_dyadic(w.kernel[0] * w.kernel[1]),
    )


# --- matrices and shapes -------------------------------------------------------------------------

few = st.integers(1, 5)


@st.composite
def linear(draw: st.DrawFn, budget: int) -> Problem:
    wide, bias = st.integers(1, 40), draw(st.booleans())
    n, m, features, out = sizes(draw, budget, batches, few, wide, wide)
    shape = draw(st.sampled_from([(n, features), (n, m, features), (features,)]))
    return Problem(
        nn.Linear(features, out, bias, dtype="float64", rng=0),
        (quarters(draw(seeds), *shape),),
        lambda s, x: oracles.linear(x.reshape(-1, features), s["weight"], s.get("bias")).reshape(
            (*shape[:-1], out)
        ),
        step=1.0,
        exact=True,
        by_sample=len(shape) > 1,
    )


@st.composite
def euclidean_rbf(draw: st.DrawFn, budget: int) -> Problem:
    n, m, features, out = sizes(draw, budget, batches, few, st.integers(1, 20), st.integers(1, 12))
    rng, shape = draw(seeds), draw(st.sampled_from([(n, features), (n, m, features)]))
    return Problem(
        lenet1998.EuclideanRBF(quarters(rng, out, features), dtype="float64"),
        (quarters(rng, *shape),),
        lambda s, x: oracles.euclidean_rbf(x.reshape(-1, features), s["codes"]).reshape(
            (*shape[:-1], out)
        ),
        step=1.0,
        exact=True,
    )


@st.composite
def shapes(draw: st.DrawFn, budget: int, least: int = 1, most: int = 4) -> tuple[int, ...]:
    """(N, …), from `least` to `most` axes."""
    axes = draw(st.integers(least, most))
    return tuple(sizes(draw, budget, batches, *[st.integers(1, 7)] * (axes - 1)))


@st.composite
def rearranged(
    draw: st.DrawFn, budget: int, make: Callable[[], Any], oracle: Any, least: int = 1
) -> Problem:
    x = quarters(draw(seeds), *draw(shapes(budget, least)))
    return Problem(make(), (x,), lambda s, x: oracle(x), step=1.0, exact=True)


@st.composite
def dropout(draw: st.DrawFn, budget: int) -> Problem:
    p = draw(st.sampled_from([0.0, 0.2, 0.5, 0.75, 0.9, 1.0]))
    x = quarters(draw(seeds), *draw(shapes(budget // 20)))
    return Problem(
        nn.Dropout(p),
        (x,),
        lambda s, x: dropout_oracle(s, x, p) if p < 1 else 0 * x,
        step=1.0,
        exact=p == 1 or is_dyadic(1 / (1 - p)),
        by_sample=p == 0,
        inference=p == 0,
    )


# --- activations ---------------------------------------------------------------------------------


@st.composite
def elementwise(
    draw: st.DrawFn, budget: int, kind: Any, oracle: Any, **options: st.SearchStrategy[Any]
) -> Problem:
    """A smooth activation, over numbers from well within its bend to far outside."""
    chosen = {name: draw(values) for name, values in options.items()}
    x = normals(draw(seeds), *draw(shapes(budget)), scale=draw(st.sampled_from([0.1, 1.0, 4.0])))
    return Problem(kind(**chosen), (x,), lambda s, x: oracle(x, *chosen.values()))


def gelu(x: Host) -> Host:
    """x Φ(x), by erfc: with 1 + erf, as in tests/oracles.py, nothing is left of it at -7."""
    values = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.ravel().tolist()]
    return np.reshape(values, x.shape)


def gelu_tanh(x: Host) -> Host:
    """x (1 + tanh u) / 2 as x / (1 + e^-2u), for the same reason."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    values = [v / (1 + math.exp(-2 * w)) for v, w in zip(x.ravel(), u.ravel(), strict=True)]
    return np.reshape(values, x.shape)


@st.composite
def rectifier(
    draw: st.DrawFn, budget: int, kind: Any, oracle: Any, **options: st.SearchStrategy[Any]
) -> Problem:
    """A straight line on either side of 0, with slopes that are dyadic."""
    chosen = {name: draw(values) for name, values in options.items()}
    x = off_zero(draw(seeds), *draw(shapes(budget)))
    return Problem(kind(**chosen), (x,), lambda s, x: oracle(x, *chosen.values()), KINKED, True)


@st.composite
def prelu(draw: st.DrawFn, budget: int) -> Problem:
    shape = draw(shapes(budget, 2))
    channels = draw(st.sampled_from([1, shape[1]]))
    return Problem(
        nn.PReLU(channels, dtype="float64"),
        (off_zero(draw(seeds), *shape),),
        lambda s, x: oracles.prelu(x, s["weight"]),
        KINKED,
        True,
    )


@st.composite
def bent(draw: st.DrawFn, budget: int, kind: Any, oracle: Any, **options: Any) -> Problem:
    """A curve with a kink at 0, which is kept out of reach."""
    chosen = {name: draw(values) for name, values in options.items()}
    x = off_zero(draw(seeds), *draw(shapes(budget)))
    return Problem(kind(**chosen), (x,), lambda s, x: oracle(x, *chosen.values()))


def logits(draw: st.DrawFn, rng: np.random.Generator, *shape: int) -> Host:
    """Near 0, or so far from it that their exponentials are no float32 numbers."""
    x = normals(rng, *shape, scale=draw(st.sampled_from([1.0, 5.0])))
    return (x + draw(st.sampled_from([0.0, 200.0, -200.0]))).astype(np.float32).astype(float)


@st.composite
def softmax(draw: st.DrawFn, budget: int, kind: Any, oracle: Any) -> Problem:
    shape = draw(shapes(budget, 1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    x = logits(draw, draw(seeds), *shape)
    return Problem(
        kind(axis=axis), (x,), lambda s, x: oracle(x, axis), by_sample=axis % len(shape) != 0
    )


# --- layers in a row ----------------------------------------------------------------------------


@st.composite
def sequential(draw: st.DrawFn, budget: int) -> Problem:
    """A convolution with all, some or none of what may follow it and be computed with it, at kinks
    and ties, too, where the difference quotient of the definition shows nothing.
    """
    w, bias = draw(windows(min(budget, 20_000), lambda k: k)), draw(st.booleans())
    layers = [nn.Conv2d(w.shape[1], w.out_channels, *w.window, bias, dtype="float64", rng=0)]
    steps = [lambda s, x: oracles.conv2d(x, s["0.weight"], s.get("0.bias"), *w.window[1:])]
    if draw(st.booleans()):
        layers.append(nn.ReLU())
        steps.append(lambda s, x: oracles.relu(x))
    rows, columns = primitives.output_size(w.shape[2:], *w.window)
    pool = draw(st.tuples(st.integers(1, min(rows, 3)), st.integers(1, min(columns, 3))))
    if draw(st.booleans()):
        layers.append(nn.MaxPool2d(pool))
        steps.append(lambda s, x: oracles.max_pool2d(x, pool, pool, (0, 0)))
    if draw(st.booleans()):
        layers.append(nn.Flatten())
        steps.append(lambda s, x: oracles.flatten(x))
    return Problem(
        nn.Sequential(*layers),
        (quarters(draw(seeds), *w.shape),),
        lambda s, x: reduce(lambda x, step: step(s, x), steps, x),
        exact=True,
    )


# --- recurrent layers ----------------------------------------------------------------------------


@st.composite
def recurrent(draw: st.DrawFn, budget: int, kind: Any, cells: dict[str, Any]) -> Problem:
    gates, options = kind.gates, {}
    name = draw(st.sampled_from(list(cells)))
    if len(cells) > 1:
        options["nonlinearity"] = name
    layers, both, bias = draw(st.integers(1, 2)), draw(st.booleans()), draw(st.booleans())
    # A step takes each gate a row of weights for the input, and one for the state.
    budget //= 4 * gates * layers * (1 + both)
    n, steps, features, hidden = sizes(
        draw, budget, batches, st.integers(1, 6), few, st.integers(1, 6)
    )
    return Problem(
        kind(
            *(features, hidden, layers),
            **options,
            bias=bias,
            bidirectional=both,
            dtype="float64",
            rng=0,
        ),
        (normals(draw(seeds), n, steps, features),),
        lambda s, x: oracles.recurrent(cells[name], x, s)[0],
        kinks=name == "relu",
    )


# --- losses --------------------------------------------------------------------------------------

factors = st.sampled_from([1.0, 0.5, 2.0, 1 / 3])
reductions = st.sampled_from(["mean", "sum", "batchmean"])


@st.composite
def regression_loss(draw: st.DrawFn, budget: int, kind: Any, oracle: Any, *more: Any) -> Problem:
    """Differences of odd eighths, at least ⅛ from the kinks of |d| and, with a delta that is a
    multiple of ¼, from those of Huber's.
    """
    chosen = [draw(strategy) for strategy in more]
    reduction, factor, rng = draw(reductions), draw(factors), draw(seeds)
    y = quarters(rng, *draw(shapes(budget)))
    loss = kind(reduction, factor=factor, **dict(zip(("delta",), chosen, strict=False)))
    return Problem(
        loss,
        (y, y + quarters(rng, *y.shape) + 0.125),
        regression(oracle, *chosen, reduction, factor=factor),
        KINKED,
        exact=is_dyadic(loss.scale(y)),
    )


@st.composite
def bce_with_logits(draw: st.DrawFn, budget: int) -> Problem:
    rng, reduction = draw(seeds), draw(st.sampled_from(["mean", "sum"]))
    shape = draw(shapes(budget))
    x = normals(rng, *shape, scale=2.0)
    target = (rng.integers(-4, 9, shape) / 4).clip(0, 1)  # many are 0, or 1
    weight: Any = draw(st.sampled_from([1.0, 2.5, 0.0]))
    if draw(st.booleans()) and len(shape) > 1:
        weight = rng.integers(0, 9, shape[-1:]) / 4
    oracle = regression(oracles.binary_cross_entropy, weight, reduction)
    return Problem(Weighted(reduction, weight), (x, target), oracle)


class Weighted(nn.Loss):
    """BCEWithLogitsLoss with a weight that follows its predictions' dtype."""

    def __init__(self, reduction: str, pos_weight: Any) -> None:
        self.reduction, self.pos_weight = reduction, pos_weight

    def __call__(self, prediction: Any, target: Any) -> Any:
        weight = self.pos_weight
        if not isinstance(weight, float):
            weight = weight.astype(prediction.dtype)
        return nn.BCEWithLogitsLoss(self.reduction, pos_weight=weight)(prediction, target)


@st.composite
def cross_entropy(
    draw: st.DrawFn, budget: int, kind: Any, oracle: Any, *, penalties: Any = None
) -> Problem:
    n, classes = sizes(draw, budget, batches, st.integers(1, 20))
    rng, reduction = draw(seeds), draw(st.sampled_from(["mean", "sum"]))
    z = logits(draw, rng, n, classes)
    dtype = draw(st.sampled_from(["int8", "uint8", "int16", "int32", "int64", "uint64"]))
    target = rng.integers(0, classes, n).astype(dtype)
    if penalties is not None:
        j = draw(penalties)
        return Problem(kind(reduction, penalty=j), (z, target), regression(oracle, j, reduction))
    if draw(st.booleans()):
        target = (rng.integers(0, 5, (n, classes)) / 4).astype(float)  # need not sum to 1
    return Problem(kind(reduction), (z, target), regression(oracle, reduction))


# --- the table -----------------------------------------------------------------------------------


@st.composite
def from_the_table(draw: st.DrawFn, budget: int, name: str) -> Problem:
    """A case of the table with another number of samples, drawn from those it has."""
    case = draw(st.sampled_from([case for case in CASES if case.name == name]))
    samples = case.inputs()
    which = draw(seeds).integers(0, len(samples[0]), draw(st.integers(1, 9)))
    inputs = tuple(x[which] for x in samples)
    return Problem(case.make(), inputs, case.oracle, by_sample=False, kinks=True)


dyadic = st.integers(-8, 8).map(lambda k: k / 8)
constants = st.floats(0.125, 2.0, width=32)
TABLE: dict[str, Problems] = {
    "Linear": linear,
    "Conv2d": conv2d,
    "PartialConv2d": partial_conv2d,
    "MaxPool2d": max_pool2d,
    "AvgPool2d": avg_pool2d,
    "Subsample2d": subsample2d,
    "Sequential": sequential,
    "RNN": partial(
        recurrent, kind=nn.RNN, cells={"tanh": oracles.elman_cell, "relu": oracles.relu_cell}
    ),
    "LSTM": partial(recurrent, kind=nn.LSTM, cells={"lstm": oracles.lstm_cell}),
    "GRU": partial(recurrent, kind=nn.GRU, cells={"gru": oracles.gru_cell}),
    "Last": partial(rearranged, make=nn.Last, oracle=lambda x: x[:, -1], least=2),
    "Flatten": partial(rearranged, make=nn.Flatten, oracle=oracles.flatten),
    "Negation": partial(rearranged, make=lenet1998.Negation, oracle=lambda x: 0.0 - x),
    "Dropout": dropout,
    "ReLU": partial(rectifier, kind=nn.ReLU, oracle=oracles.relu),
    "LeakyReLU": partial(
        rectifier, kind=nn.LeakyReLU, oracle=oracles.leaky_relu, negative_slope=dyadic
    ),
    "PReLU": prelu,
    "ELU": partial(bent, kind=nn.ELU, oracle=oracles.elu, alpha=constants),
    "SELU": partial(bent, kind=nn.SELU, oracle=oracles.selu),
    "GELU": partial(elementwise, kind=nn.GELU, oracle=gelu),
    "GELU by tanh": partial(
        elementwise,
        kind=nn.GELU,
        oracle=lambda x, _: gelu_tanh(x),
        approximate=st.just("tanh"),
    ),
    "SiLU": partial(elementwise, kind=nn.SiLU, oracle=oracles.silu),
    "Softplus": partial(elementwise, kind=nn.Softplus, oracle=oracles.softplus, beta=constants),
    "Sigmoid": partial(elementwise, kind=nn.Sigmoid, oracle=oracles.sigmoid),
    "Tanh": partial(elementwise, kind=nn.Tanh, oracle=oracles.tanh),
    "ScaledTanh": partial(
        elementwise,
        kind=nn.ScaledTanh,
        oracle=oracles.scaled_tanh,
        amplitude=constants,
        slope=constants,
    ),
    "EuclideanRBF": euclidean_rbf,
    "Softmax": partial(softmax, kind=nn.Softmax, oracle=oracles.softmax),
    "LogSoftmax": partial(softmax, kind=nn.LogSoftmax, oracle=oracles.log_softmax),
    "MSELoss": partial(regression_loss, kind=nn.MSELoss, oracle=oracles.mse_loss),
    "L1Loss": partial(regression_loss, kind=nn.L1Loss, oracle=oracles.l1_loss),
    "HuberLoss": lambda budget: regression_loss(
        budget, nn.HuberLoss, oracles.huber_loss, st.integers(1, 8).map(lambda k: k / 4)
    ),
    "BCEWithLogitsLoss": bce_with_logits,
    "CrossEntropyLoss": partial(
        cross_entropy, kind=nn.CrossEntropyLoss, oracle=oracles.cross_entropy
    ),
    "RejectingCrossEntropyLoss": partial(
        cross_entropy,
        kind=lenet1998.RejectingCrossEntropyLoss,
        oracle=oracles.rejecting_cross_entropy,
        penalties=st.sampled_from([1.0, 0.0, -0.5]),
    ),
}
BY_DEFAULT = {
    case.name: partial(from_the_table, name=case.name) for case in CASES if case.name not in TABLE
}
TABLE |= BY_DEFAULT
