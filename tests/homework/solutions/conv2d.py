import numpy as np

import xbp
from xbp import nn


class Conv2d(nn.Layer):
    """y[n,o,r,s] = b[o] + Σ_cij W[o,c,i,j] x[n,c,r+i,s+j]."""

    def __init__(self, in_channels, out_channels, kernel_size):
        shape = (out_channels, in_channels, *kernel_size)
        self.weight = nn.Parameter(xbp.asarray(np.zeros(shape)))
        self.bias = nn.Parameter(xbp.asarray(np.zeros(out_channels)))

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)
        W, add_weight_grad = self.weight.lend()
        b, add_bias_grad = self.bias.lend()
        (n, _, height, width), (out, _, kh, kw) = x.shape, W.shape
        rows, columns = height - kh + 1, width - kw + 1
        y = xp.zeros((n, out, rows, columns), dtype=x.dtype, device=x.device)
        for i in range(kh):
            for j in range(kw):
                window = x[:, :, i : i + rows, j : j + columns]
                part = xp.tensordot(window, W[:, :, i, j], axes=((1,), (1,)))
                y += xp.permute_dims(part, (0, 3, 1, 2))
        y += xp.reshape(b, (-1, 1, 1))

        def backward(dy):
            dx, dW = xp.zeros_like(x), xp.zeros_like(W)
            for i in range(kh):
                for j in range(kw):
                    window = x[:, :, i : i + rows, j : j + columns]
                    dW[:, :, i, j] = xp.tensordot(dy, window, axes=((0, 2, 3), (0, 2, 3)))
                    part = xp.tensordot(dy, W[:, :, i, j], axes=((1,), (0,)))
                    dx[:, :, i : i + rows, j : j + columns] += xp.permute_dims(part, (0, 3, 1, 2))
            add_weight_grad(dW)
            add_bias_grad(xp.sum(dy, axis=(0, 2, 3)))
            return dx

        return y, backward
