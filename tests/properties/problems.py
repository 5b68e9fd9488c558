"""For each layer and loss of the table, problems with drawn options, shapes and numbers.

A line says what may be drawn. Options that depend on one another, such as those of images and
windows, have their own strategies here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
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
from xbp.testing.cases import LAYERS, LOSSES, Call, Case, Line
from xbp.testing.cases.case import at_zero
from xbp.testing.cases.layers import dropout as dropout_oracle
from xbp.testing.cases.windowed import avg_pool1d as avg_pool1d_oracle
from xbp.testing.cases.windowed import conv1d as conv1d_oracle
from xbp.testing.cases.windowed import max_pool1d as max_pool1d_oracle
from xbp.testing.cases.windowed import upsample as upsample_oracle

SMOOTH = 2.0**-17
"""The step of a central difference where its error, of h² for truncation and ε/h for rounding, is
least (oracles.numeric_gradient); a relative error of 1e-10."""
KINKED = 2.0**-5
"""A step so short that no quarter reaches the next: one entry moves by at most 2h = 1/16, and two
by 1/8 from each other. For what is a polynomial of degree 2 between its kinks a difference
quotient of any step is exact; where there are no kinks, the step is 1."""


class Problem(NamedTuple):
    """A layer or loss in float64, its inputs, and its definition."""

    subject: Any
    inputs: tuple[Host, ...]  # of a loss with its target
    oracle: Callable[..., Any]  # (state_dict, *inputs) → the output or value
    step: float = SMOOTH  # of a difference quotient of the oracle
    exact: bool = False  # whether nothing is rounded; then all numbers are small dyadic ones
    by_sample: bool = True  # whether each image has its own output
    # Whether inference is the training forward, or the identity; None if it is something else,
    inference: bool | None = True  # which tests/nn/test_catalogue.py compares with its definition.
    kinks: bool = False  # whether a difference quotient may meet one
    scale: float = 0.0  # of numbers whose difference the output may be


def regression(oracle: Any, *arguments: Any, **keywords: Any) -> Any:
    return lambda s, y, t: oracle(y, t, *arguments, **keywords)


Problems = Callable[[int], st.SearchStrategy[Problem]]
"""A strategy, as a function of the number of multiplications in an oracle."""


few = st.integers(1, 5)


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
def conv2d_with_options(draw: st.DrawFn, budget: int) -> Problem:
    """Dilation, groups, depthwise convolutions, or padding="same"."""
    w, bias = draw(windows(budget // 2, lambda k: k, 3)), draw(st.booleans())
    n, each, *size = w.shape
    groups, dilation = draw(st.integers(1, 3)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    channels, out = groups * min(each, 3), groups * w.out_channels
    options = {"dilation": dilation, "groups": groups}
    if draw(st.booleans()):
        layer = nn.Conv2d(channels, out, w.kernel, 1, "same", bias, **options, dtype="float64")
        definition = partial(oracles.conv2d_same, **options)
    else:  # images large enough for the wider window
        reach = [(d - 1) * (k - 1) for d, k in zip(dilation, w.kernel, strict=True)]
        size = [length + more for length, more in zip(size, reach, strict=True)]
        layer = nn.Conv2d(channels, out, *w.window, bias, **options, dtype="float64")
        definition = partial(oracles.conv2d, stride=w.stride, padding=w.padding, **options)
    return Problem(
        layer,
        (quarters(draw(seeds), n, channels, *size),),
        lambda s, x: definition(x, s["weight"], s.get("bias")),
        step=1.0,
        exact=True,
    )


@st.composite
def conv_transpose2d(draw: st.DrawFn, budget: int) -> Problem:
    small, positive = st.integers(0, 2), st.integers(1, 3)
    n, c, o, *rest = sizes(draw, budget // 4, batches, few, few, few, few, few, few)
    size, kernel = rest[:2], (rest[2], rest[3])
    stride, dilation = draw(st.tuples(positive, positive)), draw(st.tuples(positive, positive))
    padding, more = draw(st.tuples(small, small)), draw(st.tuples(small, small))
    padding = tuple(
        min(p, d * (k - 1) // 2) for p, d, k in zip(padding, dilation, kernel, strict=True)
    )
    more = tuple(min(m, max(s, d) - 1) for m, s, d in zip(more, stride, dilation, strict=True))
    groups, bias = draw(positive), draw(st.booleans())
    window = stride, padding, more
    return Problem(
        nn.ConvTranspose2d(
            *(groups * c, groups * o, kernel, *window, groups, bias, dilation), dtype="float64"
        ),
        (quarters(draw(seeds), n, groups * c, *size),),
        lambda s, x: oracles.conv_transpose2d(
            x, s["weight"], s.get("bias"), *window, dilation, groups
        ),
        step=1.0,
        exact=True,
    )


@st.composite
def conv1d(draw: st.DrawFn, budget: int) -> Problem:
    """Kernels, strides and remainders as for images, along one axis."""
    w, bias = draw(windows(budget, lambda k: k, 6)), draw(st.booleans())
    arguments = (w.shape[1], w.out_channels, w.kernel[1], w.stride[1], w.padding[1], bias)
    return Problem(
        nn.Conv1d(*arguments, dtype="float64", rng=0),
        (quarters(draw(seeds), *w.shape[:2], w.shape[3]),),
        lambda s, x: conv1d_oracle(s, x, *arguments),
        step=1.0,
        exact=True,
    )


@st.composite
def pool1d(draw: st.DrawFn, budget: int, kind: Any, oracle: Any) -> Problem:
    w = draw(windows(budget, lambda k: k // 2, 1))
    arguments = (w.kernel[1], w.stride[1], w.padding[1])
    largest = kind is nn.MaxPool1d
    x = (distinct if largest else quarters)(draw(seeds), *w.shape[:2], 1, w.shape[3])
    return Problem(
        kind(*arguments),
        (x[:, :, 0],),
        lambda s, x: oracle(s, x, *arguments),
        step=KINKED if largest else 1.0,
        exact=largest or is_dyadic(w.kernel[1]),
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
def images_shape(draw: st.DrawFn, budget: int, least: int = 1) -> tuple[int, ...]:
    few, pixels = st.integers(1, 5), st.integers(least, 7)
    return (*sizes(draw, budget // 50, batches, few), draw(pixels), draw(pixels))


@st.composite
def adaptive_avg_pool2d(draw: st.DrawFn, budget: int) -> Problem:
    shape = draw(images_shape(budget))
    size = draw(st.tuples(*[st.none() | st.integers(1, 8)] * 2))
    height, width = (old if new is None else new for old, new in zip(shape[2:], size, strict=True))
    return Problem(
        nn.AdaptiveAvgPool2d(size),
        (quarters(draw(seeds), *shape),),
        lambda s, x: oracles.adaptive_avg_pool2d(x, (height, width)),
        step=1.0,
    )


@st.composite
def upsample(draw: st.DrawFn, budget: int) -> Problem:
    """Larger or smaller sizes on each axis."""
    shape = draw(images_shape(budget, 2))
    options: dict[str, Any] = {"size": draw(st.tuples(*[st.integers(1, 8)] * 2))}
    if draw(st.booleans()):
        options = {"scale_factor": draw(st.tuples(*[st.sampled_from([0.5, 0.7, 1.5, 2.0])] * 2))}
    if draw(st.booleans()):
        options |= {"mode": "bilinear", "align_corners": draw(st.booleans())}
    return Problem(
        nn.Upsample(**options),
        (quarters(draw(seeds), *shape),),
        lambda s, x: upsample_oracle(s, x, **options),
        step=1.0,
    )


@st.composite
def zero_pad2d(draw: st.DrawFn, budget: int) -> Problem:
    padding = draw(st.tuples(*[st.integers(-2, 3)] * 4))
    return Problem(
        nn.ZeroPad2d(padding),
        (quarters(draw(seeds), *draw(images_shape(budget, 5))),),
        lambda s, x: oracles.zero_pad2d(x, *padding),
        step=1.0,
        exact=True,
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


def logits(draw: st.DrawFn, rng: np.random.Generator, *shape: int) -> Host:
    """Numbers near 0, or so far from it that their exponentials are beyond float32."""
    x = normals(rng, *shape, scale=draw(st.sampled_from([1.0, 5.0])))
    return (x + draw(st.sampled_from([0.0, 200.0, -200.0]))).astype(np.float32).astype(float)


@st.composite
def softmax(draw: st.DrawFn, budget: int, kind: Any, oracle: Any) -> Problem:
    shape = draw(shapes(budget, 1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if draw(st.booleans()):  # long enough for a vector of the kernels, along the last axis
        shape, axis = (*shape[:-1][-1:], draw(st.integers(16, 40))), -1
    x = logits(draw, draw(seeds), *shape)
    return Problem(
        kind(axis=axis), (x,), lambda s, x: oracle(x, axis), by_sample=axis % len(shape) != 0
    )


# --- normalization ------------------------------------------------------------------------------

AMPLE = st.sampled_from([0.1, 1.0])
"""An ε so large that a difference quotient is accurate even for almost equal numbers."""


@st.composite
def batch_norm(draw: st.DrawFn, budget: int, kind: Any, axes: tuple[int, ...]) -> Problem:
    """Numbers around 0 or far from it; at least two per channel."""
    shape = draw(st.sampled_from(axes).flatmap(lambda n: shapes(budget, n, n)))
    if math.prod(shape) < 2 * shape[1]:
        shape = (2, *shape[1:])
    rng, eps, affine = draw(seeds), draw(AMPLE), draw(st.booleans())
    options = {"momentum": draw(st.sampled_from([0.1, 1.0, None])), "affine": affine}
    tracked = draw(st.booleans())
    return Problem(
        kind(shape[1], eps, **options, track_running_stats=tracked, dtype="float64"),
        (normals(rng, *shape) + draw(st.sampled_from([0, 50])),),
        lambda s, x: oracles.batch_norm(s, x, eps),
        by_sample=False,
        inference=None if tracked else True,
    )


@st.composite
def layer_norm(draw: st.DrawFn, budget: int) -> Problem:
    shape = draw(shapes(budget, 2))
    last = shape[draw(st.integers(1, len(shape) - 1)) :]
    eps, affine, bias = draw(AMPLE), draw(st.booleans()), draw(st.booleans())
    return Problem(
        nn.LayerNorm(last, eps, affine, bias, dtype="float64"),
        (normals(draw(seeds), *shape) + draw(st.sampled_from([0, 50])),),
        lambda s, x: oracles.layer_norm(s, x, last, eps),
    )


@st.composite
def rms_norm(draw: st.DrawFn, budget: int) -> Problem:
    shape = draw(shapes(budget, 2))
    last = shape[draw(st.integers(1, len(shape) - 1)) :]
    eps, affine = draw(AMPLE), draw(st.booleans())
    return Problem(
        nn.RMSNorm(last, eps, affine, dtype="float64"),
        (normals(draw(seeds), *shape),),
        lambda s, x: oracles.rms_norm(s, x, last, eps),
    )


@st.composite
def group_norm(draw: st.DrawFn, budget: int) -> Problem:
    n, size, *pixels = draw(shapes(budget, 2))
    groups, eps, affine = draw(st.integers(1, 4)), draw(AMPLE), draw(st.booleans())
    return Problem(
        nn.GroupNorm(groups, groups * size, eps, affine, dtype="float64"),
        (normals(draw(seeds), n, groups * size, *pixels) + draw(st.sampled_from([0, 50])),),
        lambda s, x: oracles.group_norm(s, x, groups, eps),
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
    # In a step each gate has a row of weights for the input and one for the state.
    budget //= 4 * gates * layers * (1 + both)
    n, steps, features, hidden = sizes(
        draw, budget, batches, st.integers(1, 6), few, st.integers(1, 6)
    )
    cell, padded = cells[name], draw(st.booleans())
    layer = kind(
        *(features, hidden, layers),
        **options,
        bias=bias,
        bidirectional=both,
        dtype="float64",
        rng=0,
    )
    return Problem(
        Padded(layer) if padded else layer,
        (normals(draw(seeds), n, steps, features),),
        (lambda s, x: without_padding(cell, s, x, hidden))
        if padded
        else (lambda s, x: oracles.recurrent(cell, x, s)[0]),
        kinks=padded or name == "relu",
        scale=float(name == "gru"),  # (1 - z) n, where z may be nearly 1
    )


class Padded(nn.Layer):
    """A recurrent layer for which a time step is padding if its first number is positive."""

    def __init__(self, layer: nn.Recurrent) -> None:
        self.layer = layer

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        mask = x[:, :, 0] > 0
        (y, _), backward = self.layer.run(x, padding_mask=mask, training=training, rng=rng)
        return y, lambda dy: backward(dy)[0]


def without_padding(cell: Any, state: dict[str, Host], x: Host, hidden: int) -> Host:
    """The outputs of each sample without its padding, over which each direction repeats its own."""
    weights = {name.removeprefix("layer."): value for name, value in state.items()}
    made = []
    for sample in x:
        kept = sample[:, 0] <= 0
        y = oracles.recurrent(cell, sample[None, kept], weights)[0][0]
        zero = np.zeros((1, y.shape[1]))
        # The last step that was kept up to each one, and the first that is kept from it on.
        ahead = np.concatenate([zero, y])[np.cumsum(kept)]
        back = np.concatenate([y, zero])[np.cumsum(kept) - kept]
        made.append(np.concatenate([ahead[:, :hidden], back[:, hidden:]], axis=1))
    return np.stack(made)


# --- losses --------------------------------------------------------------------------------------


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
    """BCEWithLogitsLoss with a weight of its predictions' dtype."""

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
        target = (rng.integers(0, 5, (n, classes)) / 4).astype(float)  # with any sum
    return Problem(kind(reduction), (z, target), regression(oracle, reduction))


