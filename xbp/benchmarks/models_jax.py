"""The networks in JAX: functions of xbp's parameters by name, and of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
from jax import lax, nn
from jax import numpy as jnp

Parameters = dict[str, Any]


def dense(p: Parameters, x: Any, names: Sequence[str], activation: Any = nn.relu) -> Any:
    for name in names:
        x = linear(p, name, x)
        x = x if name == names[-1] else activation(x)
    return x


def linear(p: Parameters, name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def convolve(
    p: Parameters, name: str, x: Any, padding: int, stride: int = 1, dilation: int = 1
) -> Any:
    pads, weight = [(padding, padding)] * 2, p[f"{name}.weight"]
    window = {"rhs_dilation": (dilation, dilation)}
    window["feature_group_count"] = x.shape[1] // weight.shape[1]
    y = lax.conv_general_dilated(x, weight, (stride, stride), pads, **window)
    bias = p.get(f"{name}.bias")
    return y if bias is None else y + bias[:, None, None]


def max_pool(x: Any, size: int = 2) -> Any:
    block = (1, 1, size, size)
    return lax.reduce_window(x, -jnp.inf, lax.max, block, block, "VALID")


def lenet5(p: Parameters, x: Any, sizes: Any) -> Any:
    for name, padding in (("0", 2), ("3", 0)):
        x = max_pool(nn.relu(convolve(p, name, x, padding)))
    return dense(p, x.reshape(x.shape[0], -1), ("7", "9", "11"))


def compact(p: Parameters, x: Any, sizes: Any) -> Any:
    for name in ("0", "3"):
        x = max_pool(nn.relu(convolve(p, name, x, 0)))
    return dense(p, x.reshape(x.shape[0], -1), ("7", "9"))


def mlp(p: Parameters, x: Any, sizes: Any, activation: Any = nn.relu) -> Any:
    names = sorted({name.partition(".")[0] for name in p}, key=int)
    return dense(p, x, names, activation)


def vgg(p: Parameters, x: Any, sizes: Any) -> Any:
    index = 0
    for _ in sizes:
        x = nn.relu(convolve(p, f"{index}", x, 1))
        x = max_pool(nn.relu(convolve(p, f"{index + 2}", x, 1)))
        index += 5
    return linear(p, f"{index + 1}", x.reshape(x.shape[0], -1))


def plain(p: Parameters, x: Any, sizes: Any) -> Any:
    widths = [3, 16, *stages(sizes[0])]
    for index, (before, width) in enumerate(pairwise(widths)):
        x = nn.relu(convolve(p, f"{2 * index}", x, 1, 1 + (3 != before != width)))
    return linear(p, f"{2 * len(widths)}", x.mean((2, 3)))


def stages(depth: int) -> list[int]:
    return [width for width in (16, 32, 64) for _ in range((depth - 2) // 3)]


def normalize(p: Parameters, name: str, x: Any) -> Any:
    """Batch norm in training."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    weight, bias = (p[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * weight + bias


def resnet(p: Parameters, x: Any, sizes: Any) -> Any:
    x, index = nn.relu(normalize(p, "1", convolve(p, "0", x, 1))), 3
    for before, width in pairwise([16, *stages(sizes[0])[::2]]):
        stride, name = 1 + (before != width), f"{index}.body"
        y = nn.relu(normalize(p, f"{name}.1", convolve(p, f"{name}.0", x, 1, stride)))
        y = normalize(p, f"{name}.4", convolve(p, f"{name}.3", y, 1))
        past = jnp.pad(x[:, :, ::stride, ::stride], ((0, 0), (0, width - before), (0, 0), (0, 0)))
        x, index = nn.relu(y + past), index + 2
    return linear(p, f"{index + 2}", x.mean((2, 3)))


def fastcifar(p: Parameters, x: Any, sizes: Any) -> Any:
    p = p | {"0.weight": lax.stop_gradient(p["0.weight"])}
    gelu = partial(nn.gelu, approximate=False)
    x, index = gelu(convolve(p, "0", x, 0)), 2
    for _ in sizes:
        x = max_pool(convolve(p, f"{index}", x, 1))
        x = gelu(normalize(p, f"{index + 2}", x))
        x = gelu(normalize(p, f"{index + 5}", convolve(p, f"{index + 4}", x, 1)))
        index += 7
    x = max_pool(x, 3)
    return x.reshape(x.shape[0], -1) @ p[f"{index + 2}.weight"].T


