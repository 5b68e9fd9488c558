"""A layer of your own: written once, gradient-checked, and run on every available backend.

python examples/custom_layer.py
"""

import numpy as np

import xbp
from xbp import nn
from xbp.testing import check_gradients, check_parity


class RMSNorm(nn.Layer):
    """y = g ∘ x / r with r = √(mean(x²) + ε), over the last axis (Zhang & Sennrich 2019).

    With n = x / r and δ = dy ∘ g:  ∂L/∂g = Σ dy ∘ n,  ∂L/∂x = (δ - n · mean(δ ∘ n)) / r.
    """

    def __init__(self, features: int, eps: float = 1e-6) -> None:
        self.eps = eps
        self.gain = nn.Parameter(xbp.asarray(np.ones(features), dtype="float32"))

    def forward(self, x, *, training=False, rng=None):
        xp = self.check_input(x)
        g = self.gain.data
        r = xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        n = x / r

        def backward(dy):
            self.gain.add_grad(xp.sum(dy * n, axis=tuple(range(x.ndim - 1))))
            delta = dy * g
            return (delta - n * xp.mean(delta * n, axis=-1, keepdims=True)) / r

        return g * n, backward


def main() -> None:
    x = np.random.default_rng(0).normal(size=(4, 8))
    check_gradients(RMSNorm(8), x)
    print("gradients equal numeric derivatives in float64")

    backends = [name for name in xbp.available_backends() if name != "numpy"]
    check_parity(lambda: RMSNorm(8), x, backends=backends)
    print(f"forward and backward on {', '.join(backends)} equal numpy's")

    model = nn.Sequential(nn.Linear(8, 16, rng=0), RMSNorm(16), nn.ReLU(), nn.Linear(16, 3, rng=1))
    print(model)
    print("its parameters:", ", ".join(model.state_dict()))


if __name__ == "__main__":
    main()
