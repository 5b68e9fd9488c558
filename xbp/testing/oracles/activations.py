"""Elementwise functions, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xbp.testing.oracles.types import F64


def _elementwise(function: Callable[[float], float], x: F64) -> F64:
    y = np.zeros(x.shape)
    for index, value in np.ndenumerate(x):
        y[index] = function(float(value))
    return y


def relu(x: F64) -> F64:
    """Rectifier max(x, 0), any shape (Nair & Hinton 2010)."""
    return _elementwise(lambda value: max(value, 0.0), x)


def leaky_relu(x: F64, negative_slope: float) -> F64:
    """Identity where x > 0, else negative_slope x; any shape (Maas, Hannun & Ng 2013)."""
    return _elementwise(lambda value: value if value > 0.0 else negative_slope * value, x)


def prelu(x: F64, slopes: F64) -> F64:
    """Identity where x > 0, else slopes[0] x, or slopes[c] x at channel c (He et al. 2015, eq. 1).

    x of any shape, slopes (1,); or x (N, C, ...), slopes (C,).
    """
    y = np.zeros(x.shape)
    for index, value in np.ndenumerate(x):
        slope = slopes[0] if len(slopes) == 1 else slopes[index[1]]
        y[index] = value if value > 0.0 else slope * value
    return y


def elu(x: F64, alpha: float = 1.0) -> F64:
    """Identity where x > 0, else alpha (exp(x) - 1); any shape (Clevert et al. 2016, eq. 15)."""
    return _elementwise(lambda v: v if v > 0.0 else alpha * (math.exp(v) - 1.0), x)


def selu(x: F64) -> F64:
    """1.0507 elu(x, 1.6733), any shape; Klambauer et al. 2017, the digits from their section 2."""
    return 1.0507009873554804934193349852946 * elu(x, 1.6732632423543772848170429916717)


def gelu(x: F64) -> F64:
    """x (1 + erf(x / sqrt 2)) / 2, any shape (Hendrycks & Gimpel 2016, section 2).

    erfc is more accurate at -7 than 1 + erf.
    """
    return _elementwise(lambda v: v * math.erfc(-v / math.sqrt(2.0)) / 2.0, x)


def gelu_tanh(x: F64) -> F64:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, any shape (as gelu).

    Computed as x / (1 + exp(-2 ...)), which is more accurate at -7.
    """
    u: F64 = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return x * sigmoid(2.0 * u)


def silu(x: F64) -> F64:
    """x / (1 + exp(-x)), any shape (Elfwing et al. 2018)."""
    return _elementwise(lambda v: v / (1.0 + math.exp(-v)), x)


def softplus(x: F64, beta: float = 1.0) -> F64:
    """log(1 + exp(beta x)) / beta, any shape (Dugas et al. 2001)."""
    return _elementwise(lambda v: math.log1p(math.exp(beta * v)) / beta, x)


def sigmoid(x: F64) -> F64:
    """Logistic function 1 / (1 + exp(-x)), any shape."""

    def scalar(value: float) -> float:
        # exp of a non-positive argument may underflow to 0 but never overflows.
        small = math.exp(-abs(value))
        return 1.0 / (1.0 + small) if value >= 0.0 else small / (1.0 + small)

    return _elementwise(scalar, x)


def tanh(x: F64) -> F64:
    """Hyperbolic tangent, any shape."""
    return _elementwise(math.tanh, x)


def scaled_tanh(x: F64, amplitude: float, slope: float) -> F64:
    """Squashing function A tanh(S x), any shape (LeCun et al. 1998, equation 6)."""
    return _elementwise(lambda value: amplitude * math.tanh(slope * value), x)


def softmax(x: F64, axis: int) -> F64:
    """Normalised exponential exp(x_i) / sum_j exp(x_j) along axis, any shape (Bridle 1990)."""
    axis %= x.ndim
    y = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        line = [float(x[(*index[:axis], j, *index[axis + 1 :])]) for j in range(x.shape[axis])]
        # Subtracting the maximum cancels in the quotient and keeps exp from overflowing.
        peak = max(line)
        total = math.fsum(math.exp(value - peak) for value in line)
        y[index] = math.exp(x[index] - peak) / total
    return y


def log_softmax(x: F64, axis: int) -> F64:
    """log(exp(x_i) / sum_j exp(x_j)) along axis, any shape."""
    return _elementwise(math.log, softmax(x, axis))