# --- the table -----------------------------------------------------------------------------------


@st.composite
def by_default(draw: st.DrawFn, budget: int, name: str) -> Problem:
    """Problems from the lines of `xbp.testing.cases`."""
    line = draw(st.sampled_from([line for line in LINES if line.name == name]))
    if line.least_axes:
        call, x = draw(calls(line)), draw(entries(budget, line))
    else:  # a case with another number of samples, drawn from its own
        call = draw(st.sampled_from([call for call in line.calls if Case(line, call).finite]))
        samples = line.inputs(call)
        which = draw(seeds).integers(0, len(samples[0]), draw(st.integers(1, 9)))
        x = tuple(x[which] for x in samples)
        if line.exact:
            x = tuple(np.round(4 * values) / 4 for values in x)
    case = Case(line, call)
    step = SMOOTH if not line.exact else KINKED if line.kinks or line.kind == "loss" else 1.0
    exact = line.exact and is_dyadic(getattr(case.make(), "scale", lambda y: 1.0)(x[0]))
    by_sample = bool(line.least_axes)
    kinks = not by_sample or (line.kind == "layer" and line.kinks not in (None, at_zero))
    inference = True if line.inference is None else None
    return Problem(case.make(), x, case.oracle, step, exact, by_sample, inference, kinks)


