import numpy as np

import xbp
from xbp import nn


class RNN(nn.Layer):
    """h_t = tanh(W_ih x_t + W_hh h_{t-1} + b)."""

    def __init__(self, input_size, hidden_size):
        self.weight_ih = nn.Parameter(xbp.asarray(np.zeros((hidden_size, input_size))))
        self.weight_hh = nn.Parameter(xbp.asarray(np.zeros((hidden_size, hidden_size))))
        self.bias = nn.Parameter(xbp.asarray(np.zeros(hidden_size)))

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)
        W, add_ih_grad = self.weight_ih.lend()
        U, add_hh_grad = self.weight_hh.lend()
        b, add_bias_grad = self.bias.lend()
        n, steps, _ = x.shape
        states = [xp.zeros((n, b.shape[0]), dtype=x.dtype, device=x.device)]
        for t in range(steps):
            states.append(xp.tanh(x[:, t, :] @ W.T + states[t] @ U.T + b))
        y = xp.stack(states[1:], axis=1)

        def backward(dy):
            dx = xp.zeros_like(x)
            dW, dU, db = xp.zeros_like(W), xp.zeros_like(U), xp.zeros_like(b)
            dh = xp.zeros_like(states[0])
            for t in range(steps - 1, -1, -1):
                h = states[t + 1]
                dh = dh + dy[:, t, :]
                da = (1 - h * h) * dh
                dW += da.T @ x[:, t, :]
                dU += da.T @ states[t]
                db += xp.sum(da, axis=0)
                dx[:, t, :] = da @ W
                dh = da @ U
            add_ih_grad(dW)
            add_hh_grad(dU)
            add_bias_grad(db)
            return dx

        return y, backward
