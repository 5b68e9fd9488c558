"""Reference functions for the tests, each a direct transcription of its textbook definition.

Everything is float64 and written as loops over indices, so that a function can be believed by
reading it; speed does not matter, and no function here shares code or tricks with the library
under test. Image arrays are (N, C, H, W) and pairs are (height, width). Arguments are taken to be
finite and valid.
"""

import math
from collections.abc import Callable
from typing import Any

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


def subsample2d(x: F64, weight: F64, bias: F64, kernel: Pair, stride: Pair, padding: Pair) -> F64:
    """Trainable subsampling, x (N, C, H, W), weight (C,), bias (C,) -> y (N, C, P, Q).

    y[n, c, p, q] = bias[c] + weight[c] sum_{u, v} x[n, c, p SH + u - PH, q SW + v - PW]
    with x zero outside the image   (LeCun, Bottou, Bengio & Haffner 1998, section II.B, layer S2)
    """
    y = np.zeros((*x.shape[:2], *_window_counts(x.shape, kernel, stride, padding)))
    for n, c, p, q in np.ndindex(y.shape):
        total = sum(x[n, c, i, j] for i, j in _window(x.shape, p, q, kernel, stride, padding))
        y[n, c, p, q] = bias[c] + weight[c] * total
    return y


def partial_conv2d(
    x: F64,
    weight: F64,
    bias: F64 | None,
    table: list[list[int]],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> F64:
    """Sum of cross-correlations with the connected maps only, weight (connections, KH, KW).

    y[n, o] = bias[o] + sum over the c with table[o][c] = 1 of weight[k] x[n, c], where k counts
    the ones of the table in the order of reading   (LeCun et al. 1998, section II.B, layer C3)
    """
    outputs, kernel = [], iter(weight)
    for o, row in enumerate(table):
        seen = [c for c, linked in enumerate(row) if linked]
        own = np.array([[next(kernel) for _ in seen]])
        offset = None if bias is None else bias[o : o + 1]
        outputs.append(conv2d(x[:, seen], own, offset, stride, padding))
    return np.concatenate(outputs, axis=1)


def flatten(x: F64) -> F64:
    """Row-major flattening of all axes but the first, x (N, A, B, ...) -> y (N, A B ...)."""
    y = np.zeros((x.shape[0], math.prod(x.shape[1:])))
    for n in range(x.shape[0]):
        for k, index in enumerate(np.ndindex(x.shape[1:])):
            y[n, k] = x[(n, *index)]
    return y


def elman_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = tanh(p_j + q_j), one sample   (Elman 1990; PyTorch documentation, nn.RNN)."""
    return np.array([math.tanh(p[j] + q[j]) for j in range(len(h))]), c


def relu_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = max(0, p_j + q_j), one sample   (PyTorch documentation, nn.RNN)."""
    return np.array([max(0.0, p[j] + q[j]) for j in range(len(h))]), c


def lstm_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """Input, forget, candidate and output gate stand in this order in p and q (4 H,), one sample.

    c'_j = f_j c_j + i_j g_j and h'_j = o_j tanh c'_j   (PyTorch documentation, nn.LSTM)
    """
    new_h, new_c, size = np.zeros(len(h)), np.zeros(len(h)), len(h)
    for j in range(size):
        i, f, g, o = (p[gate * size + j] + q[gate * size + j] for gate in range(4))
        new_c[j] = c[j] / (1 + math.exp(-f)) + math.tanh(g) / (1 + math.exp(-i))
        new_h[j] = math.tanh(new_c[j]) / (1 + math.exp(-o))
    return new_h, new_c


def gru_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """Reset, update and candidate gate stand in this order in p and q (3 H,), one sample.

    n_j = tanh(p_nj + r_j q_nj) and h'_j = (1 - z_j) n_j + z_j h_j   (PyTorch documentation, nn.GRU)
    """
    new_h, size = np.zeros(len(h)), len(h)
    for j in range(size):
        r = 1 / (1 + math.exp(-p[j] - q[j]))
        z = 1 / (1 + math.exp(-p[size + j] - q[size + j]))
        n = math.tanh(p[2 * size + j] + r * q[2 * size + j])
        new_h[j] = (1 - z) * n + z * h[j]
    return new_h, c


def product_cell(p: F64, q: F64, h: F64, c: F64) -> tuple[F64, F64]:
    """h'_j = h_j / 2 + p_j q_j and c'_j = c_j / 2 + h'_j, one sample: nobody's cell."""
    size = len(h)
    new_h = np.array([h[j] / 2 + p[j] * q[j] for j in range(size)])
    return new_h, np.array([c[j] / 2 + new_h[j] for j in range(size)])


Cell = Callable[[F64, F64, F64, F64], tuple[F64, F64]]


def recurrent(
    cell: Cell, x: F64, weights: dict[str, F64], states: list[tuple[F64, F64]] | None = None
) -> tuple[F64, list[tuple[F64, F64]]]:
    """A recurrent network, x (N, T, in) -> y (N, T, H D) and the final (h, c), each (N, H).

    For each sample, layer l and direction, in the order of time or against it:
    h, c <- cell(W_ih x_t + b_ih, W_hh h + b_hh, h, c); the outputs of both directions at t are
    the next layer's x_t   (PyTorch documentation, nn.LSTM; there are as many layers and
    directions as `weights` has names, and as many `states`)
    """
    layers = sum(name.startswith("weight_ih") and "reverse" not in name for name in weights)
    suffixes = ["", "_reverse"] if "weight_ih_l0_reverse" in weights else [""]
    (batch, length, _), size = x.shape, weights["weight_hh_l0"].shape[1]
    ends: list[tuple[F64, F64]] = []
    for layer in range(layers):
        y = np.zeros((batch, length, size * len(suffixes)))
        for d, suffix in enumerate(suffixes):
            zero = np.zeros((batch, size))
            first_h, first_c = states[len(ends)] if states else (zero, zero)
            end_h, end_c = zero.copy(), zero.copy()
            for n in range(batch):
                h, c = first_h[n], first_c[n]
                times = list(range(length))
                for t in times[::-1] if suffix else times:
                    rows = []
                    for kind, row in (("ih", x[n, t]), ("hh", h)):
                        weight = weights[f"weight_{kind}_l{layer}{suffix}"]
                        bias = weights.get(f"bias_{kind}_l{layer}{suffix}")
                        rows.append(linear(row[None, :], weight, bias)[0])
                    h, c = cell(rows[0], rows[1], h, c)
                    for j in range(size):
                        y[n, t, d * size + j] = h[j]
                end_h[n], end_c[n] = h, c
            ends.append((end_h, end_c))
        x = y
    return x, ends


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

    As erfc, of which more is left at -7 than of 1 + erf.
    """
    return _elementwise(lambda v: v * math.erfc(-v / math.sqrt(2.0)) / 2.0, x)


def gelu_tanh(x: F64) -> F64:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, any shape (as gelu).

    As x / (1 + exp(-2 ...)), for the same reason.
    """
    u: F64 = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return x * sigmoid(2.0 * u)


def silu(x: F64) -> F64:
    """x / (1 + exp(-x)), any shape (Elfwing et al. 2018)."""
    return _elementwise(lambda v: v / (1.0 + math.exp(-v)), x)


def softplus(x: F64, beta: float = 1.0) -> F64:
    """log(1 + exp(beta x)) / beta, any shape (Dugas et al. 2001)."""
    return _elementwise(lambda v: math.log(1.0 + math.exp(beta * v)) / beta, x)


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


def euclidean_rbf(x: F64, codes: F64) -> F64:
    """Squared distances, x (N, in), codes (out, in) -> y (N, out) (LeCun et al. 1998, eq. 7).

    y[n, i] = sum_j (x[n, j] - codes[i, j])^2
    """
    y = np.zeros((x.shape[0], codes.shape[0]))
    for n, i in np.ndindex(y.shape):
        y[n, i] = math.fsum((x[n, j] - codes[i, j]) ** 2 for j in range(x.shape[1]))
    return y


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


def huber_loss(
    prediction: F64, target: F64, delta: float, reduction: str = "mean", factor: float = 1.0
) -> float:
    """Squared error / 2 up to delta, then its tangent, both (N, ...) (Huber 1964; as mse_loss).

    error^2 / 2 where |error| <= delta, else delta (|error| - delta / 2)
    """

    def entry(error: float) -> float:
        small = abs(error) <= delta
        return error * error / 2.0 if small else delta * (abs(error) - delta / 2.0)

    return factor * _reduced_loss(entry, prediction, target, reduction)


def binary_cross_entropy(
    logits: F64, target: F64, pos_weight: float | F64 = 1.0, reduction: str = "mean"
) -> float:
    """-w t log p - (1 - t) log(1 - p) with p = 1 / (1 + exp(-logit)), both (N, ...).

    w is pos_weight, or its entry for the last index   (PyTorch, nn.BCEWithLogitsLoss)
    """
    terms = []
    for index, t in np.ndenumerate(target):
        weight = pos_weight if isinstance(pos_weight, float) else float(pos_weight[index[-1]])
        # -log p is log(1 + exp(-logit)), and -log(1 - p) is log(1 + exp(logit)).
        yes, no = (math.log1p(math.exp(sign * logits[index])) for sign in (-1.0, 1.0))
        terms.append(weight * t * yes + (1.0 - t) * no)
    return math.fsum(terms) / (len(terms) if reduction == "mean" else 1)


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


def rejecting_cross_entropy(
    logits: F64,
    target: NDArray[np.float64 | np.integer],
    penalty: float,
    reduction: str = "mean",
) -> float:
    """MAP criterion of penalties y = -logits (N, C), labels (N,) (LeCun et al. 1998, eq. 9).

    row loss = y[n, label] + log(exp(-penalty) + sum_i exp(-y[n, i])); for moderate penalties only.
    Of probabilities (N, C) it is the mean of the classes' row losses.
    """
    losses = []
    for n, t in enumerate(target):
        y = [-float(value) for value in logits[n]]
        total = math.exp(-penalty) + math.fsum(math.exp(-value) for value in y)
        shares = [float(i == t) for i in range(len(y))] if target.ndim == 1 else t.tolist()
        losses.append(math.fsum(p * (v + math.log(total)) for p, v in zip(shares, y, strict=True)))
    return math.fsum(losses) / {"mean": len(losses), "sum": 1}[reduction]


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


def adagrad(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.01,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Duchi, Hazan & Singer 2011).

    g = gradient + weight_decay p;  s = initial_accumulator_value + sum of all g^2 so far
    p = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps), t = 1, 2, ...   (PyTorch, Adagrad)
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, s = float(parameter[index]), initial_accumulator_value
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index]) + weight_decay * p
            s += g * g
            p -= lr / (1.0 + (t - 1) * lr_decay) * g / (math.sqrt(s) + eps)
        result[index] = p
    return result


