"""Multi-head attention."""

from __future__ import annotations

from typing import Any

from xbp.arguments import integer
from xbp.backend import Array, Namespace, there
from xbp.errors import InputError
from xbp.initializers import xavier_uniform, zeros
from xbp.nn.backward import Rng
from xbp.nn.dropout import Dropout
from xbp.nn.layer import Layer
from xbp.nn.linear import Linear
from xbp.nn.masks import check_mask
from xbp.nn.parameter import Parameter
from xbp.primitives import affine, attention
from xbp.random import Seed, generator


class KeysAndValues:
    """The keys and values of the time steps so far; see `MultiheadAttention.extend`.

    Parameters
    ----------
    longest : int
        How many time steps there is room for.

    Attributes
    ----------
    length : int
        How many there are.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.length = integer("longest", longest, least=1), 0
        self._arrays: tuple[Array, ...] = ()

    def add(self, xp: Namespace, keys: Array, values: Array) -> tuple[Array, ...]:
        """Add those of some time steps, (N, H, T, d) each; returns all so far.

        Raises
        ------
        InputError
            There is no room for them, or they are of another batch.
        """
        start, end = self.length, self.length + keys.shape[2]
        sizes = [tuple(array.shape[:2]) for array in (*self._arrays[:1], keys)]
        if end > self.longest or len({*sizes}) > 1:
            msg = (
                f"there is room for {self.longest} time steps of one batch (N, H), "
                f"got {end} of {sizes}"
            )
            raise InputError(msg)
        if not self._arrays:
            shape = (*keys.shape[:2], self.longest, keys.shape[3])
            self._arrays = tuple(
                xp.zeros(shape, dtype=keys.dtype, device=keys.device) for _ in range(2)
            )
        for array, new in zip(self._arrays, (keys, values), strict=True):
            array[:, :, start:end, :] = new
        self.length = end
        return tuple(array[:, :, :end, :] for array in self._arrays)


class MultiheadAttention(Layer):
    """y = W_o concat(A_1, …, A_H) + b_o, where each head A_h is a weighted average of values.

    With q = W_q x + b_q, k = W_k m + b_k and v = W_v m + b_v, with features split into H heads,

        A_h = softmax(q_h k_hᵀ / √d) v_h,      d = embed_dim / num_heads

    (Vaswani et al. 2017, section 3.2). The memory m is x itself (self attention) or something else
    (cross attention). The backward is that of the output projection, of `xbp.primitives.attention`
    and of the input projections; in self attention ∂L/∂x sums the gradients through q, k and v.

    Parameters
    ----------
    embed_dim, num_heads : int
        The number of heads divides the number of features.
    dropout : float, default 0
        The probability that an attention weight is dropped in training.
    bias : bool, default True
    causal : bool, default False
        Whether position i attends to the positions 0, 1, …, i of the memory alone.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights, as in PyTorch: `xavier_uniform` for in_proj_weight as one
        matrix, a Linear's default for out_proj.weight, 0 for biases.

    Attributes
    ----------
    in_proj_weight : Parameter (3 · embed_dim, embed_dim)
        W_q, W_k and W_v, one below the other.
    in_proj_bias : Parameter (3 · embed_dim,) or None
    out_proj : Linear

    Notes
    -----
    x (N, T, embed_dim), memory (N, S, embed_dim), output (N, T, embed_dim): the batch is always
    the first axis. A query whose keys are all padding gets A = 0 and passes on no gradient.

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for shapes or dtypes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.MultiheadAttention(8, 2, dtype="float64", rng=0)
    >>> x, memory = np.ones((1, 3, 8)), np.ones((1, 5, 8))
    >>> y, backward = layer.forward(x, memory)
    >>> [gradient.shape for gradient in backward(y)]
    [(1, 3, 8), (1, 5, 8)]
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        causal: bool = False,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.embed_dim = integer("embed_dim", embed_dim, least=1)
        self.num_heads = integer("num_heads", num_heads, least=1)
        if embed_dim % num_heads:
            msg = f"num_heads must divide embed_dim, got {num_heads} heads for {embed_dim} features"
            raise InputError(msg)
        self.dropout, self.causal, rng = Dropout(dropout), bool(causal), generator(rng)
        shape = (3 * self.embed_dim, self.embed_dim)
        self.in_proj_weight = Parameter.draw(shape, xavier_uniform, rng, dtype)
        self.in_proj_bias = Parameter.draw(shape[:1], zeros, rng, dtype) if bias else None
        self.out_proj = Linear(
            self.embed_dim, self.embed_dim, bias, dtype=dtype, rng=rng, bias_init=zeros
        )

    def __call__(
        self, x: Array, memory: Array | None = None, *, key_padding_mask: Array | None = None
    ) -> Array:
        """Inference: the output alone."""
        return self.forward(x, memory, key_padding_mask=key_padding_mask)[0]

    def forward(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        key_padding_mask: Array | None = None,
        training: bool = False,
        rng: Rng = None,
    ) -> tuple[Array, Any]:
        """The output, and its backward.

        Parameters
        ----------
        x : array (N, T, embed_dim)
            The input of the queries.
        memory : array (N, S, embed_dim), optional
            The input of the keys and values; x by default.
        key_padding_mask : array (N, S) of bool, optional
            True at the positions of the memory that are ignored.
        training, rng
            As for every layer.

        Returns
        -------
        y : array (N, T, embed_dim)
        backward : callable
            ``dx = backward(dy)``; with a memory ``dx, dmemory = backward(dy)``.
        """
        xp, source = self._checked(x, "input"), x
        if memory is not None:
            self._checked(memory, "a memory")
            if memory.shape[0] != x.shape[0]:
                msg = (
                    f"{self} got a memory of {memory.shape[0]} samples for an input of {x.shape[0]}"
                )
                raise InputError(msg)
            source = memory
        if key_padding_mask is not None:
            check_mask(self, "key_padding_mask", key_padding_mask, "memory", source)
        (q, k, v), project_backward = self._project(xp, x, memory)
        mask = None
        if training and self.dropout.p:
            mask = self.dropout.mask((*q.shape[:3], k.shape[2]), like=q, rng=rng)
        heads, attend_backward = attention(q, k, v, key_padding_mask, mask, causal=self.causal)
        y, out_backward = self.out_proj.forward(self._together(xp, (heads,)))

        def backward(dy: Array) -> Any:
            (dheads,) = self._split(xp, out_backward(dy), 1)
            return project_backward(attend_backward(dheads))

        return y, backward

    @there
    def extend(self, x: Array, past: KeysAndValues) -> Array:
        """The output at time steps that follow those in `past`, in inference.

        A causal layer's output at a time step does not depend on later ones, so the keys and values
        of the earlier steps are all that is needed of them: a step costs as much as there are
        steps before it, not as much as all of them again.

        Parameters
        ----------
        x : array (N, T, embed_dim)
            Any number of steps where `past` is empty, otherwise one.
        past : KeysAndValues
            Extended by the steps of x.

        Returns
        -------
        array (N, T, embed_dim)

        Raises
        ------
        InputError
            The layer is not causal; x has another shape; or `past` has no room.
        """
        xp = self._checked(x, "input")
        if not self.causal or (past.length and x.shape[1] != 1):
            what = f"{x.shape[1]} steps at once" if self.causal else "a layer that is not causal"
            msg = f"{self} extends a sequence by one step, and only if it is causal; got {what}"
            raise InputError(msg)
        first = past.length == 0
        (q, k, v), _ = self._project(xp, x, None)
        keys, values = past.add(xp, k, v)
        heads, _ = attention(q, keys, values, None, None, causal=first)
        return self.out_proj(self._together(xp, (heads,)))

    def _project(self, xp: Namespace, x: Array, memory: Array | None) -> Any:
        """(q, k, v) by heads, and the backward to ∂L/∂x or (∂L/∂x, ∂L/∂memory)."""
        weight, add_weight_grad = self.in_proj_weight.lend()
        bias, undos = self.in_proj_bias, []
        heads: list[Array] = []
        ways = [(x, 0, 3)] if memory is None else [(x, 0, 1), (memory, 1, 3)]
        for source, start, stop in ways:
            rows = slice(start * self.embed_dim, stop * self.embed_dim)
            made, undo = affine(source, weight[rows, :], None if bias is None else bias.data[rows])
            heads += self._split(xp, made, stop - start)
            undos.append(undo)

        def joined(parts: Any) -> Array:
            return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)

        def backward(dheads: tuple[Array, Array, Array]) -> Any:
            found = [
                undo(self._together(xp, dheads[start:stop]), True)
                for undo, (_, start, stop) in zip(undos, ways, strict=True)
            ]
            dsources, dweights, dbiases = zip(*found, strict=True)
            add_weight_grad(joined(dweights))
            if bias is not None:
                bias.add_grad(joined(dbiases))
            return dsources[0] if memory is None else dsources

        return heads, backward

    def _split(self, xp: Namespace, x: Array, parts: int) -> tuple[Array, ...]:
        """(N, T, parts · embed_dim) → `parts` arrays (N, H, T, d)."""
        shape = (-1, x.shape[1], parts, self.num_heads, self.embed_dim // self.num_heads)
        heads = xp.permute_dims(xp.reshape(x, shape), (2, 0, 3, 1, 4))
        return tuple(heads[i, ...] for i in range(parts))

    def _together(self, xp: Namespace, heads: tuple[Array, ...]) -> Array:
        """The inverse of `_split`."""
        by_time = [xp.permute_dims(part, (0, 2, 1, 3)) for part in heads]
        shape = (-1, heads[0].shape[2], len(heads) * self.embed_dim)
        whole = by_time[0] if len(heads) == 1 else xp.stack(by_time, axis=2)
        return xp.reshape(whole, shape)

    def _checked(self, x: Array, what: str) -> Namespace:
        xp = self.check_input(x)
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.embed_dim:
            msg = (
                f"{self} expects {what} (N, T, {self.embed_dim}) of at least one time step, "
                f"got shape {tuple(x.shape)}"
            )
            raise InputError(msg)
        return xp

    def options(self) -> str:
        shown = {
            "dropout": (self.dropout.p, 0.0),
            "bias": (self.in_proj_bias is not None, True),
            "causal": (self.causal, False),
        }
        extra = [f"{name}={value}" for name, (value, default) in shown.items() if value != default]
        return ", ".join([f"{self.embed_dim}, {self.num_heads}", *extra])
