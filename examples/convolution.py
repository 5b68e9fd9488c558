"""Convolution forward and backward, with arrays small enough to check by hand.

    python examples/convolution.py [--backend array_api_strict]

Convolution is (x * k)[r, s] = Σ_ij x[r - i, s - j] k[i, j]; cross-correlation, which is what a
convolutional layer computes, is (x ⋆ k)[r, s] = Σ_ij x[r + i, s + j] k[i, j]. With δ = ∂E/∂y:

    y = x ⋆ w + b = x * turned(w) + b,    where the kernel lies within x
    ∂E/∂w = x ⋆ δ = x * turned(δ),        where δ lies within x
    ∂E/∂x = δ * w,                        wherever the two overlap (full)

∂E/∂x is also the correlation of a zero-padded δ with turned(w). The convolution δ * turned(w),
which some texts give, is a different array, as the last lines show.
"""

import argparse
from typing import Any

import numpy as np

import xbp
from xbp import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", help="numpy, cupy, …; by default XBP_BACKEND, or numpy")
options = parser.parse_args()
if options.backend:
    xbp.set_backend(options.backend)


def turned(k: np.ndarray) -> np.ndarray:
    """k rotated by 180°."""
    return k[::-1, ::-1]


def full(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The full x * k, from its definition, with x zero outside."""
    y = np.zeros((len(x) + len(k) - 1, len(x[0]) + len(k[0]) - 1))
    for r, s in np.ndindex(y.shape):
        for i, j in np.ndindex(k.shape):
            if 0 <= r - i < len(x) and 0 <= s - j < len(x[0]):
                y[r, s] += x[r - i, s - j] * k[i, j]
    return y


def within(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The part of x * k where the kernel lies within x."""
    return full(x, k)[len(k) - 1 : len(x), len(k[0]) - 1 : len(x[0])]


def show(name: str, found: Any, formula: str, expected: np.ndarray) -> None:
    found = xbp.to_numpy(found)
    verdict = "equal" if np.array_equal(found, expected) else "they differ"
    print(f"{name} from the layer, and {formula}: {verdict}")
    for left, right in zip(found, expected, strict=True):
        print(*(f"{v:5.0f}" for v in left), "   |", *(f"{v:5.0f}" for v in right))
    print()


x = np.array([[1.0, 2, 0, 1], [0, 1, 3, 2], [4, 0, 1, 1], [2, 2, 0, 5]])
w = np.array([[1.0, 2], [0, -1], [3, 1]])
b = np.array([1.0])
delta = np.array([[1.0, -2, 0], [2, 1, 3]])

layer = nn.Conv2d(1, 1, w.shape, dtype="float64")
layer.load_state_dict({"weight": w[None, None], "bias": b})
y, backward = layer.forward(xbp.asarray(x[None, None]))
dx = backward(xbp.asarray(delta[None, None]))[0, 0, ...]
dw = layer.weight.grad[0, 0, ...]

show("y", y[0, 0, ...], "x * turned(w) + b", within(x, turned(w)) + b)
show("∂E/∂w", dw, "x * turned(δ)", within(x, turned(delta)))
show("∂E/∂x", dx, "δ * w", full(delta, w))
show("∂E/∂x", dx, "δ * turned(w), which it is not", full(delta, turned(w)))
