"""Update rules: a parameter after one step for each gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xbp.testing.oracles.types import F64


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

    The Newton-Schulz iteration maps singular values s to f(f(... f(s / |s|))) with
    f(s) = a s + b s^3 + c s^5: O = U f(...) V^T for the momentum's U S V^T
    m = mu m + (1 - mu) g;  p = p - lr (weight_decay p + sqrt(max(1, rows / columns)) O)
    Parameters with fewer than two axes are updated by AdamW.
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
