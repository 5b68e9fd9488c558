"""Recurrent cells, and layers of them as loops over time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xbp.testing.oracles.layers import linear
from xbp.testing.oracles.types import F64


def elman_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = tanh(p_j + q_j), one sample   (Elman 1990; PyTorch documentation, nn.RNN)."""
    return np.array([math.tanh(p[j] + q[j]) for j in range(len(h))]), c


def relu_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = max(0, p_j + q_j), one sample   (PyTorch documentation, nn.RNN)."""
    return np.array([max(0.0, p[j] + q[j]) for j in range(len(h))]), c


def lstm_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """LSTM cell, one sample; p, q (4 H,): input, forget, candidate and output gate, in this order.

    c'_j = f_j c_j + i_j g_j and h'_j = o_j tanh c'_j   (PyTorch documentation, nn.LSTM)
    """
    new_h, new_c, size = np.zeros(len(h)), np.zeros(len(h)), len(h)
    for j in range(size):
        i, f, g, o = (p[gate * size + j] + q[gate * size + j] for gate in range(4))
        new_c[j] = c[j] / (1 + math.exp(-f)) + math.tanh(g) / (1 + math.exp(-i))
        new_h[j] = math.tanh(new_c[j]) / (1 + math.exp(-o))
    return new_h, new_c


def gru_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """GRU cell, one sample; p, q (3 H,): reset, update and candidate gate, in this order.

    n_j = tanh(p_nj + r_j q_nj) and h'_j = (1 - z_j) n_j + z_j h_j   (PyTorch documentation, nn.GRU)
    """
    new_h, size = np.zeros(len(h)), len(h)
    for j in range(size):
        r = 1 / (1 + math.exp(-p[j] - q[j]))
        z = 1 / (1 + math.exp(-p[size + j] - q[size + j]))
        n = math.tanh(p[2 * size + j] + r * q[2 * size + j])
        new_h[j] = (1 - z) * n + z * h[j]
    return new_h, c


def product_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = h_j / 2 + p_j q_j and c'_j = c_j / 2 + h'_j, one sample (a user's cell)."""
    size = len(h)
    new_h = np.array([h[j] / 2 + p[j] * q[j] for j in range(size)])
    return new_h, np.array([c[j] / 2 + new_h[j] for j in range(size)])


Cell = Callable[[F64, F64, F64, F64], tuple[F64, F64]]


def recurrent(
    cell: Cell, x: F64, weights: dict[str, F64], states: list[tuple[F64, F64]] | None = None
) -> tuple[F64, list[tuple[F64, F64]]]:
    """A recurrent network, x (N, T, in) -> y (N, T, H D) and the final (h, c), each (N, H).

    For each sample, layer l and direction, forward or backward in time:
    h, c <- cell(W_ih x_t + b_ih, W_hh h + b_hh, h, c); the outputs of both directions at t are
    the next layer's x_t   (PyTorch documentation, nn.LSTM; the numbers of layers and directions
    follow from the names in `weights`)
    """
    layers = sum(name.startswith("weight_ih") and "reverse" not in name for name in weights)
    suffixes = ["", "_reverse"] if "weight_ih_l0_reverse" in weights else [""]
    (batch, length, _), size = x.shape, weights["weight_hh_l0"].shape[1]
    ends: list[tuple[F64, F64]] = []
    for layer in range(layers):
        y = np.zeros((batch, length, size * len(suffixes)))
        for d, suffix in enumerate(suffixes):
            zero = np.zeros((batch, size))
            first_h, first_c = states[len(ends)] if states else (zero, zero)
            end_h, end_c = zero.copy(), zero.copy()
            for n in range(batch):
                h, c = first_h[n], first_c[n]
                times = list(range(length))
                for t in times[::-1] if suffix else times:
                    rows = []
                    for kind, row in (("ih", x[n, t]), ("hh", h)):
                        weight = weights[f"weight_{kind}_l{layer}{suffix}"]
                        bias = weights.get(f"bias_{kind}_l{layer}{suffix}")
                        rows.append(linear(row[None, :], weight, bias)[0])
                    h, c = cell(rows[0], rows[1], h, c)
                    for j in range(size):
                        y[n, t, d * size + j] = h[j]
                end_h[n], end_c[n] = h, c
            ends.append((end_h, end_c))
        x = y
    return x, ends
