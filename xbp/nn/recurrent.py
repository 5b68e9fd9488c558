"""Recurrent layers: three cells, each a step and its backward, run by `xbp.nn.scan`."""

from __future__ import annotations

from typing import Any

from xbp.arguments import choice
from xbp.backend import Array, Namespace
from xbp.nn.scan import Recurrent, States, StepBackward


def gate(xp: Namespace, a: Array) -> Array:
    """σ(a) = ½ + ½ tanh(a/2), to an absolute accuracy of ε, which suffices for a factor.

    `xbp.primitives.special.sigmoid`, of relative accuracy, takes three times the operations.
    """
    return 0.5 + 0.5 * xp.tanh(0.5 * a)


class RNN(Recurrent):
    """h_t = f(p_t + q_t) with f = tanh or ReLU: the simplest recurrent network (Elman 1990).

    With a_t = p_t + q_t:  ∂L/∂a_t = f′(a_t) ∘ ∂L/∂h_t.

    Parameters
    ----------
    nonlinearity : {"tanh", "relu"}, default "tanh"
        At the kink of ReLU its slope is 0.
    input_size, hidden_size, num_layers, **options
        See `Recurrent`, also for attributes, shapes and errors.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> model = nn.Sequential(nn.RNN(28, 64, rng=0), nn.LastTimeStep(), nn.Linear(64, 10, rng=1))
    >>> model(np.zeros((5, 28, 28), np.float32)).shape
    (5, 10)
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        **options: Any,
    ) -> None:
        self.nonlinearity = choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, num_layers, **options)

    def step(
        self, xp: Namespace, p: Array, q: Array, *states: Array
    ) -> tuple[States, StepBackward]:
        tanh = self.nonlinearity == "tanh"
        h = xp.tanh(p + q) if tanh else xp.maximum(p + q, 0.0)

        def backward(dh: Array) -> tuple[Array, Array, tuple[Array | None, ...]]:
            da = (1 - h * h) * dh if tanh else xp.where(h <= 0, 0.0, dh)
            return da, da, (None,)

        return (h,), backward

    def options(self) -> str:
        return super().options() + ", nonlinearity='relu'" * (self.nonlinearity == "relu")


class LSTM(Recurrent):
    """Long short-term memory, whose cell state c is updated by addition.

        (i, f, g, o) = (σ, σ, tanh, σ)(p_t + q_t)        input, forget, candidate, output
        c_t = f ∘ c_{t-1} + i ∘ g,    h_t = o ∘ tanh c_t

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000 and
    without peepholes; gates in PyTorch's order. Backward, with σ′ = σ(1 - σ), tanh′ = 1 - tanh²:

        dc ← dc + dh ∘ o ∘ tanh′ c_t,    dc_{t-1} = f ∘ dc,
        da = (dc ∘ g ∘ i′,  dc ∘ c_{t-1} ∘ f′,  dc ∘ i ∘ g′,  dh ∘ tanh c_t ∘ o′)

    See `Recurrent` for the parameters. The state of `run` is a pair (h, c).

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> (y, (h, c)), backward = nn.LSTM(3, 5, 2, rng=0).run(np.zeros((4, 7, 3), np.float32))
    >>> y.shape, h.shape, c.shape
    ((4, 7, 5), (2, 4, 5), (2, 4, 5))
    """

    gates = 4
    states = ("h", "c")

    def step(
        self, xp: Namespace, p: Array, q: Array, *states: Array
    ) -> tuple[States, StepBackward]:
        H, a, c = self.hidden_size, p + q, states[1]
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


class GRU(Recurrent):
    """Gated recurrent unit: h moves by a fraction 1 - z towards a candidate n.

        r = σ(p_r + q_r),   z = σ(p_z + q_z),   n = tanh(p_n + r ∘ q_n)     reset, update, candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    Cho et al. 2014, with r applied after the product W_hn h + b_hn, as in PyTorch and cuDNN, and
    not before it, W_hn (r ∘ h), so that q is one matrix product. Backward, with δ = ∂L/∂h_t:

        da_n = δ ∘ (1 - z) ∘ n′,   da_z = δ ∘ (h_{t-1} - n) ∘ z′,   da_r = da_n ∘ q_n ∘ r′,
        dp = (da_r, da_z, da_n),   dq = (da_r, da_z, r ∘ da_n),   dh_{t-1} = z ∘ δ + W_hhᵀ dq

    See `Recurrent` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.GRU(3, 5, bidirectional=True, rng=0)(np.zeros((4, 7, 3), np.float32)).shape
    (4, 7, 10)
    """

    gates = 3

    def step(
        self, xp: Namespace, p: Array, q: Array, *states: Array
    ) -> tuple[States, StepBackward]:
        H, h = self.hidden_size, states[0]
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
