"""The effect of initial weights on activations and gradients of a ten-layer tanh network.

    python examples/initial_weights.py [--backend array_api_strict] [--plot weights.png]

Ten layers of 256 units without biases, an input from N(0, 1), and an output gradient from N(0, 1):
the setting of Glorot & Bengio 2010, figures 6 and 7, with five more layers. Prints the standard
deviations at each layer; the plot has histograms, one curve per layer.

As all layers are square, Xavier's variance 2/(fan_in + fan_out) equals LeCun's 1/fan_in, and both
draw the same weights.
"""

import argparse
from functools import partial

import numpy as np

import xbp
from xbp import initializers, nn

LAYERS, WIDTH, BATCH = 10, 256, 200
WEIGHTS = {
    "too small: N(0, 0.01²)": partial(initializers.normal, std=0.01),
    "U(±1/√n), PyTorch's": initializers.fan_in_uniform,  # the paper's "standard" initialization
    "Xavier, here also LeCun": initializers.xavier_normal,
    "Xavier, gain 5/3": partial(initializers.xavier_normal, gain=5 / 3),
    "orthogonal": initializers.orthogonal,
    "He, meant for ReLU": initializers.he_normal,
    "too large: N(0, 1)": partial(initializers.normal, std=1.0),
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
parser.add_argument("--plot", metavar="FILE", help="an image to write the histograms to")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)


def run(init: initializers.Initializer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Activations tanh(z), and gradients ∂L/∂z, of the layers from the first to the last."""
    rng = xbp.random.generator(options.seed)
    x = xbp.asarray(rng.normal(size=(BATCH, WIDTH)), dtype="float32")
    gradient = xbp.asarray(rng.normal(size=(BATCH, WIDTH)), dtype="float32")
    activations, gradients, steps = [], [], []
    for _ in range(LAYERS):
        linear = nn.Linear(WIDTH, WIDTH, bias=False, rng=rng, weight_init=init)
        z, linear_backward = linear.forward(x)
        x, tanh_backward = nn.Tanh().forward(z)
        activations.append(xbp.to_numpy(x))
        steps.append((linear_backward, tanh_backward))
    for linear_backward, tanh_backward in reversed(steps):
        dz = tanh_backward(gradient)
        gradients.insert(0, xbp.to_numpy(dz))
        gradient = linear_backward(dz)
    return activations, gradients


results = {name: run(init) for name, init in WEIGHTS.items()}
for index, what in enumerate(("activations", "gradients ∂L/∂z")):
    print(f"standard deviation of the {what}, layers 1 to {LAYERS}")
    for name, arrays in results.items():
        print(f"{name:<24}", *(f"{array.std():8.1e}" for array in arrays[index]))
    print()
for name, (activations, _) in results.items():
    saturated = np.mean(np.abs(activations[-1]) > 0.99)
    print(f"{name:<24} {saturated:4.0%} of the last layer's activations are beyond ±0.99")

if options.plot:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    figure = Figure(figsize=(10, 1.8 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, sharex="col")
    for row, (name, curves) in zip(axes, results.items(), strict=True):
        for panel, arrays, ends in zip(row, curves, [(-1, 1), (-12, 6)], strict=True):
            for layer, array in enumerate(arrays):
                values = array if ends == (-1, 1) else np.log10(np.abs(array) + 1e-30)
                density, edges = np.histogram(values, 90, ends, density=True)
                colour = (layer / LAYERS, 0.3, 1 - layer / LAYERS)  # blue below, red above
                panel.plot(edges[1:], density, color=colour, lw=1, label=f"layer {layer + 1}")
            panel.set_yticks([])
        row[0].set(title=name, ylim=(0, 4))
    axes[-1, 0].set_xlabel("activation")
    axes[-1, 1].set_xlabel("log₁₀ |∂L/∂z|")
    axes[2, 1].legend(fontsize="x-small", loc="upper left", ncols=2)
    figure.savefig(options.plot)
    print(f"\nhistograms written to {options.plot}")