def rmsprop(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> F64:
    """Parameter after one step per gradient, all of one shape (PyTorch, torch.optim.RMSprop).

    g = gradient + weight_decay p;  s = alpha s + (1 - alpha) g^2;  a = alpha a + (1 - alpha) g
    b = momentum b + g / (sqrt(s, or the variance s - a^2 if centered) + eps);  p = p - lr b
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, s, a, b = float(parameter[index]), 0.0, 0.0, 0.0
        for gradient in gradients:
            g = float(gradient[index]) + weight_decay * p
            s = alpha * s + (1.0 - alpha) * g * g
            a = alpha * a + (1.0 - alpha) * g
            # A variance below 0 is rounding.
            spread = max(s - a * a, 0.0) if centered else s
            b = momentum * b + g / (math.sqrt(spread) + eps)
            p -= lr * b
        result[index] = p
    return result


def adadelta(
    parameter: F64,
    gradients: list[F64],
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Zeiler 2012, Algorithm 1; lr = 1).

    g = gradient + weight_decay p;  s = rho s + (1 - rho) g^2
    d = sqrt(u + eps) / sqrt(s + eps) g;  then u = rho u + (1 - rho) d^2;  p = p - lr d
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, s, u = float(parameter[index]), 0.0, 0.0
        for gradient in gradients:
            g = float(gradient[index]) + weight_decay * p
            s = rho * s + (1.0 - rho) * g * g
            d = math.sqrt(u + eps) / math.sqrt(s + eps) * g
            u = rho * u + (1.0 - rho) * d * d
            p -= lr * d
        result[index] = p
    return result


def adam(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Kingma & Ba 2015, Algorithm 1).

    g = gradient + weight_decay p  (PyTorch's L2 penalty; not in the paper)
    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = p - lr m' / (sqrt(v') + eps)
    with m' = m / (1 - b1^t), v' = v / (1 - b2^t), t = 1, 2, ...
    amsgrad: the largest v so far in v' (Reddi, Kale & Kumar 2018, but for the division)
    decoupled: g = gradient, but p = p - lr weight_decay p first (Loshchilov & Hutter 2019)
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m, history = float(parameter[index]), 0.0, [0.0]
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index])
            if decoupled_weight_decay:
                p -= lr * weight_decay * p
            else:
                g += weight_decay * p
            m = betas[0] * m + (1.0 - betas[0]) * g
            history.append(betas[1] * history[-1] + (1.0 - betas[1]) * g * g)
            v = max(history) if amsgrad else history[-1]
            m_corrected = m / (1.0 - betas[0] ** t)
            v_corrected = v / (1.0 - betas[1] ** t)
            p -= lr * m_corrected / (math.sqrt(v_corrected) + eps)
        result[index] = p
    return result


def adamw(parameter: F64, gradients: list[F64], **options: Any) -> F64:
    """As adam, with decoupled weight decay, by default of 0.01 (Loshchilov & Hutter 2019)."""
    return adam(
        parameter, gradients, **{"weight_decay": 0.01, **options, "decoupled_weight_decay": True}
    )


def lion(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.0001,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Chen et al. 2023, Algorithm 2).

    c = b1 m + (1 - b1) g;  p = p - lr (sign(c) + weight_decay p);  m = b2 m + (1 - b2) g
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m = float(parameter[index]), 0.0
        for gradient in gradients:
            g = float(gradient[index])
            c = betas[0] * m + (1.0 - betas[0]) * g
            p -= lr * ((c > 0) - (c < 0) + weight_decay * p)
            m = betas[1] * m + (1.0 - betas[1]) * g
        result[index] = p
    return result


def lamb(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> F64:
    """Parameter after one step per gradient, all of one shape (You et al. 2020, Algorithm 2).

    r = m' / (sqrt(v') + eps) + weight_decay p, with m' and v' as in adam
    p = p - lr (|p| / |r|) r, with Euclidean norms of the whole parameter; the ratio is 1 for a 0
    """
    p = parameter.copy()
    m, v = np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1.0 - betas[0]) * g, betas[1] * v + (1.0 - betas[1]) * g**2
        unbiased = m / (1.0 - betas[0] ** t), v / (1.0 - betas[1] ** t)
        r = unbiased[0] / (np.sqrt(unbiased[1]) + eps) + weight_decay * p
        norms = [math.sqrt(math.fsum((x * x).flat)) for x in (p, r)]
        p = p - lr * (norms[0] / norms[1] if all(norms) else 1.0) * r
    return p


def muon(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.001,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
) -> F64:
    """A matrix, or kernel of filters, after one step per gradient (Jordan et al. 2024).

    By singular values, which the iteration sends to f(f(... f(s / |s|))), where
    f(s) = a s + b s^3 + c s^5: O = U f(...) V^T of the momentum's U S V^T
    m = mu m + (1 - mu) g;  p = p - lr (weight_decay p + sqrt(max(1, rows / columns)) O)
    Less than two axes are for AdamW.
    """
    if parameter.ndim < 2:
        return adamw(parameter, gradients)
    a, b, c = ns_coefficients
    p, m = parameter.copy(), np.zeros(parameter.shape)
    rows, columns = len(p), p[0].size
    for g in gradients:
        m = momentum * m + (1.0 - momentum) * g
        d = (1.0 - momentum) * g + momentum * m if nesterov else m
        u, s, vt = np.linalg.svd(d.reshape(rows, columns), full_matrices=False)
        s = s / max(math.sqrt(math.fsum(s * s)), eps)
        for _ in range(ns_steps):
            s = a * s + b * s**3 + c * s**5
        o = ((u * s) @ vt).reshape(p.shape)
        p = p - lr * (weight_decay * p + math.sqrt(max(1.0, rows / columns)) * o)
    return p


def adamax(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Kingma & Ba 2015, Algorithm 2).

    u, written out, is the largest of b2^(t - i) (|g_i| + eps) for i = 1 ... t, entry by entry
    p = p - lr / (1 - b1^t) m / u   (eps: PyTorch, Adamax)
    """
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m = float(parameter[index]), 0.0
        sizes: list[float] = []
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index]) + weight_decay * p
            m = betas[0] * m + (1.0 - betas[0]) * g
            sizes.append(abs(g) + eps)
            u = max(betas[1] ** (t - i) * size for i, size in enumerate(sizes, start=1))
            p -= lr / (1.0 - betas[0] ** t) * m / u
        result[index] = p
    return result


