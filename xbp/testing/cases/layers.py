"""The table of layers, with one line for each. Families of layers have their own files.

``Layer(name, oracle, calls)``: the public name; the definition, a function of the layer's state,
its inputs and the constructor's arguments; and constructor arguments with inputs. The other fields
of a line are described in `xbp.testing.cases.case`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from xbp import initializers, nn
from xbp.models import lenet1998, resnet
from xbp.testing import oracles
from xbp.testing.cases.arrays import Host, away_from_zero, ends, sparse, wide
from xbp.testing.cases.case import Layer, at_zero, fed, within
from xbp.testing.cases.containers import CONTAINERS
from xbp.testing.cases.recurrent import RECURRENT
from xbp.testing.cases.sequences import SEQUENCES
from xbp.testing.cases.windowed import WINDOWED, pair

# --- definitions, as functions of state, input and constructor arguments --------------------------


def entrywise(function: Callable[..., Host]) -> Callable[..., Host]:
    """The definition of a layer without state: `function` of x and the constructor's arguments."""
    return lambda state, x, *arguments, **options: function(x, *arguments, **options)


def linear(s: Any, x: Host, features: int, out: int, bias: bool = True) -> Host:
    y = oracles.linear(x.reshape(-1, features), s["weight"], s.get("bias"))
    return y.reshape(*x.shape[:-1], out)


def partial_conv2d(
    s: Any, x: Host, table: Any, k: Any, stride: Any = 1, padding: Any = 0, *more: Any, **init: Any
) -> Host:
    return oracles.partial_conv2d(x, s["weight"], s.get("bias"), table, pair(stride), pair(padding))


def subsample2d(
    s: Any, x: Host, channels: int, k: Any = 2, stride: Any = None, padding: Any = 0, **init: Any
) -> Host:
    window = pair(k), pair(stride or k), pair(padding)
    return oracles.subsample2d(x, s["weight"], s["bias"], *window)


def euclidean_rbf(s: Any, x: Host, codes: Any) -> Host:
    y = oracles.euclidean_rbf(x.reshape(-1, x.shape[-1]), s["codes"])
    return y.reshape(*x.shape[:-1], len(codes))