@st.composite
def calls(draw: st.DrawFn, line: Line) -> Call:
    """Options drawn from those of the line, or all arguments of one of its calls."""
    if not line.drawn:
        return draw(st.sampled_from(line.calls))
    values = draw(st.sampled_from(line.drawn))
    options = {name: draw(st.sampled_from(several)) for name, several in values.items()}
    return Call((), (), options, line.calls[0].target)


@st.composite
def entries(draw: st.DrawFn, budget: int, line: Line) -> tuple[Host, ...]:
    """An input of any shape: quarters where these are exact; at least ¼ from a kink at 0; else from
    well within a function's bend to far outside.

    The errors of a loss are odd eighths, at least ⅛ from the kinks of |d| and, with a delta that is
    a multiple of ¼, from those of Huber's.
    """
    rng, shape = draw(seeds), draw(shapes(budget, line.least_axes))
    if line.kind == "loss":
        y = quarters(rng, *shape)
        return y, y + quarters(rng, *shape) + 0.125
    if line.kinks is at_zero:
        return (off_zero(rng, *shape),)
    if line.exact:
        return (quarters(rng, *shape),)
    return (normals(rng, *shape, scale=draw(st.sampled_from([0.1, 1.0, 4.0]))),)


LINES = [line for line in (*LAYERS, *LOSSES) if line.oracle]
OWN: dict[str, Problems] = {
    "Linear": linear,
    "Conv2d": lambda budget: conv2d(budget) | conv2d_with_options(budget),
    "PartialConv2d": partial_conv2d,
    "MaxPool2d": max_pool2d,
    "AvgPool2d": avg_pool2d,
    "Conv1d": conv1d,
    "ConvTranspose2d": conv_transpose2d,
    "MaxPool1d": partial(pool1d, kind=nn.MaxPool1d, oracle=max_pool1d_oracle),
    "AvgPool1d": partial(pool1d, kind=nn.AvgPool1d, oracle=avg_pool1d_oracle),
    "AdaptiveAvgPool2d": adaptive_avg_pool2d,
    "Upsample": upsample,
    "ZeroPad2d": zero_pad2d,
    "Subsample2d": subsample2d,
    "Sequential": sequential,
    "RNN": partial(
        recurrent, kind=nn.RNN, cells={"tanh": oracles.elman_cell, "relu": oracles.relu_cell}
    ),
    "LSTM": partial(recurrent, kind=nn.LSTM, cells={"lstm": oracles.lstm_cell}),
    "GRU": partial(recurrent, kind=nn.GRU, cells={"gru": oracles.gru_cell}),
    "Dropout": dropout,
    "PReLU": prelu,
    "EuclideanRBF": euclidean_rbf,
    "BatchNorm1d": partial(batch_norm, kind=nn.BatchNorm1d, axes=(2, 3)),
    "BatchNorm2d": partial(batch_norm, kind=nn.BatchNorm2d, axes=(4,)),
    "LayerNorm": layer_norm,
    "RMSNorm": rms_norm,
    "GroupNorm": group_norm,
    "Softmax": partial(softmax, kind=nn.Softmax, oracle=oracles.softmax),
    "LogSoftmax": partial(softmax, kind=nn.LogSoftmax, oracle=oracles.log_softmax),
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
"""Classes whose sizes, options and shapes depend on one another."""

TABLE = {line.name: OWN.get(line.name, partial(by_default, name=line.name)) for line in LINES}
COUPLED = ("Dropout", "BatchNorm1d", "BatchNorm2d")
"""Layers whose output for a sample depends on its place in the batch, or on other samples."""
BY_SAMPLE = [
    name
    for name in TABLE
    if name not in COUPLED
    and (name in OWN or any(line.least_axes for line in LINES if line.name == name))
]
"""Layers and losses with an output for each sample alone."""
