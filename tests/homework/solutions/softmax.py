from xbp import nn


class Softmax(nn.Layer):
    """y_i = e^{x_i} / Σ_j e^{x_j} for each row."""

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)
        e = xp.exp(x - xp.max(x, axis=1, keepdims=True))
        y = e / xp.sum(e, axis=1, keepdims=True)

        def backward(dy):
            return y * (dy - xp.sum(y * dy, axis=1, keepdims=True))

        return y, backward