def dropout(s: Any, x: Host, p: float = 0.5) -> Host:
    """Dropout with seed 0, its mask drawn word by word from the plain-integer Philox."""
    key = np.random.SeedSequence(0).generate_state(2, np.uint32)
    y = np.zeros(x.size)
    for i, value in enumerate(x.ravel()):
        block = oracles.philox4x32((i // 4, 0, 0, 0), (int(key[0]), int(key[1])))
        y[i] = value / (1 - p) if block[i % 4] >= p * 2**32 else 0.0
    return y.reshape(x.shape)


def gelu(x: Host, approximate: str = "none") -> Host:
    return oracles.gelu_tanh(x) if approximate == "tanh" else oracles.gelu(x)


def leaky_relu(x: Host, negative_slope: float = 0.01) -> Host:
    return oracles.leaky_relu(x, negative_slope)


def scaled_tanh(x: Host, amplitude: float = 1.7159, slope: float = 2 / 3) -> Host:
    return oracles.scaled_tanh(x, amplitude, slope)


def batch_norm(
    s: Any, x: Host, channels: int, eps: float = 1e-5, momentum: Any = 0.1, *more: Any, **rest: Any
) -> Host:
    return oracles.batch_norm(s, x, eps)


def batch_norm_by_statistics(
    s: Any, x: Host, channels: int, eps: float = 1e-5, *more: Any, **rest: Any
) -> Host:
    return oracles.batch_norm(s, x, eps, training=False)


def layer_norm(s: Any, x: Host, shape: Any, eps: float = 1e-5, *more: Any, **rest: Any) -> Host:
    return oracles.layer_norm(s, x, axes_of(shape), eps)


def rms_norm(s: Any, x: Host, shape: Any, eps: Any = None, *more: Any, **rest: Any) -> Host:
    return oracles.rms_norm(s, x, axes_of(shape), 2.0**-52 if eps is None else eps)


def axes_of(shape: Any) -> tuple[int, ...]:
    return tuple(shape) if isinstance(shape, tuple | list) else (shape,)


def group_norm(
    s: Any, x: Host, groups: int, channels: int, eps: float = 1e-5, *more: Any, **rest: Any
) -> Host:
    return oracles.group_norm(s, x, groups, eps)


def perturbed(kind: Callable[..., nn.Layer]) -> Callable[..., nn.Layer]:
    """A constructor of layers with random parameters and statistics, in place of ones and zeros."""

    @wraps(kind)
    def make(*arguments: Any, **options: Any) -> nn.Layer:
        layer, rng = kind(*arguments, **options), np.random.default_rng(6)
        for _, part in (*layer.named_parameters(), *layer.named_buffers()):
            if part.data.ndim:
                part.assign(rng.uniform(0.5, 1.5, part.shape))
        return layer

    return make


def network(s: Any, x: Host) -> Host:
    """The definition of `small_network` in training."""
    return network_head(s, dropout({}, network_body(s, x), 0.5))


def subsample(s: Any, x: Host, before: int, after: int, stride: int = 2) -> Host:
    y = np.zeros((len(x), after, -(-x.shape[2] // stride), -(-x.shape[3] // stride)), x.dtype)
    for i, j in np.ndindex(y.shape[2:]):
        y[:, :before, i, j] = x[:, :, i * stride, j * stride]
    return y


def network_body(s: Any, x: Host) -> Host:
    z = oracles.conv2d(x, s["0.weight"], s["0.bias"], (1, 1), (0, 0))
    return oracles.flatten(oracles.max_pool2d(oracles.relu(z), (2, 2), (2, 2), (0, 0)))


def network_head(s: Any, z: Host) -> Host:
    return oracles.softmax(oracles.linear(z, s["5.weight"], s["5.bias"]), -1)


def small_network(**draw: Any) -> nn.Layer:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, **draw), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout()),
        *(nn.Linear(12, 4, **draw), nn.Softmax()),
    )


# --- the table ------------------------------------------------------------------------------------

CONNECTIONS = [[1, 0, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]]
"""Which of 3 input maps each of 4 output maps sees."""

EIGHTHS = [k / 8 for k in range(-8, 9)]
CONSTANTS = [0.125, 1 / 3, 0.5, 1.0, 1.25, 2.0]

SMOOTH = [fed((4, 7)), fed(wide(5, 6)), fed(ends(5, 6))]
"""Inputs of an entrywise function without kinks."""
BENT = [fed((4, 7)), fed(sparse(2, 3, 5, 3)), fed(away_from_zero(4, 6)), fed(ends(5, 6))]
"""Inputs of an entrywise function with a kink at 0."""

LAYERS: list[Layer] = [
    Layer("Linear", linear, [
        fed((4, 5), 5, 3),
        fed((7, 5), 5, 1, bias=False),
        fed((2, 3, 4), 4, 3),
        fed((33, 257), 257, 65),
        fed(ends(16, 33), 33, 65),
    ]),
    *WINDOWED,
    *RECURRENT,
    *SEQUENCES,
    Layer("LastTimeStep", entrywise(lambda x: x[:, -1]), [fed((3, 4, 2))], axes=2, exact=True),
    Layer("Flatten", entrywise(oracles.flatten), [fed((3, 2, 4, 5))], axes=1, exact=True),
    Layer("Dropout", dropout, [
        fed((3, 7), 0.3),
        fed((5, 3, 7, 5)),
        fed((2, 3, 3, 3), 0.5),
        fed((3, 7), 0.0),
    ], inference=lambda s, x, p=0.5: x),
    Layer("ReLU", entrywise(oracles.relu), [
        *BENT, fed(sparse(5, 2, 67, 59)), fed(ends(5, 2, 67, 59)),
    ], kinks=at_zero, axes=1, exact=True),
    Layer("LeakyReLU", entrywise(leaky_relu), [
        *BENT, fed(away_from_zero(4, 6), 0.2),
    ], kinks=at_zero, exact=True, drawn=[{"negative_slope": EIGHTHS}]),
    Layer("ELU", entrywise(oracles.elu), [
        *BENT, fed(away_from_zero(4, 6), 0.3),
    ], kinks=at_zero, drawn=[{"alpha": CONSTANTS}]),
    Layer("SELU", entrywise(oracles.selu), BENT, kinks=at_zero),
    Layer("PReLU", lambda s, x, *arguments, **options: oracles.prelu(x, s["weight"]), [
        fed(sparse(4, 7)),
        fed((2, 3, 5, 3), 3, init=-0.5),
        fed(away_from_zero(4, 6)),
        fed(away_from_zero(2, 3, 2, 2), 3, init=-0.5),
    ], kinks=at_zero),
    Layer("GELU", entrywise(gelu), [*SMOOTH, fed((4, 7), "tanh")]),
    Layer("SiLU", entrywise(oracles.silu), SMOOTH),
    Layer("Softplus", entrywise(oracles.softplus), [*SMOOTH, fed((4, 7), 3.0)],
          drawn=[{"beta": CONSTANTS}]),
    Layer("Sigmoid", entrywise(oracles.sigmoid), SMOOTH),
    Layer("Tanh", entrywise(oracles.tanh), [*SMOOTH, fed((2, 3, 4, 2))], axes=1),
    Layer("ScaledTanh", entrywise(scaled_tanh), [*SMOOTH, fed((4, 7), 0.5, 3.0)],
          drawn=[{"amplitude": CONSTANTS, "slope": CONSTANTS}]),
    Layer("BatchNorm1d", batch_norm, [
        fed((4, 3, 5), 3),
        fed((2, 3, 67), 3, momentum=None, affine=False),
        fed((4, 3, 5), 3, eps=0.1, track_running_stats=False),
        fed(ends(5, 3, 6), 3),
    ], inference=batch_norm_by_statistics, make=perturbed(nn.BatchNorm1d)),
    Layer("BatchNorm2d", batch_norm, [
        fed((2, 3, 5, 4), 3),
        fed((3, 2, 5, 4), 2, 0.1, 0.3),
        fed(ends(5, 2, 6, 5), 2),
    ], inference=batch_norm_by_statistics, make=perturbed(nn.BatchNorm2d)),
    Layer("LayerNorm", layer_norm, [
        fed((2, 3, 5), 5),
        fed((4, 3, 67), (3, 67), 0.1, bias=False),
        fed((2, 4), [4], elementwise_affine=False),
        fed(ends(5, 2, 6, 5), 5),
    ], make=perturbed(nn.LayerNorm)),
    Layer("RMSNorm", rms_norm, [
        fed((2, 3, 5), 5),
        fed((4, 3, 67), (3, 67), 0.1),
        fed((2, 4), 4, elementwise_affine=False),
        fed(ends(5, 2, 6, 5), 5),
    ], make=perturbed(nn.RMSNorm)),
    Layer("GroupNorm", group_norm, [
        fed((3, 4, 5, 2), 2, 4),
        fed((3, 4), 1, 4, 0.1),
        fed((3, 4, 5), 2, 4, affine=False),
        fed(ends(5, 2, 6, 5), 1, 2),
    ], make=perturbed(nn.GroupNorm)),
    Layer("Softmax", entrywise(lambda x, axis=-1: oracles.softmax(x, axis)), [
        *SMOOTH, fed((2, 3, 5, 2), 1),
    ]),
    Layer("LogSoftmax", entrywise(lambda x, axis=-1: oracles.log_softmax(x, axis)), [
        *SMOOTH, fed((2, 3, 5, 2), 1),
    ]),
    Layer("Sequential", network, [fed((3, 2, 6, 7))], make=small_network,
          inference=lambda s, x: network_head(s, network_body(s, x)), kinks=within,
          title="Sequential(Conv2d, ReLU, MaxPool2d, Flatten, Dropout, Linear, Softmax)"),
    *CONTAINERS,
    Layer("PartialConv2d", partial_conv2d, [
        fed((2, 3, 5, 6), CONNECTIONS, 3),
        fed((2, 3, 7, 6), CONNECTIONS, (3, 2), (2, 1), (1, 2), False),
        fed((2, 3, 5, 6), CONNECTIONS, 3, bias_init=initializers.normal),
    ], room=lenet1998),
    Layer("Subsample2d", subsample2d, [
        fed((2, 3, 4, 6), 3),
        fed((2, 2, 5, 6), 2, (3, 2), (1, 2), (1, 1)),
        fed((2, 3, 4, 6), 3, bias_init=initializers.normal),
    ], room=lenet1998),
    Layer("EuclideanRBF", euclidean_rbf, [
        fed((4, 3), [[1, -1, 1], [0.5, 1, 2]]),
        fed((4, 5, 2), [[1, -1]] * 3),
    ], room=lenet1998),
    Layer("Negation", entrywise(lambda x: 0.0 - x), [fed((4, 7))], room=lenet1998,
          exact=True),
    Layer("Subsample", subsample, [
        fed((2, 3, 5, 6), 3, 7),
        fed((3, 2, 7, 4), 2, 2, 3),
    ], room=resnet),
]  # fmt: skip
"""All layers, in the order of certificates and of docs/onnx.md."""
