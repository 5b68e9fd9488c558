"""The block of a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from xbp.arguments import integer
from xbp.backend import Array
from xbp.nn.activations import GELU, made
from xbp.nn.attention import KeysAndValues, MultiheadAttention
from xbp.nn.backward import Backward, Rng
from xbp.nn.dropout import Dropout
from xbp.nn.gated import GLU
from xbp.nn.layer import Layer
from xbp.nn.linear import Linear
from xbp.nn.norm import LayerNorm
from xbp.primitives import add
from xbp.random import Seed, as_stream, generator

Forward: TypeAlias = "Callable[..., tuple[Array, Backward]]"
"""``y, backward = forward(x, training=…, rng=…)``."""


class TransformerBlock(Layer):
    """Self attention A and a feed-forward network M, each with a residual connection.

    With dropout D, normalizations N₁ and N₂, and M(h) = W₂ φ(W₁ h + b₁) + b₂ at each position,

    ====================  ====================  ===============================================
    ``norm_first=True``   h = x + D A(N₁ x),    y = h + D M(N₂ h)      (Radford et al. 2019)
    ``norm_first=False``  h = N₁(x + D A(x)),   y = N₂(h + D M(h))     (Vaswani et al. 2017)
    ====================  ====================  ===============================================

    A sum hands ∂L/∂y to both of its terms, so x + f(x) has ∂L/∂x = ∂L/∂y + fᵀ(∂L/∂y), where fᵀ is
    the backward of f; the first term allows such networks to be deep.

    Parameters
    ----------
    embed_dim, num_heads : int
        See `MultiheadAttention`.
    dim_feedforward : int, optional
        The hidden width of M; by default 4 · embed_dim.
    dropout : float, default 0
        The probability of D, and of the attention weights' dropout.
    activation : callable, default nn.GELU
        φ: a layer's class, or a function without arguments that makes a layer. For a `GLU`, which
        halves the features, W₁ has twice dim_feedforward outputs.
    norm_first : bool, default True
    causal : bool, default False
    bias : bool, default True
        Whether all Linears and normalizations have biases.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Attributes
    ----------
    self_attn : MultiheadAttention
    linear1, linear2 : Linear
    norm1, norm2 : LayerNorm

    Notes
    -----
    Input and output (N, T, embed_dim). The names are those of PyTorch's `TransformerEncoderLayer`,
    whose state dicts load. PyTorch's layer has dropout after φ as well, and by default
    norm_first=False, ReLU and dropout 0.1.

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for input that does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> block = nn.TransformerBlock(8, 2, causal=True, rng=0)
    >>> block(np.zeros((1, 5, 8), np.float32)).shape
    (1, 5, 8)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[], Layer] = GELU,
        *,
        norm_first: bool = True,
        causal: bool = False,
        bias: bool = True,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        rng, options = generator(rng), {"bias": bias, "dtype": dtype}
        self.norm_first = bool(norm_first)
        self.self_attn = MultiheadAttention(
            embed_dim, num_heads, dropout, causal=causal, rng=rng, **options
        )
        hidden = 4 * embed_dim if dim_feedforward is None else dim_feedforward
        hidden = integer("dim_feedforward", hidden, least=1)
        self.activation = made(activation)
        wider = 2 if isinstance(self.activation, GLU) else 1
        self.linear1 = Linear(embed_dim, wider * hidden, rng=rng, **options)
        self.linear2 = Linear(hidden, embed_dim, rng=rng, **options)
        self.norm1, self.norm2 = (LayerNorm(embed_dim, **options) for _ in range(2))
        self.dropout = Dropout(dropout)

    def __call__(self, x: Array, *, key_padding_mask: Array | None = None) -> Array:
        """Inference: the output alone."""
        return self.forward(x, key_padding_mask=key_padding_mask)[0]

    def forward(
        self,
        x: Array,
        *,
        key_padding_mask: Array | None = None,
        training: bool = False,
        rng: Rng = None,
    ) -> tuple[Array, Backward]:
        """The output, and its backward; `key_padding_mask` as for `MultiheadAttention`."""
        stream = as_stream(rng) if training else None
        attend = partial(self.self_attn.forward, key_padding_mask=key_padding_mask)
        dropped = self.dropout.forward
        network = (self.linear1.forward, self.activation.forward, self.linear2.forward, dropped)
        norm1, norm2 = self.norm1.forward, self.norm2.forward
        if self.norm_first:
            whole = through(added(through(norm1, attend, dropped)), added(through(norm2, *network)))
        else:
            whole = through(added(through(attend, dropped)), norm1, added(through(*network)), norm2)
        return whole(x, training=training, rng=stream)

    def extend(self, x: Array, past: KeysAndValues) -> Array:
        """The output at time steps that follow those in `past`; see `MultiheadAttention.extend`."""

        def network(h: Array) -> Array:
            return self.linear2(self.activation(self.linear1(h)))

        if self.norm_first:
            h = x + self.self_attn.extend(self.norm1(x), past)
            return h + network(self.norm2(h))
        h = self.norm1(x + self.self_attn.extend(x, past))
        return self.norm2(h + network(h))

    def options(self) -> str:
        arguments = f"{self.self_attn.embed_dim}, {self.self_attn.num_heads}"
        shown = {
            "dim_feedforward": (self.linear2.in_features, 4 * self.self_attn.embed_dim),
            "dropout": (self.dropout.p, 0.0),
            "activation": (repr(self.activation), repr(GELU())),
            "norm_first": (self.norm_first, True),
            "causal": (self.self_attn.causal, False),
            "bias": (self.linear1.bias is not None, True),
        }
        extra = [f"{name}={value}" for name, (value, default) in shown.items() if value != default]
        return ", ".join([arguments, *extra])


def through(*forwards: Forward) -> Forward:
    """The composition f_n(… f_1(x)) of forwards; backwards run from the last to the first."""

    def forward(x: Array, **mode: Any) -> tuple[Array, Backward]:
        backwards = []
        for each in forwards:
            x, backward = each(x, **mode)
            backwards.append(backward)

        def backward_through(dy: Array) -> Array:
            for backward in reversed(backwards):
                dy = backward(dy)
            return dy

        return x, backward_through

    return forward


def added(f: Forward) -> Forward:
    """x + f(x) for a forward f, with ∂L/∂x = ∂L/∂y + fᵀ(∂L/∂y)."""

    def forward(x: Array, **mode: Any) -> tuple[Array, Backward]:
        y, backward = f(x, **mode)
        return add(x, y), lambda dy: add(dy, backward(dy))

    return forward
