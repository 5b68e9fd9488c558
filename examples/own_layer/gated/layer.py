"""A linear layer with a learned gate for each output."""

from functools import partial

from xbp import nn
from xbp.arguments import integer
from xbp.errors import InputError
from xbp.initializers import fan_in_uniform
from xbp.random import generator


class GatedLinear(nn.Layer):
    """y = a ∘ σ(s), where a and s are the halves of x Wᵀ + b (Dauphin et al. 2017, eq. 1).

    With δ = ∂L/∂y, g = σ(s) and ε = (δ ∘ g, δ ∘ a ∘ g ∘ (1 - g)), the gradient of both halves:
    ∂L/∂W = εᵀ x,  ∂L/∂b = Σ ε,  ∂L/∂x = ε W.

    Input (N, in_features), output (N, out_features). `weight` is (2 out_features, in_features),
    `bias` (2 out_features,): PyTorch's `Linear` followed by its `GLU`.
    """

    def __init__(self, in_features, out_features, *, dtype="float32", rng=None):
        self.in_features = integer("in_features", in_features, least=1)
        self.out_features = integer("out_features", out_features, least=1)
        rng = generator(rng)
        self.weight = nn.Parameter.draw((2 * out_features, in_features), fan_in_uniform, rng, dtype)
        bias_init = partial(fan_in_uniform, fan_in=in_features)
        self.bias = nn.Parameter.draw((2 * out_features,), bias_init, rng, dtype)

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)  # refuses input that does not fit the parameters
        if x.ndim != 2 or x.shape[1] != self.in_features:
            msg = f"{self} expects input (N, {self.in_features}), got shape {tuple(x.shape)}"
            raise InputError(msg)
        W = self.weight.data
        both = x @ W.T + self.bias.data
        a, s = both[:, : self.out_features], both[:, self.out_features :]
        g = 0.5 + 0.5 * xp.tanh(0.5 * s)  # σ(s); exp(-s) would overflow

        def backward(dy):
            d_both = xp.concat([dy * g, dy * a * g * (1 - g)], axis=1)
            self.weight.add_grad(d_both.T @ x)
            self.bias.add_grad(xp.sum(d_both, axis=0))
            return d_both @ W

        return a * g, backward

    def options(self):
        return f"{self.in_features}, {self.out_features}"
