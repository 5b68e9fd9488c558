"""Layers for sequences: their lines, their definitions, and wrappers with one input of floats.

The definitions are loops over samples, heads and positions, like the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xbp import models, nn
from xbp.backend import Array
from xbp.testing import oracles
from xbp.testing.cases.arrays import Host
from xbp.testing.cases.case import Layer, Model, fed

# --- wrappers, for tests with one input array of floats -------------------------------------------

OFFSET = 0.37
"""Far from multiples of ¼, which properties draw, so that tokens are constant around them."""


def tokens_of(x: Array, count: int, xp: Any = np) -> Array:
    """⌊|x| + 0.37⌋ mod count: a token for each number, locally constant."""
    return xp.astype(xp.abs(x) + OFFSET, xp.int64) % count


class OfTokens(nn.Layer):
    """A layer of tokens as a layer of numbers, with derivative 0."""

    def __init__(self, layer: Any, count: int) -> None:
        self.layer, self.count = layer, count

    def forward(self, x: Array, *, training: bool = False, rng: Any = None) -> Any:
        xp = self.check_input(x)
        tokens = tokens_of(x, self.count, xp)
        y, backward = self.layer.forward(tokens, training=training, rng=rng)

        def backward_to_numbers(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            backward(dy)
            return xp.zeros_like(x)

        return y, backward_to_numbers


class CrossAttention(nn.Layer):
    """Attention of the first `queries` rows of x to the others, of which every third is padding."""

    def __init__(self, layer: nn.MultiheadAttention, queries: int) -> None:
        self.layer, self.queries = layer, queries

    def forward(self, x: Array, *, training: bool = False, rng: Any = None) -> Any:
        xp, T = self.check_input(x), self.queries
        memory = x[:, T:, :]
        every_third = xp.arange(memory.shape[1], device=x.device) % 3 == 1
        padding = (memory[:, :, 0] == memory[:, :, 0]) & every_third
        y, backward = self.layer.forward(
            x[:, :T, :], memory, key_padding_mask=padding, training=training, rng=rng
        )
        return y, lambda dy: xp.concat(backward(dy), axis=1)


def of_tokens(kind: Callable[..., nn.Layer]) -> Callable[..., nn.Layer]:
    return lambda count, *sizes, **options: OfTokens(kind(count, *sizes, **options), count)


def crossed(*sizes: Any, queries: int, **options: Any) -> nn.Layer:
    return CrossAttention(nn.MultiheadAttention(*sizes, **options), queries)


def with_drawn_vectors(kind: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor with random biases and norms, in place of zeros and ones."""

    def make(*sizes: Any, **options: Any) -> Any:
        layer, rng = kind(*sizes, **options), np.random.default_rng(3)
        for _, parameter in layer.named_parameters():
            if parameter.data.ndim == 1:
                parameter.assign(rng.normal(1.0, 0.5, parameter.shape))
        return layer

    return make


# --- definitions ----------------------------------------------------------------------------------


