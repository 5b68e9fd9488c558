"""The base of all recurrent layers: layers, directions, states, around the primitive `recurrence`.

A cell is elementwise: its `step` computes the next state from the state and two projections, p of
the input and q of the state, and returns its own backward. The primitive runs it over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias

from xbp.arguments import integer
from xbp.backend import (
    Array,
    Namespace,
    array_namespace,
    check_beside,
    dtype_name,
    on_device_of,
    there,
)
from xbp.errors import InputError
from xbp.initializers import uniform
from xbp.nn.backward import Backward, Rng, TwoPartBackward
from xbp.nn.dropout import Dropout
from xbp.nn.layer import Layer
from xbp.nn.masks import check_mask
from xbp.nn.parameter import Parameter, lent
from xbp.primitives.cells import States, StepBackward
from xbp.primitives.recurrence import recurrence, stacked
from xbp.random import Seed, as_stream, generator

ScanBackward: TypeAlias = "Callable[[Array, States, bool], tuple[Array, States]]"
"""From ∂L/∂h of all time steps, ∂L/∂(last states), and whether ∂L/∂x is wanted, to ∂L/∂x and
∂L/∂(first states)."""

RunBackward: TypeAlias = "Callable[..., tuple[Array, Any]]"
"""``dx, dstate0 = backward(dy, dstate=None, wants_dx=True)``."""


class Recurrent(Layer):
    """Base of all recurrent layers. A cell defines `step`, `gates` and, if not 1, `states`.

    In each of num_layers layers and in each direction, for t = 1 … T,

        p_t = W_ih x_t + b_ih,   q_t = W_hh h_{t-1} + b_hh,   (h_t, …) = step(p_t, q_t, h_{t-1}, …)

    and backward through time as derived in `xbp.primitives.recurrence`. The next layer reads
    h_1 … h_T. A bidirectional layer (Schuster & Paliwal 1997) has a second set of weights that
    reads from the last time step to the first; the two outputs of a time step are concatenated.

    Parameters
    ----------
    input_size, hidden_size : int
    num_layers : int, default 1
    bias : bool, default True
    bidirectional : bool, default False
    dropout : float, default 0
        Probability with which training drops each output of every layer but the last.
    truncate : int, optional
        k of truncated backpropagation through time. Time is split into chunks of k steps, [0, k),
        [k, 2k), …, in every layer and direction alike. A state carried into the next chunk is a
        constant there, so that gradients flow through at most k steps, and that of the initial
        state comes from the first chunk alone (the last one in the reverse direction). A
        parameter's gradient is the sum over the chunks (Williams & Peng 1990, with h = h′ = k).
        None: no truncation.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights, all from U(-1/√hidden_size, 1/√hidden_size), as in PyTorch.

    Attributes
    ----------
    weight_ih_l0, … : Parameter (gates · hidden_size, input_size)
        ``_l1``, … for the layers above, with an input of width hidden_size · directions, and
        ``_l0_reverse``, … for the other direction: the names in PyTorch's state dicts.
    weight_hh_l0, … : Parameter (gates · hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0, … : Parameter (gates · hidden_size,)

    Notes
    -----
    Input (N, T, input_size), output (N, T, hidden_size · directions): the batch is always the
    first axis. The initial states are 0; `run` takes and returns states.

    Raises
    ------
    InputError
        In the constructor for values out of range; in a call for input of another shape or dtype,
        sequences of length 0, or states that do not fit.

    Examples
    --------
    A new cell, the leaky average h_t = ½ h_{t-1} + ½ (p_t + q_t):

    >>> import numpy as np
    >>> from xbp import nn
    >>> class Leaky(nn.Recurrent):
    ...     gates = 1
    ...
    ...     def step(self, xp, p, q, *states):
    ...         return (0.5 * (states[0] + p + q),), lambda dh: (0.5 * dh, 0.5 * dh, (0.5 * dh,))
    >>> Leaky(3, 5, num_layers=2, dtype="float64", rng=0)(np.ones((2, 7, 3))).shape
    (2, 7, 5)
    """

    gates: ClassVar[int]
    """How many times hidden_size wide p and q are."""

    states: ClassVar[tuple[str, ...]] = ("h",)
    """What is carried from step to step; the first is the output."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        truncate: int | None = None,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.input_size = integer("input_size", input_size, least=1)
        self.hidden_size = integer("hidden_size", hidden_size, least=1)
        self.num_layers = integer("num_layers", num_layers, least=1)
        self.truncate = None if truncate is None else integer("truncate", truncate, least=1)
        self.between = Dropout(dropout)
        self.directions = ("", "_reverse") if bidirectional else ("",)
        rng, rows = generator(rng), self.gates * self.hidden_size
        init = partial(uniform, bound=1 / math.sqrt(self.hidden_size))
        for layer in range(self.num_layers):
            width = self.hidden_size * len(self.directions) if layer else self.input_size
            shapes: dict[str, tuple[int, ...]]
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, self.hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for direction in self.directions:
                for name, shape in shapes.items():
                    parameter = Parameter.draw(shape, init, rng, dtype)
                    setattr(self, f"{name}_l{layer}{direction}", parameter)

    def step(
        self, xp: Namespace, p: Array, q: Array, *states: Array
    ) -> tuple[States, StepBackward]:
        """One time step of one layer and direction.

        Parameters
        ----------
        xp : module
        p, q : array (N, gates · hidden_size)
        *states : array (N, hidden_size)
            h, …, before the step.

        Returns
        -------
        states : tuple of arrays
            After the step.
        backward : callable
            ``dp, dq, (dh, …) = backward(dh, …)``, where the returned dh excludes the gradient
            through q, and is None if there is no other.
        """
        msg = f"{type(self).__name__} has no step; define step(self, xp, p, q, *states)"
        raise NotImplementedError(msg)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        (y, _), backward = self._through_time(x, None, None, training, rng)
        return y, TwoPartBackward(lambda dy, wants_dx: backward(dy, None, wants_dx)[:1])

    @there
    def run(
        self,
        x: Array,
        state: Any = None,
        *,
        padding_mask: Array | None = None,
        training: bool = False,
        rng: Rng = None,
    ) -> tuple[tuple[Array, Any], RunBackward]:
        """`forward` from a given state, which also returns the final one.

        A time step of padding is left out: the state stays as it was, h_t = h_{t-1}, in both
        directions. So the final states are those of the sequence without its padding.

        Parameters
        ----------
        x : array (N, T, input_size)
        state : array (num_layers · directions, N, hidden_size), or a pair of them for LSTM
            Initial h (h and c). The directions of a layer are neighbours, as in PyTorch. None: 0.
        padding_mask : array (N, T) of bool, optional
            True at the time steps that are padding, wherever they lie. The output there repeats
            the state (in PyTorch's packed sequences, it is 0).
        training, rng
            As in `forward`.

        Returns
        -------
        (y, state) : tuple
            The output, and the final states: after the last time step, or after the first one in
            the reverse direction.
        backward : callable
            ``dx, dstate0 = backward(dy, dstate=None, wants_dx=True)``, where `dstate` is
            ∂L/∂(final state), None meaning 0, `dstate0` is ∂L/∂(initial state), and `dx` is None
            where it is not wanted.

        Examples
        --------
        Two halves, one after the other, are the whole:

        >>> import numpy as np
        >>> from xbp import nn
        >>> layer, x = nn.LSTM(2, 3, dtype="float64", rng=0), np.ones((1, 8, 2))
        >>> (_, state), _ = layer.run(x[:, :4])
        >>> (y, _), _ = layer.run(x[:, 4:], state)
        >>> np.allclose(y, layer(x)[:, 4:], rtol=1e-12)
        True
        """
        (y, final), through_time = self._through_time(x, state, padding_mask, training, rng)
        xp = array_namespace(x)

        def backward(dy: Array, dstate: Any = None, wants_dx: bool = True) -> tuple[Array, Any]:
            dx, dinitial = through_time(dy, dstate, wants_dx)
            with on_device_of(dy):
                return dx, self._stacked(xp, dinitial)

        with on_device_of(x):
            return (y, self._stacked(xp, final)), backward

    def _through_time(
        self, x: Array, state: Any, padding_mask: Array | None, training: bool, rng: Rng
    ) -> tuple[tuple[Array, list[States]], Callable[..., tuple[Array, list[States]]]]:
        """`run` with lists of states, one entry for each layer and direction."""
        xp, H, D = self.check_input(x), self.hidden_size, len(self.directions)
        self._check_shape(x)
        initial = self._states(xp, x, state, "initial state")
        if padding_mask is not None:
            check_mask(self, "padding_mask", padding_mask, "input", x)
        rng = as_stream(rng) if training else None
        y = xp.permute_dims(x, (1, 0, 2))  # time first, so that each step's slice is contiguous
        undrops: list[Backward] = []
        final: list[States] = []
        scans: list[ScanBackward] = []
        for layer in range(self.num_layers):
            y, undrop = self.between.forward(y, training=training and layer > 0, rng=rng)
            undrops.append(undrop)
            outputs = []
            for direction in self.directions:
                states = initial[len(scans)]
                (h, last), scan = self._scan(y, states, padding_mask, f"l{layer}{direction}")
                outputs.append(h)
                final.append(last)
                scans.append(scan)
            y = xp.concat(outputs, axis=2) if D > 1 else outputs[0]

        @there
        def backward(
            dy: Array, dstate: Any = None, wants_dx: bool = True
        ) -> tuple[Array, list[States]]:
            check_beside(self, "a gradient", dy, "the input is", x)
            self.check_gradient(xp, dy, (x.shape[0], x.shape[1], H * D))
            if state is None and dstate is None:
                dfinal = initial  # zeros
            else:
                dfinal = self._states(xp, x, dstate, "gradient of the final state")
            dinitial: list[States] = [()] * len(scans)
            dy = xp.permute_dims(dy, (1, 0, 2))
            for layer in reversed(range(self.num_layers)):
                dx, wanted = None, wants_dx or layer > 0
                for d in range(D):
                    i, dh = layer * D + d, dy[:, :, d * H : (d + 1) * H]
                    part, dinitial[i] = scans[i](dh, dfinal[i], wanted)
                    dx = part if dx is None else dx + part
                dy = undrops[layer](dx) if wanted else None
            dx = None if dy is None else xp.permute_dims(dy, (1, 0, 2))
            return dx, dinitial

        return (xp.permute_dims(y, (1, 0, 2)), final), backward

    def _scan(
        self, x: Array, states: States, padding: Array | None, suffix: str
    ) -> tuple[tuple[Array, States], ScanBackward]:
        """One direction of one layer: x (T, N, in) → h (T, N, hidden_size) and the last states."""
        (W_ih, W_hh, b_ih, b_hh), adders = zip(
            *(
                lent(vars(self).get(f"{name}_{suffix}"))
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ),
            strict=True,
        )
        options: dict[str, Any] = {"reverse": suffix.endswith("_reverse"), "chunk": self.truncate}
        result, gradients = recurrence(
            x, W_ih, W_hh, b_ih, b_hh, *states, step=self.step, padding=padding, **options
        )

        def backward(dh: Array, dstates: States, wants_dx: bool) -> tuple[Array, States]:
            dx, dstates, *found = gradients(dh, dstates, wants_dx)
            for add_grad, gradient in zip(adders, found, strict=True):
                if add_grad is not None:
                    add_grad(gradient)
            return dx, dstates

        return result, backward

    # --- states: a tuple inside, PyTorch's form outside ---

    def _stacked(self, xp: Namespace, states: list[States]) -> Any:
        """(h, …) for each scan → arrays (num_layers · directions, N, hidden_size)."""
        whole = tuple(stacked(xp, arrays) for arrays in zip(*states, strict=True))
        return whole if len(whole) > 1 else whole[0]

    def _states(self, xp: Namespace, x: Array, state: Any, what: str) -> list[States]:
        """The inverse of `_stacked`, after a check; zeros for None."""
        N, H, scans = x.shape[0], self.hidden_size, self.num_layers * len(self.directions)
        if state is None:
            if N is None:  # while tracing
                zeros = xp.tile(xp.zeros_like(x[:, 0, :1]), (1, H))
            else:
                zeros = xp.zeros((N, H), dtype=x.dtype, device=x.device)
            return [(zeros,) * len(self.states)] * scans
        shape = (scans, N, H)
        states = tuple(state) if isinstance(state, tuple | list) else (state,)
        shapes = [tuple(s.shape) if hasattr(s, "shape") else type(s).__name__ for s in states]
        if shapes != [shape] * len(self.states):
            names, got = " and ".join(self.states), " and ".join(map(str, shapes))
            msg = f"{self} expects as {what} {names} of shape {shape} for this input, got {got}"
            raise InputError(msg)
        for s in states:
            check_beside(self, "input", x, f"the {what} is", s)
            if s.dtype != x.dtype:
                msg = (
                    f"{self} got {dtype_name(x.dtype)} input and a {dtype_name(s.dtype)} {what}; "
                    "convert one of them with xbp.asarray(…, dtype=…)"
                )
                raise InputError(msg)
        return [tuple(s[i, ...] for s in states) for i in range(scans)]

    def _check_shape(self, x: Array) -> None:
        if x.ndim != 3 or x.shape[2] != self.input_size:
            msg = f"{self} expects input (N, T, {self.input_size}), got shape {tuple(x.shape)}"
            raise InputError(msg)
        if x.shape[1] == 0:
            msg = (
                f"{self} got sequences of length 0 (shape {tuple(x.shape)}); "
                "give at least one time step"
            )
            raise InputError(msg)

    def options(self) -> str:
        shown = {
            "num_layers": (self.num_layers, 1),
            "bias": (hasattr(self, "bias_ih_l0"), True),
            "bidirectional": (len(self.directions) > 1, False),
            "dropout": (self.between.p, 0.0),
            "truncate": (self.truncate, None),
        }
        extra = [f"{name}={value}" for name, (value, default) in shown.items() if value != default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *extra])
