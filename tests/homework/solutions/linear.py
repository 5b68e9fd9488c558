import numpy as np

import xbp
from xbp import nn


class Linear(nn.Layer):
    """y = x Wᵀ + b."""

    def __init__(self, in_features, out_features):
        self.weight = nn.Parameter(xbp.asarray(np.zeros((out_features, in_features))))
        self.bias = nn.Parameter(xbp.asarray(np.zeros(out_features)))

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)
        W, add_weight_grad = self.weight.lend()
        b, add_bias_grad = self.bias.lend()
        y = x @ W.T + b

        def backward(dy):
            add_weight_grad(dy.T @ x)
            add_bias_grad(xp.sum(dy, axis=0))
            return dy @ W

        return y, backward
