"""Embeddings: a learned vector for each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from xbp.arguments import integer
from xbp.backend import Array, Namespace, array_namespace, dtype_name, on_host, to_numpy
from xbp.errors import InputError
from xbp.initializers import Initializer, normal
from xbp.nested import tree_leaves, tree_map
from xbp.nn.backward import Backward, Rng, TwoPartBackward
from xbp.nn.layer import Layer
from xbp.nn.parameter import Parameter
from xbp.primitives import embedding
from xbp.random import Seed, generator


class Embedding(Layer):
    """y = W[t, :] for each token t: a table with one learned row for each token.

    ∂L/∂W[k, :] is the sum of ∂L/∂y over all places where t = k (`xbp.primitives.embedding`). The
    layer equals a `Linear` of one-hot vectors (Bengio et al. 2003).

    Parameters
    ----------
    num_embeddings : int
        The number of tokens, which are 0, 1, …, num_embeddings - 1.
    embedding_dim : int
    padding_idx : int, optional
        A token whose vector is initially 0 and gets no gradient; counted from the end if negative.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.
    weight_init : callable, optional
        From `xbp.initializers`. By default N(0, 1), as in PyTorch.

    Attributes
    ----------
    weight : Parameter (num_embeddings, embedding_dim)

    Notes
    -----
    Input of integers of any shape (…), output (…, embedding_dim). The backward returns None, as
    integers have no gradient.

    A token out of range is refused wherever the check costs no host wait: on the host in every
    call, on a device when data are given to `fit`, `evaluate` or `predict` (`looking_at_tokens`).
    Elsewhere it gives a vector of nan, never that of another token.

    Raises
    ------
    InputError
        In the constructor for sizes below 1 and a padding_idx out of range; in forward for
        floating-point input, and for a token out of range where it is checked.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.Embedding(3, 2, dtype="float64", rng=0)
    >>> layer.load_state_dict({"weight": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    >>> y, backward = layer.forward(np.array([2, 0, 2]))
    >>> backward(np.ones((3, 2)))
    >>> y.tolist(), layer.weight.grad.tolist()
    ([[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]], [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: Any = "float32",
        rng: Seed = None,
        weight_init: Initializer = normal,
    ) -> None:
        self.num_embeddings = integer("num_embeddings", num_embeddings, least=1)
        self.embedding_dim = integer("embedding_dim", embedding_dim, least=1)
        self.padding_idx = self._padding(padding_idx)
        shape = (self.num_embeddings, self.embedding_dim)
        self.weight = Parameter.draw(shape, weight_init, generator(rng), dtype)
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx, ...] = 0.0

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x, integers=True)
        if on_host(x) or _looking.get():
            self._check_tokens(xp, x)
        weight, add_grad = self.weight.lend()
        y, gradients = embedding(x, weight, self.padding_idx)
        check = partial(self.check_gradient, xp, shape=y.shape)
        return y, TwoPartBackward(gradients, add_grad, check=check)

    def _check_tokens(self, xp: Namespace, x: Array) -> None:
        if 0 in x.shape:
            return
        x = ordered(xp, x)
        low, high = int(to_numpy(xp.min(x))), int(to_numpy(xp.max(x)))
        if low < 0 or high >= self.num_embeddings:
            msg = (
                f"{self} needs tokens from 0 to {self.num_embeddings - 1}, "
                f"got {low if low < 0 else high}"
            )
            raise InputError(msg)

    def _padding(self, index: int | None) -> int | None:
        if index is None:
            return None
        padding = integer("padding_idx", index, least=-self.num_embeddings)
        if padding >= self.num_embeddings:
            msg = f"padding_idx must be one of {self.num_embeddings} tokens, got {index}"
            raise InputError(msg)
        return padding % self.num_embeddings

    def options(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


_looking: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def looking_at_tokens() -> Iterator[None]:
    """A context in which `Embedding` checks its tokens on a device, too, with a host wait."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def check_tokens(model: Layer, x: Array) -> None:
    """Refuse data with a token that a layer of `model` does not have, with one host wait.

    The model is run on two samples: the least and the greatest token of each position.

    Parameters
    ----------
    model : Layer
    x : array (N, …), N at least 1, or a tuple of such arrays
        Checked only if it holds integers and `model` has an `Embedding`. Of arrays of other
        numbers beside integers, the first sample is taken twice.

    Raises
    ------
    InputError
    """
    parts = tree_leaves(x)
    if not any(array_namespace(part).isdtype(part.dtype, "integral") for part in parts):
        return
    if not any(isinstance(layer, Embedding) for layer in model.tree()):
        return
    with looking_at_tokens():
        model(tree_map(_ends, x))


def _ends(x: Array) -> Array:
    """The least and the greatest token at each place; the first sample twice, if it has none."""
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "integral"):
        return xp.concat([x[:1, ...], x[:1, ...]], axis=0)
    x = ordered(xp, x)
    return xp.concat([xp.min(x, axis=0, keepdims=True), xp.max(x, axis=0, keepdims=True)], axis=0)


def ordered(xp: Namespace, x: Array) -> Array:
    """Integers of a dtype that has a minimum in every library (PyTorch lacks most unsigned)."""
    return xp.astype(x, xp.int64) if dtype_name(x.dtype) in LACKING else x


LACKING = ("uint16", "uint32", "uint64")
