"""Reference functions for the tests, each a direct transcription of its textbook definition.

Everything is float64 and written as loops over indices, so that a function can be believed by
reading it; speed does not matter, and no function here shares code or tricks with the library
under test. Image arrays are (N, C, H, W) and pairs are (height, width). Arguments are taken to be
finite and valid.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Pair = tuple[int, int]
Words = tuple[int, int, int, int]


def linear(x: F64, weight: F64, bias: F64 | None = None) -> F64:
    """Affine map, x (N, in), weight (out, in), bias (out,) -> y (N, out).

    y[n, o] = bias[o] + sum_i x[n, i] weight[o, i]   (PyTorch documentation, nn.Linear)
    """
    y = np.zeros((x.shape[0], weight.shape[0]))
    for n, o in np.ndindex(y.shape):
        total = 0.0 if bias is None else float(bias[o])
        for i in range(x.shape[1]):
            total += x[n, i] * weight[o, i]
        y[n, o] = total
    return y


def _window_counts(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """Rows and columns of windows that fit into the padded image (floor, as PyTorch's default)."""
    rows = (shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1
    columns = (shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1
    return rows, columns


def conv2d(
    x: F64, weight: F64, bias: F64 | None = None, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> F64:
    """Cross-correlation, x (N, C, H, W), weight (O, C, KH, KW), bias (O,) -> y (N, O, P, Q).

    y[n, o, p, q] = bias[o] + sum_{c, u, v} weight[o, c, u, v] x[n, c, p SH + u - PH, q SW + v - PW]
    with x zero outside the image   (PyTorch documentation, nn.Conv2d; the kernel is not flipped)
    """
    batch, _, height, width = x.shape
    outputs, channels, kernel_h, kernel_w = weight.shape
    windows = _window_counts(x.shape, (kernel_h, kernel_w), stride, padding)
    y = np.zeros((batch, outputs, *windows))
    for n, o, p, q in np.ndindex(y.shape):
        total = 0.0 if bias is None else float(bias[o])
        for c, u, v in np.ndindex(channels, kernel_h, kernel_w):
            row = p * stride[0] + u - padding[0]
            column = q * stride[1] + v - padding[1]
            if 0 <= row < height and 0 <= column < width:
                total += weight[o, c, u, v] * x[n, c, row, column]
        y[n, o, p, q] = total
    return y


def _window(
    shape: tuple[int, ...], p: int, q: int, kernel: Pair, stride: Pair, padding: Pair
) -> list[Pair]:
    """Image positions covered by window (p, q), in row-major order, without the padding."""
    positions = []
    for u, v in np.ndindex(kernel):
        row = p * stride[0] + u - padding[0]
        column = q * stride[1] + v - padding[1]
        if 0 <= row < shape[2] and 0 <= column < shape[3]:
            positions.append((row, column))
    return positions


def max_pool2d(x: F64, kernel: Pair, stride: Pair, padding: Pair) -> F64:
    """Largest entry of each window, x (N, C, H, W) -> y (N, C, P, Q).

    y[n, c, p, q] = max_{u, v} x[n, c, p SH + u - PH, q SW + v - PW]   (PyTorch, nn.MaxPool2d)
    The padding counts as -inf, so it never wins and the windows simply leave it out. As PyTorch
    demands, padding is at most half the kernel: then every window holds a real entry.
    """
    y = np.zeros((*x.shape[:2], *_window_counts(x.shape, kernel, stride, padding)))
    for n, c, p, q in np.ndindex(y.shape):
        window = _window(x.shape, p, q, kernel, stride, padding)
        y[n, c, p, q] = max(x[n, c, i, j] for i, j in window)
    return y


def max_pool2d_input_gradient(x: F64, dy: F64, kernel: Pair, stride: Pair, padding: Pair) -> F64:
    """Gradient of sum(dy * max_pool2d(x)), x (N, C, H, W), dy (N, C, P, Q) -> dx (N, C, H, W).

    dx[n, c, i, j] = sum of dy[n, c, p, q] over the windows (p, q) whose first maximum in
    row-major order is (i, j)   (PyTorch's rule for ties; overlapping windows accumulate)
    """
    dx = np.zeros(x.shape)
    for n, c, p, q in np.ndindex(dy.shape):
        window = _window(x.shape, p, q, kernel, stride, padding)
        values = [float(x[n, c, i, j]) for i, j in window]
        # list.index finds the first of equal values.
        i, j = window[values.index(max(values))]
        dx[n, c, i, j] += dy[n, c, p, q]
    return dx


def avg_pool2d(x: F64, kernel: Pair, stride: Pair, padding: Pair) -> F64:
    """Mean of each window, x (N, C, H, W) -> y (N, C, P, Q).

    y[n, c, p, q] = 1 / (KH KW) sum_{u, v} x[n, c, p SH + u - PH, q SW + v - PW]
    with x zero outside the image   (PyTorch, nn.AvgPool2d with count_include_pad=True)
    """
    y = np.zeros((*x.shape[:2], *_window_counts(x.shape, kernel, stride, padding)))
    for n, c, p, q in np.ndindex(y.shape):
        window = _window(x.shape, p, q, kernel, stride, padding)
        y[n, c, p, q] = sum(x[n, c, i, j] for i, j in window) / (kernel[0] * kernel[1])
    return y


def flatten(x: F64) -> F64:
    """Row-major flattening of all axes but the first, x (N, A, B, ...) -> y (N, A B ...)."""
    y = np.zeros((x.shape[0], math.prod(x.shape[1:])))
    for n in range(x.shape[0]):
        for k, index in enumerate(np.ndindex(x.shape[1:])):
            y[n, k] = x[(n, *index)]
    return y


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


def _reduced_loss(
    entry_loss: Callable[[float], float], prediction: F64, target: F64, reduction: str
) -> float:
    # Broadcasting would make it a different loss, so unequal shapes are a mistake in the test.
    if prediction.shape != target.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {target.shape}")
    terms = [entry_loss(float(prediction[i] - target[i])) for i in np.ndindex(target.shape)]
    divisors = {"mean": len(terms), "sum": 1, "batchmean": len(target)}
    return math.fsum(terms) / divisors[reduction]


def mse_loss(prediction: F64, target: F64, reduction: str = "mean", factor: float = 1.0) -> float:
    """Squared error, both (N, ...) -> factor * reduced (prediction - target)^2.

    reduction: "mean" divides the sum by the number of elements, "batchmean" by N, "sum" by 1.
    """
    return factor * _reduced_loss(lambda error: error * error, prediction, target, reduction)


def l1_loss(prediction: F64, target: F64, reduction: str = "mean", factor: float = 1.0) -> float:
    """Absolute error, both (N, ...) -> factor * reduced |prediction - target|, as mse_loss."""
    return factor * _reduced_loss(abs, prediction, target, reduction)


def cross_entropy(
    logits: F64, target: NDArray[np.float64 | np.integer], reduction: str = "mean"
) -> float:
    """Cross-entropy of softmax(logits), logits (N, C), labels (N,) or probabilities (N, C).

    row loss = -sum_c target[n, c] log(exp(logits[n, c]) / sum_k exp(logits[n, k])), a label being
    the probability 1 of its class; "mean" divides by N   (PyTorch, nn.CrossEntropyLoss)
    """
    rows, classes = logits.shape
    losses = []
    for n in range(rows):
        line = [float(logits[n, c]) for c in range(classes)]
        peak = max(line)
        log_total = math.log(math.fsum(math.exp(value - peak) for value in line))
        # -log softmax. The peak is taken off before log_total is added: with logits of 1e4 the
        # other order would round a small log_total away.
        surprise = [log_total - (value - peak) for value in line]
        if target.ndim == 1:
            losses.append(surprise[int(target[n])])
        else:
            losses.append(math.fsum(float(target[n, c]) * surprise[c] for c in range(classes)))
    divisors = {"mean": len(losses), "sum": 1}
    return math.fsum(losses) / divisors[reduction]


def sgd(
    parameter: F64,
    gradients: list[F64],
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> F64:
    """Parameter after one step per gradient, all of one shape (PyTorch, torch.optim.SGD).

    g = gradient + weight_decay p;  b = g at the first step, else momentum b + (1 - dampening) g;
    p = p - lr (g without momentum, g + momentum b with nesterov, else b)
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, b = float(parameter[index]), 0.0
        for step, gradient in enumerate(gradients):
            g = float(gradient[index]) + weight_decay * p
            if momentum != 0.0:
                # PyTorch does not dampen the gradient that starts the buffer.
                b = g if step == 0 else momentum * b + (1.0 - dampening) * g
                g = g + momentum * b if nesterov else b
            p -= lr * g
        result[index] = p
    return result


def adam(
    parameter: F64,
    gradients: list[F64],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Kingma & Ba 2015, Algorithm 1).

    g = gradient + weight_decay p  (PyTorch's L2 penalty; not in the paper)
    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr m' / (sqrt(v') + eps)
    with m' = m / (1 - b1^t), v' = v / (1 - b2^t), t = 1, 2, ...
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m, v = float(parameter[index]), 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index]) + weight_decay * p
            m = betas[0] * m + (1.0 - betas[0]) * g
            v = betas[1] * v + (1.0 - betas[1]) * g * g
            m_corrected = m / (1.0 - betas[0] ** t)
            v_corrected = v / (1.0 - betas[1] ** t)
            p -= lr * m_corrected / (math.sqrt(v_corrected) + eps)
        result[index] = p
    return result


def _cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine wave from start (fraction 0) to end (fraction 1)."""
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2.0


def one_cycle_lr(
    step: int,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Rate at step 0 ... total_steps - 1 (PyTorch, OneCycleLR, two phases, cosine annealing).

    Rises from max_lr / div_factor to max_lr, then falls to max_lr / div_factor / final_div_factor.
    """
    initial = max_lr / div_factor
    # PyTorch counts steps from 0 and leaves the peak unrounded, between two steps; it too divides
    # by zero where the peak falls on step 0.
    peak, last = pct_start * total_steps - 1, total_steps - 1
    if step <= peak:
        return _cosine(initial, max_lr, step / peak)
    return _cosine(max_lr, initial / final_div_factor, (step - peak) / (last - peak))


def step_lr(step: int, lr: float, step_size: int, gamma: float) -> float:
    """Staircase lr gamma^floor(step / step_size) (PyTorch, StepLR)."""
    return lr * gamma ** (step // step_size)


def cosine_annealing_lr(step: int, lr: float, total_steps: int, min_lr: float = 0.0) -> float:
    """Half wave min_lr + (lr - min_lr) (1 + cos(pi step / total_steps)) / 2.

    Loshchilov & Hutter 2017, equation 5; PyTorch, CosineAnnealingLR with T_max = total_steps.
    """
    return _cosine(lr, min_lr, step / total_steps)


# (counter, key, result): the "philox4x32 10" lines of tests/kat_vectors in Random123.
PHILOX_KNOWN_ANSWERS: list[tuple[Words, Pair, Words]] = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox4x32(counter: Words, key: Pair, rounds: int = 10) -> Words:
    """Four 32-bit words from a 128-bit counter and a 64-bit key (Philox, Salmon et al. 2011).

    One round: (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).
    The key grows between rounds by the Weyl constants, modulo 2^32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        # Fractional parts of the golden ratio and of sqrt(3), times 2^32.
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def numeric_gradient(f: Callable[[F64], float], x: F64, h: float = 2.0**-17) -> F64:
    """Central differences (f(x + h e_i) - f(x - h e_i)) / 2h at every entry i, shape of x.

    h: the truncation error grows as h^2 |f'''| / 6 and the rounding error as eps |f| / h, so their
    sum is least near the cube root of eps = 2^-52. 2^-17 = 7.6e-6 is the power of two there; the
    derivative is then good to about 1e-10 for values and derivatives of order one. f must have no
    kink (relu at 0, a tie in max pooling) within h of x.
    """
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += h
        below[index] -= h
        # The step actually taken, which rounding may have made differ from 2h.
        gradient[index] = (f(above) - f(below)) / (above[index] - below[index])
    return gradient
