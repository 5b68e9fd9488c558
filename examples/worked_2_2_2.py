"""The worked 2-2-2 network: every figure beside the tutorial's, and the tutorial's mistakes.

    python examples/worked_2_2_2.py [--backend array_api_strict]

Inputs .05 .10, targets .01 .99, weights .15 .20 .25 .30 and .40 .45 .50 .55, biases .35 and .60
(never trained), sigmoid in both layers, E = ½ Σ (t - o)², gradient descent with rate 0.5.
"""

import argparse
from typing import Any

import numpy as np

import xbp
from xbp import nn, optim

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--steps", type=int, default=10_000)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)

x = xbp.asarray([[0.05, 0.10]])
target = xbp.asarray([[0.01, 0.99]])
loss = nn.MSELoss("sum", factor=0.5)


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Sigmoid())
    model.astype("float64")
    weights = {
        "0.weight": np.array([[0.15, 0.20], [0.25, 0.30]]),
        "0.bias": np.array([0.35, 0.35]),
        "2.weight": np.array([[0.40, 0.45], [0.50, 0.55]]),
        "2.bias": np.array([0.60, 0.60]),
    }
    model.load_state_dict(weights)
    return model


def show(name: str, value: Any, tutorial: str) -> None:
    ours = "  ".join(f"{v:.9f}" for v in np.ravel(xbp.to_numpy(value)))
    printed = "  ".join(f"{float(v):.9f}" for v in tutorial.split())
    verdict = "" if ours == printed else "   <- differs"
    print(f"{name:<12} {ours:<48} {printed}{verdict}")


def train(steps: int, *, as_printed: bool = False) -> tuple[nn.Sequential, Any, Any]:
    """Train all weights at once; or in the wrong order, as for some of the tutorial's figures."""
    model = network()
    hidden, linear, sigmoid = model[:2], model[2], model[3]
    inner = optim.SGD([model[0].weight], lr=0.5)  # the biases are fixed
    outer = optim.SGD([model[2].weight], lr=0.5)
    for _ in range(steps):
        h, backward_hidden = hidden.forward(x, training=True)
        net, backward_linear = linear.forward(h, training=True)
        o, backward_sigmoid = sigmoid.forward(net, training=True)
        _, gradient = loss(o, target)
        dnet = backward_sigmoid(gradient)
        dh = backward_linear(dnet)
        if as_printed:
            outer.step()  # too early: ∂L/∂h now comes from the *new* w5 … w8
            _, too_late = linear.forward(h, training=True)
            backward_hidden(too_late(dnet))
        else:
            backward_hidden(dh)
            outer.step()
        inner.step()
        for parameter in model.parameters():
            parameter.zero_grad()
    o = model(x)
    return model, o, loss(o, target)[0]


print(f"{'':<12} {'xbp':<48} the tutorial")
model = network()
steps = [y for _, _, y in nn.named_outputs(model, x)]
show("net h1", steps[0][0, 0], "0.3775")
show("out h1, h2", steps[1], "0.593269992 0.596884378")
show("net o1", steps[2][0, 0], "1.105905967")
show("out o1, o2", steps[3], "0.751365070 0.772928465")
o, backward = model.forward(x, training=True)
value, gradient = loss(o, target)
show("E", value, "0.298371109")
backward(gradient)
show("dE/dw5", model[2].weight.grad[0, 0], "0.082167041")
show("dE/dw1", model[0].weight.grad[0, 0], "0.000438568")
model, o, value = train(1)
show("new w5 … w8", model[2].weight.data, "0.358916480 0.408666186 0.511301270 0.561370121")
show("new w1 … w4", model[0].weight.data, "0.149780716 0.199561432 0.249751144 0.299502287")
show("E after 1", value, "0.291027924")
_, o, value = train(options.steps)
show(f"E, {options.steps}", value, "0.000035085")
show(f"o, {options.steps}", o, "0.015912196 0.984065734")

print("""
The last three differ because whatever program printed them had already changed w5 … w8 when it
computed the gradients of w1 … w4. (The tutorial's text and its listing keep the right order, and
its w1 … w4 agree.) In the wrong order, xbp gives the tutorial's figures to the last digit:
""")
_, _, value = train(1, as_printed=True)
show("E after 1", value, "0.291027924")
_, o, value = train(options.steps, as_printed=True)
show(f"E, {options.steps}", value, "0.000035085")
show(f"o, {options.steps}", o, "0.015912196 0.984065734")
print("\nThe tutorial's listing, run as it stands, trains towards 0.09 in place of 0.99.")
