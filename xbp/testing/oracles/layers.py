"""Affine maps, convolutions and pooling, one index at a time."""

from __future__ import annotations

import math

import numpy as np

from xbp.testing.oracles.types import F64, Pair


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
    """Numbers of windows along the padded image's axes (rounded down, as by default in PyTorch)."""
    rows = (shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1
    columns = (shape[3] + 2 * padding[1] - kernel[1]) // stride[1] + 1
    return rows, columns


def conv2d(
    x: F64,
    weight: F64,
    bias: F64 | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> F64:
    """Cross-correlation, x (N, C, H, W), weight (O, C / G, KH, KW), bias (O,) -> y (N, O, P, Q).

    y[n, o, p, q] = bias[o] + sum_{c, u, v} weight[o, c, u, v] x[n, g C / G + c, i, j],
    i = p SH + u DH - PH,   j = q SW + v DW - PW,
    with x zero outside the image, and g the group of o   (PyTorch documentation, nn.Conv2d; the
    kernel is not flipped)
    """
    batch, _, height, width = x.shape
    outputs, channels, *kernel = weight.shape
    reach = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
    y = np.zeros((batch, outputs, *_window_counts(x.shape, reach, stride, padding)))
    for n, o, p, q in np.ndindex(y.shape):
        total = 0.0 if bias is None else float(bias[o])
        first = o // (outputs // groups) * channels
        for c, u, v in np.ndindex(channels, *kernel):
            row = p * stride[0] + u * dilation[0] - padding[0]
            column = q * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < height and 0 <= column < width:
                total += weight[o, c, u, v] * x[n, first + c, row, column]
        y[n, o, p, q] = total
    return y


def conv2d_same(
    x: F64, weight: F64, bias: F64 | None = None, dilation: Pair = (1, 1), groups: int = 1
) -> F64:
    """`conv2d` with the padding for which y has the size of x; if the total padding is odd, the
    larger half is below and to the right   (PyTorch documentation, nn.Conv2d, padding="same")
    """
    frame = []
    for axis in range(2):
        whole = dilation[axis] * (weight.shape[2 + axis] - 1)
        frame.append((whole // 2, whole - whole // 2))
    return conv2d(
        np.pad(x, [(0, 0), (0, 0), *frame]), weight, bias, (1, 1), (0, 0), dilation, groups
    )


def conv_transpose2d(
    x: F64,
    weight: F64,
    bias: F64 | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
) -> F64:
    """Transposed convolution, x (N, C, H, W), weight (C, O / G, KH, KW), bias (O,) -> (N, O, P, Q).

    y[n, g O / G + o, p SH + u DH - PH, q SW + v DW - PW] += weight[c, o, u, v] x[n, c, p, q], where
    that lies in y, from y[n, o] = bias[o], with g the group of c; P = (H - 1) SH - 2 PH
    + DH (KH - 1) + OH + 1   (PyTorch documentation, nn.ConvTranspose2d)
    """
    batch, channels, height, width = x.shape
    _, each, *kernel = weight.shape
    size = [
        (old - 1) * s - 2 * p + d * (k - 1) + more + 1
        for old, s, p, d, k, more in zip(
            (height, width), stride, padding, dilation, kernel, output_padding, strict=True
        )
    ]
    y = np.zeros((batch, each * groups, *size))
    if bias is not None:
        y += bias[:, None, None]
    for n, c, p, q in np.ndindex(x.shape):
        first = c // (channels // groups) * each
        for o, u, v in np.ndindex(each, *kernel):
            row = p * stride[0] + u * dilation[0] - padding[0]
            column = q * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                y[n, first + o, row, column] += weight[c, o, u, v] * x[n, c, p, q]
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
    The padding counts as -inf, so windows leave it out. It is at most half the kernel, as PyTorch
    requires, so that every window has an entry.
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


def adaptive_avg_pool2d(x: F64, size: Pair) -> F64:
    """Mean of each of P x Q windows, x (N, C, H, W) -> y (N, C, P, Q).

    y[n, c, p, q] = mean of x[n, c, i, j] over floor(p H / P) <= i < ceil((p + 1) H / P), and j
    likewise   (PyTorch, nn.AdaptiveAvgPool2d; its source, start_index and end_index)
    """
    (rows, columns), (height, width) = size, x.shape[2:]
    y = np.zeros((*x.shape[:2], rows, columns))
    for n, c, p, q in np.ndindex(y.shape):
        seen = [
            x[n, c, i, j]
            for i, j in np.ndindex(height, width)
            if math.floor(p * height / rows) <= i < math.ceil((p + 1) * height / rows)
            if math.floor(q * width / columns) <= j < math.ceil((q + 1) * width / columns)
        ]
        y[n, c, p, q] = sum(seen) / len(seen)
    return y


def upsample_nearest(x: F64, size: Pair, ratio: tuple[float, float]) -> F64:
    """y[n, c, p, q] = x[n, c, floor(p RH), floor(q RW)], x (N, C, H, W) -> y (N, C, P, Q).

    (PyTorch, nn.Upsample; its source, nearest_neighbor_compute_source_index, which rounds to
    float32 before floor)
    """
    y = np.zeros((*x.shape[:2], *size))
    for n, c, p, q in np.ndindex(y.shape):
        i = min(int(np.floor(np.float32(p * ratio[0]))), x.shape[2] - 1)
        j = min(int(np.floor(np.float32(q * ratio[1]))), x.shape[3] - 1)
        y[n, c, p, q] = x[n, c, i, j]
    return y


def upsample_bilinear(
    x: F64, size: Pair, ratio: tuple[float, float], align_corners: bool = False
) -> F64:
    """Bilinear interpolation, x (N, C, H, W) -> y (N, C, P, Q).

    y[n, c, p, q] = sum_{i, j} tent(u - i) tent(v - j) x[n, c, i, j],   tent(d) = max(0, 1 - |d|),
    where u = (p + 1/2) RH - 1/2, or p (H - 1) / (P - 1) with aligned corners, clipped to the
    image; v likewise   (PyTorch, nn.Upsample; its source, area_pixel_compute_source_index)
    """
    y = np.zeros((*x.shape[:2], *size))
    for n, c, p, q in np.ndindex(y.shape):
        place = []
        for k, old, new, rho in zip((p, q), x.shape[2:], size, ratio, strict=True):
            aligned = k * (old - 1) / (new - 1) if new > 1 else 0.0
            u = aligned if align_corners else (k + 0.5) * rho - 0.5
            place.append(min(max(u, 0.0), old - 1))
        for i, j in np.ndindex(*x.shape[2:]):
            share = max(0.0, 1 - abs(place[0] - i)) * max(0.0, 1 - abs(place[1] - j))
            if share:
                y[n, c, p, q] += share * x[n, c, i, j]
    return y


def zero_pad2d(x: F64, left: int, right: int, top: int, bottom: int) -> F64:
    """x padded with zeros, x (N, C, H, W); negative padding crops.

    y[n, c, p, q] = x[n, c, p - top, q - left], and 0 outside   (PyTorch, nn.ZeroPad2d)
    """
    n, c, h, w = x.shape
    y = np.zeros((n, c, top + h + bottom, left + w + right))
    for p, q in np.ndindex(*y.shape[2:]):
        if 0 <= p - top < h and 0 <= q - left < w:
            y[:, :, p, q] = x[:, :, p - top, q - left]
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
    the ones of the table in row-major order   (LeCun et al. 1998, section II.B, layer C3)
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


def euclidean_rbf(x: F64, codes: F64) -> F64:
    """Squared distances, x (N, in), codes (out, in) -> y (N, out) (LeCun et al. 1998, eq. 7).

    y[n, i] = sum_j (x[n, j] - codes[i, j])^2
    """
    y = np.zeros((x.shape[0], codes.shape[0]))
    for n, i in np.ndindex(y.shape):
        y[n, i] = math.fsum((x[n, j] - codes[i, j]) ** 2 for j in range(x.shape[1]))
    return y