def nadam(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.002,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 0.004,
    decoupled_weight_decay: bool = False,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Dozat 2016; PyTorch, NAdam).

    m, v as in adam;  mu_i = b1 (1 - 0.5 0.96^(i momentum_decay))
    m' = mu_(t+1) m / (1 - mu_1 ... mu_(t+1)) + (1 - mu_t) g / (1 - mu_1 ... mu_t)
    p = p - lr m' / (sqrt(v / (1 - b2^t)) + eps)
    """
    steps = len(gradients)
    mu = [betas[0] * (1.0 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(1, steps + 2)]
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m, v = float(parameter[index]), 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index])
            if decoupled_weight_decay:
                p -= lr * weight_decay * p
            else:
                g += weight_decay * p
            m = betas[0] * m + (1.0 - betas[0]) * g
            v = betas[1] * v + (1.0 - betas[1]) * g * g
            ahead = mu[t] * m / (1.0 - math.prod(mu[: t + 1]))
            now = (1.0 - mu[t - 1]) * g / (1.0 - math.prod(mu[:t]))
            p -= lr * (ahead + now) / (math.sqrt(v / (1.0 - betas[1] ** t)) + eps)
        result[index] = p
    return result


def radam(
    parameter: F64,
    gradients: list[F64],
    lr: float = 0.001,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> F64:
    """Parameter after one step per gradient, all of one shape (Liu et al. 2020, Algorithm 2).

    m, v as in adam, m' = m / (1 - b1^t);  rho_max = 2 / (1 - b2) - 1
    rho = rho_max - 2 t b2^t / (1 - b2^t);  p = p - lr m'  while rho <= 5   (PyTorch; the paper: 4)
    then p = p - lr r m' sqrt(1 - b2^t) / (sqrt(v) + eps)   (PyTorch's eps), where
    r^2 = (rho - 4) (rho - 2) rho_max / ((rho_max - 4) (rho_max - 2) rho)
    """
    rho_max = 2.0 / (1.0 - betas[1]) - 1.0
    result = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        p, m, v = float(parameter[index]), 0.0, 0.0
        for t, gradient in enumerate(gradients, start=1):
            g = float(gradient[index])
            if decoupled_weight_decay:
                p -= lr * weight_decay * p
            else:
                g += weight_decay * p
            m = betas[0] * m + (1.0 - betas[0]) * g
            v = betas[1] * v + (1.0 - betas[1]) * g * g
            step = lr * m / (1.0 - betas[0] ** t)
            rho = rho_max - 2.0 * t * betas[1] ** t / (1.0 - betas[1] ** t)
            if rho > 5.0:
                top = (rho - 4.0) * (rho - 2.0) * rho_max
                bottom = (rho_max - 4.0) * (rho_max - 2.0) * rho
                step *= math.sqrt(top / bottom) * math.sqrt(1.0 - betas[1] ** t)
                step /= math.sqrt(v) + eps
            p -= step
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


def linear_lr(step: int, lr: float, start: float, end: float, total_steps: int) -> float:
    """Line from lr start to lr end, which it keeps (PyTorch, LinearLR, total_iters)."""
    return lr * (start + (end - start) * min(step, total_steps) / total_steps)


def polynomial_lr(step: int, lr: float, total_steps: int, power: float) -> float:
    """Power of the share that is left (PyTorch, PolynomialLR, total_iters)."""
    return float(lr * (max(total_steps - step, 0) / total_steps) ** power) if power else lr


def cosine_restarts_lr(step: int, lr: float, first: int, factor: int, min_lr: float) -> float:
    """As cosine_annealing_lr from restart to restart (Loshchilov & Hutter 2017, equation 5).

    All restarts are listed: after first, first + first factor, ... steps.
    """
    restarts, length = [0], first
    while restarts[-1] + length <= step:
        restarts.append(restarts[-1] + length)
        length *= factor
    return _cosine(lr, min_lr, (step - restarts[-1]) / length)


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


def _standardized(x: F64, w: F64, b: F64, eps: float, mean: float, variance: float) -> F64:
    """w (x - mean) / sqrt(variance + eps) + b."""
    return w * (x - mean) / math.sqrt(variance + eps) + b


def _moments(x: F64) -> tuple[float, float]:
    """Mean and variance: sum x / n, and sum (x - mean)² / n."""
    mean = float(np.sum(x)) / x.size
    return mean, float(np.sum((x - mean) ** 2)) / x.size


def _affine(s: dict[str, F64], shape: tuple[int, ...]) -> tuple[F64, F64]:
    """w and b of a state, or 1 and 0."""
    return s.get("weight", np.ones(shape)), s.get("bias", np.zeros(shape))


def batch_norm(s: dict[str, F64], x: F64, eps: float = 1e-5, training: bool = True) -> F64:
    """Batch normalization, x (N, C, ...): each channel by its moments over the batch.

    (Ioffe & Szegedy 2015, algorithm 1); in inference by the running ones, if the state has them.
    """
    y = np.empty_like(x)
    w, b = _affine(s, (x.shape[1],))
    for c in range(x.shape[1]):
        moments = _moments(x[:, c])
        if not training and "running_mean" in s:
            moments = float(s["running_mean"][c]), float(s["running_var"][c])
        y[:, c] = _standardized(x[:, c], w[c], b[c], eps, *moments)
    return y


def layer_norm(s: dict[str, F64], x: F64, shape: tuple[int, ...], eps: float = 1e-5) -> F64:
    """Layer normalization over the last axes, of that shape (Ba, Kiros & Hinton 2016)."""
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[: x.ndim - len(shape)]):
        y[i] = _standardized(x[i], *_affine(s, shape), eps, *_moments(x[i]))
    return y


def rms_norm(s: dict[str, F64], x: F64, shape: tuple[int, ...], eps: float) -> F64:
    """Division by the root mean square over the last axes (Zhang & Sennrich 2019, eq. 4)."""
    y = np.empty_like(x)
    for i in np.ndindex(x.shape[: x.ndim - len(shape)]):
        square = float(np.sum(x[i] ** 2)) / x[i].size
        y[i] = _affine(s, shape)[0] * x[i] / math.sqrt(square + eps)
    return y


def group_norm(s: dict[str, F64], x: F64, groups: int, eps: float = 1e-5) -> F64:
    """Group normalization, x (N, C, ...): C/groups neighbouring channels at once (Wu & He 2018)."""
    y, size = np.empty_like(x), x.shape[1] // groups
    w, b = _affine(s, (x.shape[1],))
    for n, c in np.ndindex(x.shape[:2]):
        first = c // size * size
        moments = _moments(x[n, first : first + size])
        y[n, c] = _standardized(x[n, c], w[c], b[c], eps, *moments)
    return y