def inner(state: dict[str, Host], prefix: str = "layer.") -> dict[str, Host]:
    """The state of a sublayer."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def embedding(s: Any, x: Host, count: int, width: int, padding: int | None = None) -> Host:
    y = np.zeros((*x.shape, width))
    for place, token in np.ndenumerate(tokens_of(x, count)):
        y[place] = s["layer.weight"][token]
    return y


def positions(s: Any, x: Host, length: int, width: int) -> Host:
    return np.stack([sample + s["weight"][: len(sample)] for sample in x])


def sinusoidal_positions(s: Any, x: Host, length: int, width: int) -> Host:
    y = x.copy()
    for t in range(x.shape[1]):
        for column in range(width):
            angle = t / 10_000 ** ((column - column % 2) / width)
            y[:, t, column] += math.cos(angle) if column % 2 else math.sin(angle)
    return y


def glu(x: Host, dim: int = -1) -> Host:
    a, b = np.split(x, 2, axis=dim)
    return np.asarray(a * oracles.sigmoid(b))


def swiglu(x: Host, dim: int = -1) -> Host:
    a, b = np.split(x, 2, axis=dim)
    return np.asarray(oracles.silu(a) * b)


def dropout_mask(shape: tuple[int, ...], p: float, draw: int) -> Host:
    """The mask of seed 0, first step, this draw; word by word from the plain-integer Philox."""
    key = np.random.SeedSequence(0).generate_state(2, np.uint32)
    mask = np.zeros(math.prod(shape))
    for i in range(mask.size):
        block = oracles.philox4x32((i // 4, draw, 0, 0), (int(key[0]), int(key[1])))
        mask[i] = 1 / (1 - p) if block[i % 4] >= p * 2**32 else 0.0
    return mask.reshape(shape)


def attention(
    s: Any, x: Host, memory: Host, heads: int, hidden: Callable[[int, int], bool], mask: Host
) -> Host:
    """Attention, query by query; ``hidden(i, j)`` says whether query i ignores key j."""
    E, d = x.shape[2], x.shape[2] // heads
    weights, biases = s["in_proj_weight"], s.get("in_proj_bias", np.zeros(3 * E))
    (W_q, W_k, W_v), (b_q, b_k, b_v) = np.split(weights, 3), np.split(biases, 3)
    joined = np.zeros(x.shape)
    for n, h in np.ndindex(len(x), heads):
        rows = slice(h * d, (h + 1) * d)
        k, v = memory[n] @ W_k[rows].T + b_k[rows], memory[n] @ W_v[rows].T + b_v[rows]
        for i in range(x.shape[1]):
            q = W_q[rows] @ x[n, i] + b_q[rows]
            seen = [j for j in range(len(k)) if not hidden(i, j)]
            powers = np.exp([q @ k[j] / math.sqrt(d) for j in seen])
            for j, p in zip(seen, powers / powers.sum(), strict=True):
                joined[n, i, rows] += p * mask[n, h, i, j] * v[j]
    return np.asarray(joined @ s["out_proj.weight"].T + s.get("out_proj.bias", 0.0))


def self_attention(
    s: Any, x: Host, width: int, heads: int, dropout: float = 0.0, bias: bool = True,
    causal: bool = False, draw: int = 0,
) -> Host:  # fmt: skip
    shape = (len(x), heads, x.shape[1], x.shape[1])
    mask = dropout_mask(shape, dropout, draw) if dropout else np.ones(shape)
    return attention(s, x, x, heads, lambda i, j: causal and j > i, mask)


def cross_attention(
    s: Any, x: Host, width: int, heads: int, queries: int, causal: bool = False
) -> Host:
    x, memory = x[:, :queries], x[:, queries:]
    mask = np.ones((len(x), heads, queries, memory.shape[1]))

    def hidden(i: int, j: int) -> bool:
        return j % 3 == 1 or (causal and j > i)

    return attention(inner(s), x, memory, heads, hidden, mask)


def layer_norm(s: Any, x: Host, name: str) -> Host:
    return oracles.layer_norm(inner(s, f"{name}."), x, x.shape[-1:])


def transformer_block(
    s: Any, x: Host, width: int, heads: int, hidden: int | None = None, dropout: float = 0.0,
    activation: Any = nn.GELU, norm_first: bool = True, causal: bool = False, bias: bool = True,
    draw: int = 0,
) -> Host:  # fmt: skip
    """A transformer block; its dropout draws masks for the attention, then for its two terms."""
    phi: dict[Any, Any] = {nn.GELU: oracles.gelu, nn.ReLU: oracles.relu, nn.SwiGLU: swiglu}
    phi[GELU_BY_TANH] = oracles.gelu_tanh

    def attend(h: Host) -> Host:
        y = self_attention(inner(s, "self_attn."), h, width, heads, dropout, bias, causal, draw)
        return y * dropout_mask(y.shape, dropout, draw + 1) if dropout else y

    def feed(h: Host) -> Host:
        h = phi[activation](h @ s["linear1.weight"].T + s.get("linear1.bias", 0.0))
        y = np.asarray(h @ s["linear2.weight"].T + s.get("linear2.bias", 0.0))
        return y * dropout_mask(y.shape, dropout, draw + 2) if dropout else y

    if norm_first:
        h = x + attend(layer_norm(s, x, "norm1"))
        return np.asarray(h + feed(layer_norm(s, h, "norm2")))
    h = layer_norm(s, x + attend(x), "norm1")
    return layer_norm(s, h + feed(h), "norm2")


GELU_BY_TANH = "GELU by tanh"


def gpt(
    s: Any, x: Host, vocabulary: int, context: int, layers: int, heads: int, width: int,
    dropout: float = 0.0, tie: bool = True,
) -> Host:  # fmt: skip
    s = inner(s)
    h = s["tokens.weight"][tokens_of(x, vocabulary)] + s["positions.weight"][: x.shape[1]]
    h = h * dropout_mask(h.shape, dropout, 0) if dropout else h
    for layer in range(layers):
        h = transformer_block(
            inner(s, f"blocks.{layer}."), h, width, heads, None, dropout, GELU_BY_TANH,
            causal=True, draw=1 + 3 * layer,
        )  # fmt: skip
    return np.asarray(layer_norm(s, h, "norm") @ s["tokens.weight" if tie else "head.weight"].T)


def text_classifier(
    s: Any, x: Host, vocabulary: int, classes: int, width: int = 64, hidden: int = 64,
    layers: int = 1, bidirectional: bool = False, dropout: float = 0.0,
) -> Host:  # fmt: skip
    """Text by text, each without its padding; there is dropout with one layer alone."""
    s, tokens, directions = inner(s), tokens_of(x, vocabulary), 1 + bidirectional
    masks: list[Host] = [np.ones((*x.shape, width)), np.ones((len(x), directions * hidden))]
    if dropout:
        masks = [dropout_mask(m.shape, dropout, draw) for draw, m in enumerate(masks)]
    features = np.zeros((len(x), directions * hidden))
    for n, text in enumerate(tokens):
        vectors = [s["tokens.weight"][k] * m for k, m in zip(text, masks[0][n], strict=True) if k]
        if vectors:
            weights = inner(s, "lstm.")
            _, ends = oracles.recurrent(oracles.lstm_cell, np.stack(vectors)[None], weights)
            features[n] = np.concatenate([h[0] for h, _ in ends[-directions:]])
    return np.asarray((features * masks[1]) @ s["head.weight"].T + s["head.bias"])


def undropped(oracle: Callable[..., Host]) -> Callable[..., Host]:
    """The definition of a layer in inference, without dropout."""

    def inference(s: Any, x: Host, *arguments: Any, **options: Any) -> Host:
        return oracle(s, x, *arguments, **{k: v for k, v in options.items() if k != "dropout"})

    return inference


# --- the lines ------------------------------------------------------------------------------------

SEQUENCES: list[Layer] = [
    Layer("Embedding", embedding, [
        fed((4, 5), 3, 4),
        fed((2, 3, 2), 17, 3),
        fed((33,), 2, 5),
    ], make=of_tokens(nn.Embedding)),
    Layer("LearnedPositions", positions, [fed((3, 4, 5), 4, 5), fed((2, 3, 4), 7, 4)]),
    Layer("SinusoidalPositions", sinusoidal_positions, [
        fed((3, 4, 6), 9, 6),
        fed((2, 3, 5), 3, 5),
    ]),
    Layer("GLU", lambda s, x, *dim: glu(x, *dim), [fed((4, 6)), fed((2, 4, 3), 1)]),
    Layer("SwiGLU", lambda s, x, *dim: swiglu(x, *dim), [fed((4, 6)), fed((2, 4, 3), -2)]),
    Layer("MultiheadAttention", self_attention, [
        fed((2, 3, 4), 4, 2),
        fed((3, 4, 6), 6, 3, bias=False),
        fed((2, 5, 4), 4, 1, causal=True),
        fed((2, 4, 6), 6, 2, dropout=0.3, causal=True),
    ], make=with_drawn_vectors(nn.MultiheadAttention), inference=undropped(self_attention)),
    Layer("MultiheadAttention", cross_attention, [
        fed((2, 7, 4), 4, 2, queries=3),
        fed((2, 6, 6), 6, 3, queries=4, causal=True),
    ], make=with_drawn_vectors(crossed), title="MultiheadAttention across"),
    Layer("TransformerBlock", transformer_block, [
        fed((2, 3, 4), 4, 2),
        fed((2, 3, 4), 4, 2, 6, activation=nn.SwiGLU, causal=True, bias=False),
        fed((2, 4, 6), 6, 3, 5, dropout=0.25, norm_first=False),
    ], make=with_drawn_vectors(nn.TransformerBlock), inference=undropped(transformer_block)),
]  # fmt: skip


def steep(*arguments: Any, **options: Any) -> float:
    """0, as if a kink were near: a step of 0.001 is large beside weights of 0.02."""
    return 0.0


LANGUAGE_MODELS = [
    Model("GPT", gpt, [
        fed((2, 5), 7, 5, 2, 2, 4, dropout=0.2),
        fed((3, 4), 11, 6, 1, 3, 6, tie=False),
    ], room=models, make=with_drawn_vectors(of_tokens(models.GPT)), kinks=steep,
          inference=undropped(gpt)),
    Model("TextClassifier", text_classifier, [
        fed((3, 5), 4, 3, width=4, hidden=3, dropout=0.25),
        fed((2, 6), 3, 2, width=3, hidden=2, layers=2, bidirectional=True),
    ], room=models, make=of_tokens(models.TextClassifier),
          inference=undropped(text_classifier)),
]  # fmt: skip
