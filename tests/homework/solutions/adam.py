from xbp import optim


class Adam(optim.Optimizer):
    """p ← p - η m̂ / (√v̂ + ε)."""

    def __init__(self, parameters, lr=0.001, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def state_names(self):
        return ("m", "v")

    def coefficients(self, lr, t):
        return lr / (1 - self.betas[0] ** t), 1 / (1 - self.betas[1] ** t)

    def update(self, xp, p, g, state, rate, scale):
        m, v = state["m"], state["v"]
        m *= self.betas[0]
        m += (1 - self.betas[0]) * g
        v *= self.betas[1]
        v += (1 - self.betas[1]) * g * g
        p -= rate * m / (xp.sqrt(scale * v) + self.eps)
