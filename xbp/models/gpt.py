"""A small language model."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from xbp import nn
from xbp.arguments import described, integer
from xbp.backend import HOST, Array, array_namespace, as_numbers, backend_of, there, to_numpy
from xbp.errors import InputError
from xbp.initializers import normal, zeros
from xbp.nn.attention import KeysAndValues
from xbp.nn.backward import Backward, Rng, TwoPartBackward, without_backward
from xbp.nn.embedding import looking_at_tokens
from xbp.nn.transformer import through
from xbp.primitives import affine
from xbp.random import Seed, as_stream, categorical, generator

if TYPE_CHECKING:
    from xbp.random import Generator


class GPT(nn.Layer):
    """A Transformer that predicts each next token from those before it: GPT-2's architecture.

    Embedding, learned positions, dropout, a stack of causal `TransformerBlock`s that normalize
    first, with GELU by tanh, a last LayerNorm, and a product with the table of the
    embedding, whose rows are also the output's weights (Radford et al. 2019; Press & Wolf 2017).

    Weights are drawn from N(0, 0.02²), those of the projections onto the sums, two a block, with
    0.02/√(2 · layers): there are 2 · layers such terms, and so the sum keeps its variance. Biases
    are 0.

    Parameters
    ----------
    vocabulary : int
        The number of tokens.
    context : int
        The longest sequence.
    layers, heads, width : int
        Blocks; heads of each, which divide the width; features of each token.
    dropout : float, default 0
    tie : bool, default True
        Whether the output's weights are the embedding's, as in GPT-2.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Attributes
    ----------
    tokens : Embedding
    positions : LearnedPositions
    blocks : Sequential of TransformerBlock
    norm : LayerNorm
    head : Linear or None
        None where it is tied.

    Notes
    -----
    Input (N, T) of integers with T up to `context`, output (N, T, vocabulary): logits.

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for sequences that are too long, and
        for tokens that are none, as `Embedding` does.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import models
    >>> model = models.GPT(65, 16, layers=2, heads=4, width=32, rng=0)
    >>> model(np.zeros((3, 16), np.int64)).shape
    (3, 16, 65)
    >>> model.generate([1, 2, 3], 5, rng=0).shape
    (8,)
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        *,
        dropout: float = 0.0,
        tie: bool = True,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        layers, rng = integer("layers", layers, least=1), generator(rng)
        self.vocabulary = integer("vocabulary", vocabulary, least=1)
        self.context = integer("context", context, least=1)
        self.tokens = nn.Embedding(vocabulary, width, dtype=dtype, rng=rng)
        self.positions = nn.LearnedPositions(context, width, dtype=dtype, rng=rng)
        self.dropout = nn.Dropout(dropout)
        options: dict[str, Any] = {"dropout": dropout, "causal": True, "dtype": dtype, "rng": rng}
        options["activation"] = partial(nn.GELU, "tanh")
        self.blocks = nn.Sequential(
            *(nn.TransformerBlock(width, heads, **options) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.head = None if tie else nn.Linear(width, vocabulary, False, dtype=dtype, rng=rng)
        self._draw(rng, onto_sums=STD / math.sqrt(2 * layers))
        self.arguments = {
            "vocabulary": self.vocabulary,
            "context": self.context,
            "layers": layers,
            "heads": heads,
            "width": width,
            "dropout": self.dropout.p,
            "tie": bool(tie),
        }

    def _draw(self, rng: Generator, onto_sums: float) -> None:
        """GPT-2's initial weights."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.assign(zeros(parameter.shape, rng))
            elif "norm" not in name:
                onto_sum = name.endswith(("out_proj.weight", "linear2.weight"))
                std = onto_sums if onto_sum else STD
                parameter.assign(normal(parameter.shape, rng, std=std))

    def _stages(self, x: Array) -> tuple[nn.Layer, ...]:
        """The layers between the tokens and the product with the output's weights."""
        self.check_input(x, integers=True)
        if x.ndim != 2 or not 0 < x.shape[1] <= self.context:
            msg = (
                f"{type(self).__name__} expects tokens (N, T) of 1 to {self.context} time steps, "
                f"got shape {tuple(x.shape)}"
            )
            raise InputError(msg)
        return self.tokens, self.positions, self.dropout, self.blocks, self.norm

    @without_backward
    def __call__(self, x: Array) -> Array:
        """Inference: the logits alone."""
        for stage in self._stages(x):
            x = stage(x)
        return self._logits(x)[0]

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        forwards = [stage.forward for stage in self._stages(x)]
        stream = as_stream(rng) if training else None
        return through(*forwards, self._logits)(x, training=training, rng=stream)

    def _logits(self, x: Array, **mode: Any) -> tuple[Array, Backward]:
        if self.head is not None:
            return self.head.forward(x, **mode)
        weight, add_grad = self.tokens.weight.lend()
        y, gradients = affine(x, weight, None)
        return y, TwoPartBackward(gradients, add_grad, None)

    def generate(
        self,
        tokens: Any,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: Seed = None,
    ) -> Array:
        """Tokens followed by `length` more, each drawn from the model's prediction.

        As long as all tokens are within the context, a step reads the new token alone, and the keys
        and values of the earlier ones are kept. Then the window slides by one token in each step,
        with which all positions change, and a step reads the whole window.

        Parameters
        ----------
        tokens : array (T,) or (N, T) of integers
            The beginning, at least one token; the model sees the last `context` of them.
        length : int
        temperature : float, default 1
            The divisor of logits: below 1 likely tokens are preferred; at 0 the most likely
            one, the first of several, is taken.
        top_k : int, optional
            The number of most likely tokens to draw from.
        rng : int, numpy.random.Generator or None
            A source of random numbers on the host, so that all backends draw equal tokens.

        Returns
        -------
        numpy array (T + length,) or (N, T + length) of int64

        Raises
        ------
        InputError
            An argument is out of range, a token is none, or the model predicts nan.
        """
        x = as_numbers(tokens)
        if x.dtype.kind not in "iu" or x.ndim not in (1, 2) or x.size == 0:
            msg = (
                "generate needs tokens to begin with, integers of shape (T,) or (N, T), "
                f"got {described(x)} and dtype {x.dtype}"
            )
            raise InputError(msg)
        length, rng = integer("length", length, least=0), generator(rng)
        given = x.shape[-1]
        found = HOST.zeros((x.size // given, given + length), dtype="int64")
        found[:, :given] = x
        backend = backend_of(self.tokens.weight.data)
        past = [KeysAndValues(self.context) for _ in self.blocks]
        changed = type(self).__call__ is not GPT.__call__ or any(
            type(block).forward is not nn.TransformerBlock.forward for block in self.blocks
        )
        with looking_at_tokens():
            for end in range(given, given + length):
                kept = end <= self.context and not changed
                start = past[0].length if kept else max(0, end - self.context)
                seen = backend.asarray(found[:, start:end])
                rows = self._extended(seen, past) if kept else self(seen)
                logits = to_numpy(rows)[:, -1]
                found[:, end] = categorical(logits, rng, temperature=temperature, top_k=top_k)
        return found if x.ndim == 2 else found[0]

    @there
    def _extended(self, x: Array, past: list[KeysAndValues]) -> Array:
        """The logits (N, 1, vocabulary) after the last of the tokens x, which follow `past`."""
        start = past[0].length
        h = self.tokens(x) + self.positions.weight.data[start : start + x.shape[1], :]
        for block, own in zip(self.blocks, past, strict=True):
            h = block.extend(h, own)  # type: ignore[attr-defined]
        return self._logits(self.norm(h[:, -1:, :]))[0]

    def options(self) -> str:
        shown = list(self.arguments.items())
        sizes = [str(value) for _, value in shown[:2]]
        return ", ".join([*sizes, *(f"{name}={value}" for name, value in shown[2:])])


class NextTokenLoss(nn.CrossEntropyLoss):
    """Cross-entropy of each next token: logits (N, T, vocabulary), tokens (N, T) as targets.

    That is `CrossEntropyLoss`, whose classes lie along axis 1, for a model whose classes lie along
    the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.models.gpt import NextTokenLoss
    >>> value, gradient = NextTokenLoss()(np.zeros((2, 3, 5)), np.zeros((2, 3), np.int64))
    >>> round(float(value), 4), gradient.shape
    (1.6094, (2, 3, 5))
    """

    def __call__(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        value, gradient = super().__call__(self._classes_second(prediction), target, weight)
        return value, array_namespace(gradient).permute_dims(gradient, (0, 2, 1))

    def denominator(
        self, prediction: Array, target: Array, weight: Array | None = None
    ) -> Array | None:
        return super().denominator(self._classes_second(prediction), target, weight)

    def check(self, prediction: Array, target: Array) -> None:
        super().check(self._classes_second(prediction), target)

    def _classes_second(self, prediction: Array) -> Array:
        if prediction.ndim != 3:
            shape = tuple(prediction.shape)
            msg = f"{self} needs logits of shape (N, T, vocabulary), got shape {shape}"
            raise InputError(msg)
        return array_namespace(prediction).permute_dims(prediction, (0, 2, 1))


STD = 0.02
