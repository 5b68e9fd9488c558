"""One recurrent layer in one direction: the recurrence over time, and backward through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from xbp.backend import MOST_AT_ONCE, Array, Namespace, array_namespace, joined
from xbp.primitives.cells import States, Step, StepBackward
from xbp.primitives.dispatch import primitive
from xbp.primitives.product import affine, matmul

Gradients: TypeAlias = "tuple[Array | None, States, *tuple[Array | None, ...]]"
"""∂L/∂x, or None where it is not wanted, ∂L/∂(first states), and the parameters' gradients."""


@primitive
def recurrence(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Array | None,
    bias_hh: Array | None,
    *states: Array,
    step: Step,
    reverse: bool = False,
    padding: Array | None = None,
    chunk: int | None = None,
) -> tuple[tuple[Array, States], Callable[..., Gradients]]:
    """For t = 1 … T, or T … 1, with a cell's step:

        p_t = W_ih x_t + b_ih,   q_t = W_hh h_{t-1} + b_hh,   (h_t, …) = step(p_t, q_t, h_{t-1}, …)

    and with δ = ∂L/∂q_t, γ = ∂L/∂p_t from the step's backward (Werbos 1990, backpropagation
    through time)

        ∂L/∂h_{t-1} = W_hhᵀ δ_t + (the step's own dh),   ∂L/∂x_t = W_ihᵀ γ_t,
        ∂L/∂W_hh = Σ δ_t h_{t-1}ᵀ,  ∂L/∂b_hh = Σ δ_t,  ∂L/∂W_ih = Σ γ_t x_tᵀ,  ∂L/∂b_ih = Σ γ_t.

    Parameters
    ----------
    x : array (T, N, features)
        Time first, so that each step's slice is contiguous.
    weight_ih : array (gates · H, features)
    weight_hh : array (gates · H, H)
    bias_ih, bias_hh : array (gates · H,), or both None
    *states : array (N, H)
        h, … before the first step.
    step : callable
        A cell, as in `xbp.primitives.cells`; accelerators know those by identity.
    reverse : bool, default False
        Whether time runs from T to 1.
    padding : array (N, T) of bool, optional
        Where it is True, the states stay as they were.
    chunk : int, optional
        Time is split into chunks [0, k), [k, 2k), …; between them, states are constants.

    Returns
    -------
    (h, states) : tuple
        h of all time steps (T, N, H), and the states after the last step.
    gradients : callable
        ``gradients(dh, dstates, wants_dx=True)`` returns ∂L/∂x, or None, ∂L/∂(states before the
        first step), and the gradients of the weights and biases in the order of the arguments.
    """
    xp = array_namespace(x)
    (T, _, features), (width, hidden) = x.shape, weight_hh.shape
    rows = xp.reshape(x, (-1, features))
    P, project_backward = affine(rows, weight_ih, bias_ih)
    P = xp.reshape(P, (T, -1, width))
    times = range(T - 1, -1, -1) if reverse else range(T)
    first = xp.expand_dims(states[0], axis=0)
    after: list[Array] = [None] * T
    steps: list[StepBackward] = [None] * T  # type: ignore[list-item]
    for t in times:
        q, _ = affine(states[0], weight_hh, bias_hh)
        earlier = states
        states, steps[t] = step(xp, P[t, ...], q, *states)
        if padding is not None:
            states = chosen(xp, padding[:, t], earlier, states)
        after[t] = states[0]
    h = stacked(xp, after)
    starts = {t for s, t in pairwise(times) if s // (chunk or T) != t // (chunk or T)}

    def gradients(dh: Array, dstates: States, wants_dx: bool = True) -> Gradients:
        dp, dq = list(after), list(after)  # each entry is replaced
        for t in reversed(times):
            dstates = dstates[0] + dh[t, ...], *dstates[1:]
            skipped: States = ()
            if padding is not None:  # there h_t = h_{t-1}, elsewhere it is the step's
                zeros = tuple(xp.zeros_like(d) for d in dstates)
                skipped = chosen(xp, padding[:, t], dstates, zeros)
                dstates = chosen(xp, padding[:, t], zeros, dstates)
            dp[t], dq[t], others = steps[t](*dstates)
            if t in starts:
                dstates = tuple(xp.zeros_like(d) for d in dstates)
                continue
            through_q = matmul(dq[t], weight_hh)
            around = others[0]
            dstates = (through_q if around is None else through_q + around, *others[1:])
            if skipped:
                dstates = tuple(a + b for a, b in zip(dstates, skipped, strict=True))
        same = dp[0] is dq[0]  # for every cell that adds p and q
        dP = xp.reshape(stacked(xp, dp), (-1, width))
        dQ = dP if same else xp.reshape(stacked(xp, dq), (-1, width))
        # h before each step: the initial state, then h after every step but the last
        before = [h[1:, ...], first] if reverse else [first, h[:-1, ...]]
        rows_before = xp.reshape(xp.concat(before, axis=0), (-1, hidden))
        drows, dweight_ih, dbias_ih = project_backward(dP, wants_dx)
        dx = xp.reshape(drows, x.shape) if wants_dx else None
        dbias_hh = None if bias_hh is None else xp.sum(dQ, axis=0)
        return dx, dstates, dweight_ih, matmul(dQ.T, rows_before), dbias_ih, dbias_hh

    return (h, states), gradients


def chosen(
    xp: Namespace, rows: Array, where_true: tuple[Array, ...], elsewhere: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Each pair of arrays (N, H) as one array: rows of the first where `rows` (N,) is True."""
    column = xp.expand_dims(rows, axis=1)
    pairs = zip(where_true, elsewhere, strict=True)
    return tuple(xp.where(column, true, other) for true, other in pairs)


def stacked(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """`xp.stack` of any number of arrays, a few at a time, as capture requires."""
    starts = range(0, len(arrays), MOST_AT_ONCE)
    return joined(xp, [xp.stack(arrays[i : i + MOST_AT_ONCE]) for i in starts])
