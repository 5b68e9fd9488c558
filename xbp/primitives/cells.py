"""Recurrent cells: one time step each, and its backward.

``states, backward = cell(xp, p, q, *states)`` computes the states after the step from those before
it, (N, H) each, and two projections: p of the input and q of the state h. ``dp, dq, (dh, …) =
backward(dh, …)`` leaves ∂L/∂h through q to the caller: the returned dh is that by other ways, None
if there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xbp.backend import Array, Namespace

States: TypeAlias = "tuple[Array, ...]"
"""(h,) or (h, c)."""

StepBackward: TypeAlias = "Callable[..., tuple[Array, Array, tuple[Array | None, ...]]]"
"""From ∂L/∂(next states) to ∂L/∂p, ∂L/∂q, and ∂L/∂(states) by ways other than q (None: no way)."""

Step: TypeAlias = "Callable[..., tuple[States, StepBackward]]"


def elman(xp: Namespace, p: Array, q: Array, *states: Array) -> tuple[States, StepBackward]:
    """h_t = tanh a_t with a_t = p + q (Elman 1990):  ∂L/∂a_t = (1 - h_t²) ∘ ∂L/∂h_t."""
    h = xp.tanh(p + q)

    def backward(dh: Array) -> tuple[Array, Array, tuple[Array | None, ...]]:
        da = (1 - h * h) * dh
        return da, da, (None,)

    return (h,), backward


def rectified(xp: Namespace, p: Array, q: Array, *states: Array) -> tuple[States, StepBackward]:
    """h_t = max(a_t, 0) with a_t = p + q:  ∂L/∂a_t = ∂L/∂h_t where h_t > 0, else 0."""
    h = xp.maximum(p + q, 0.0)

    def backward(dh: Array) -> tuple[Array, Array, tuple[Array | None, ...]]:
        da = xp.where(h <= 0, 0.0, dh)
        return da, da, (None,)

    return (h,), backward


def lstm(xp: Namespace, p: Array, q: Array, *states: Array) -> tuple[States, StepBackward]:
    """Long short-term memory, whose cell state c is updated by addition.

        (i, f, g, o) = (σ, σ, tanh, σ)(p + q)            input, forget, candidate, output
        c_t = f ∘ c_{t-1} + i ∘ g,    h_t = o ∘ tanh c_t

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000 and
    without peepholes. Backward, with σ′ = σ(1 - σ), tanh′ = 1 - tanh²:

        dc ← dc + dh ∘ o ∘ tanh′ c_t,    dc_{t-1} = f ∘ dc,
        da = (dc ∘ g ∘ i′,  dc ∘ c_{t-1} ∘ f′,  dc ∘ i ∘ g′,  dh ∘ tanh c_t ∘ o′)
    """
    H, a, c = p.shape[1] // 4, p + q, states[1]
    i_and_f, g = gate(xp, a[:, : 2 * H]), xp.tanh(a[:, 2 * H : 3 * H])
    i, f, o = i_and_f[:, :H], i_and_f[:, H:], gate(xp, a[:, 3 * H :])
    c_next = f * c + i * g
    tanh_c = xp.tanh(c_next)

    def backward(dh: Array, dc: Array) -> tuple[Array, Array, tuple[Array | None, ...]]:
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        di, df, dg, do = dc * g, dc * c, dc * i, dh * tanh_c
        da = xp.concat(
            [di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], axis=1
        )
        return da, da, (None, f * dc)

    return (o * tanh_c, c_next), backward


def gru(xp: Namespace, p: Array, q: Array, *states: Array) -> tuple[States, StepBackward]:
    """Gated recurrent unit: h moves by a fraction 1 - z towards a candidate n.

        r = σ(p_r + q_r),   z = σ(p_z + q_z),   n = tanh(p_n + r ∘ q_n)     reset, update, candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    Cho et al. 2014, with r applied after the product W_hn h + b_hn, as in PyTorch and cuDNN, and
    not before it, W_hn (r ∘ h), so that q is one matrix product. Backward, with δ = ∂L/∂h_t:

        da_n = δ ∘ (1 - z) ∘ n′,   da_z = δ ∘ (h_{t-1} - n) ∘ z′,   da_r = da_n ∘ q_n ∘ r′,
        dp = (da_r, da_z, da_n),   dq = (da_r, da_z, r ∘ da_n),   dh_{t-1} = z ∘ δ + W_hhᵀ dq
    """
    H, h = p.shape[1] // 3, states[0]
    r_and_z = gate(xp, p[:, : 2 * H] + q[:, : 2 * H])
    r, z, q_n = r_and_z[:, :H], r_and_z[:, H:], q[:, 2 * H :]
    n = xp.tanh(p[:, 2 * H :] + r * q_n)

    def backward(dh: Array) -> tuple[Array, Array, tuple[Array | None, ...]]:
        da_n = dh * (1 - z) * (1 - n * n)
        da_z = dh * (h - n) * z * (1 - z)
        da_r = da_n * q_n * r * (1 - r)
        dp = xp.concat([da_r, da_z, da_n], axis=1)
        return dp, xp.concat([da_r, da_z, r * da_n], axis=1), (z * dh,)

    return (n + z * (h - n),), backward


def gate(xp: Namespace, a: Array) -> Array:
    """σ(a) = ½ + ½ tanh(a/2), to an absolute accuracy of ε, which suffices for a factor.

    `xbp.primitives.special.sigmoid`, of relative accuracy, takes three times the operations.
    """
    return 0.5 + 0.5 * xp.tanh(0.5 * a)
