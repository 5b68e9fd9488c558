"""Recurrent layers of the known cells, `xbp.primitives.cells`, run by `xbp.nn.scan`."""

from __future__ import annotations

from typing import Any

from xbp.arguments import choice
from xbp.nn.scan import Recurrent
from xbp.primitives import cells


class RNN(Recurrent):
    """h_t = f(p_t + q_t) with f = tanh or ReLU: the simplest recurrent network (Elman 1990).

    The backward of a step is that of `xbp.primitives.cells.elman` or `rectified`.

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

    @property
    def step(self) -> cells.Step:
        """The cell."""
        return cells.elman if self.nonlinearity == "tanh" else cells.rectified

    def options(self) -> str:
        return super().options() + ", nonlinearity='relu'" * (self.nonlinearity == "relu")


class LSTM(Recurrent):
    """Long short-term memory, whose cell state c is updated by addition.

        (i, f, g, o) = (σ, σ, tanh, σ)(p_t + q_t)        input, forget, candidate, output
        c_t = f ∘ c_{t-1} + i ∘ g,    h_t = o ∘ tanh c_t

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000 and
    without peepholes; gates in PyTorch's order. The backward of a step is that of
    `xbp.primitives.cells.lstm`.

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

    step = staticmethod(cells.lstm)


class GRU(Recurrent):
    """Gated recurrent unit: h moves by a fraction 1 - z towards a candidate n.

        r = σ(p_r + q_r),   z = σ(p_z + q_z),   n = tanh(p_n + r ∘ q_n)     reset, update, candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    Cho et al. 2014, with r applied after the product W_hn h + b_hn, as in PyTorch and cuDNN, and
    not before it, W_hn (r ∘ h), so that q is one matrix product. The backward of a step is that of
    `xbp.primitives.cells.gru`.

    See `Recurrent` for the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.GRU(3, 5, bidirectional=True, rng=0)(np.zeros((4, 7, 3), np.float32)).shape
    (4, 7, 10)
    """

    gates = 3

    step = staticmethod(cells.gru)