def convolutions(p: Parameters, x: Any, sizes: Any) -> Any:
    stride, dilation, _ = sizes[4:] or (1, 1, 0)
    for name in ("0", "2"):
        x = nn.relu(convolve(p, name, x, dilation * (sizes[3] // 2), stride, dilation))
    return linear(p, "6", x.mean((2, 3)))


# --- over time ------------------------------------------------------------------------------------


def recurrent(cell: Callable[..., Any], p: Parameters, x: Any, sizes: Any) -> Any:
    """A scan over time; the input's products are one product before it."""
    inputs = x @ p["0.weight_ih_l0"].T + p["0.bias_ih_l0"]
    weight, bias = p["0.weight_hh_l0"].T, p["0.bias_hh_l0"]
    zeros = jnp.zeros((x.shape[0], weight.shape[0]), x.dtype)

    def step(state: Any, a: Any) -> Any:
        return cell(state, a, state[0] @ weight + bias), None

    state, _ = lax.scan(step, (zeros, zeros), jnp.swapaxes(inputs, 0, 1))
    return linear(p, "2", state[0])


def rnn_cell(state: Any, a: Any, b: Any) -> Any:
    return jnp.tanh(a + b), state[1]


def lstm_cell(state: Any, a: Any, b: Any) -> Any:
    i, f, g, o = jnp.split(a + b, 4, axis=1)
    c = nn.sigmoid(f) * state[1] + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c), c


def gru_cell(state: Any, a: Any, b: Any) -> Any:
    (r, z, n), (hr, hz, hn) = jnp.split(a, 3, axis=1), jnp.split(b, 3, axis=1)
    z = nn.sigmoid(z + hz)
    n = jnp.tanh(n + nn.sigmoid(r + hr) * hn)
    return (1 - z) * n + z * state[0], state[1]


def gpt(p: Parameters, x: Any, sizes: Any) -> Any:
    _, context, layers, heads, width = sizes
    y = p["tokens.weight"][x] + p["positions.weight"]
    n, mask = x.shape[0], jnp.tril(jnp.ones((context, context), bool))
    for layer in range(layers):
        name = f"blocks.{layer}"
        own = f"{name}.self_attn"
        z = layer_norm(p, f"{name}.norm1", y) @ p[f"{own}.in_proj_weight"].T
        z = (z + p[f"{own}.in_proj_bias"]).reshape(n, context, 3, heads, width // heads)
        q, k, v = jnp.moveaxis(z, 2, 0)
        scores = jnp.einsum("nthd,nshd->nhts", q, k) / (width // heads) ** 0.5
        shares = nn.softmax(jnp.where(mask, scores, -jnp.inf))
        z = jnp.einsum("nhts,nshd->nthd", shares, v).reshape(n, context, width)
        y = y + linear(p, f"{own}.out_proj", z)
        z = nn.gelu(linear(p, f"{name}.linear1", layer_norm(p, f"{name}.norm2", y)))
        y = y + linear(p, f"{name}.linear2", z)
    return (layer_norm(p, "norm", y) @ p["tokens.weight"].T).reshape(n * context, -1)


def layer_norm(p: Parameters, name: str, x: Any) -> Any:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


FORWARDS: dict[str, Callable[..., Any]] = {
    "lenet5": lenet5,
    "compact": compact,
    "mlp": mlp,
    "tanh": partial(mlp, activation=jax.numpy.tanh),
    "vgg": vgg,
    "plain": plain,
    "resnet": resnet,
    "fastcifar": fastcifar,
    "convolutions": convolutions,
    "rnn": partial(recurrent, rnn_cell),
    "lstm": partial(recurrent, lstm_cell),
    "gru": partial(recurrent, gru_cell),
    "gpt": gpt,
}
"""Forward functions by the names of networks."""
