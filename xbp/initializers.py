"""Initial weights: functions ``(shape, rng) -> numpy array``, drawn in float64 on the host.

So equal seeds give equal weights on every backend; those of a float32 model are the rounded weights
of a float64 model. For a weight of shape (out, in, *kernel), fan_in = in·∏kernel is the number of
terms in the sum of one output, and fan_out = out·∏kernel in that of one input's gradient.

Options are keywords; ``functools.partial`` fixes one for a layer:

>>> from functools import partial
>>> from xbp import initializers, nn
>>> layer = nn.Linear(4, 3, rng=0, weight_init=partial(initializers.he_normal, gain=1.0))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xbp.errors import InputError

Shape: TypeAlias = "tuple[int, ...]"
Drawn: TypeAlias = "NDArray[np.float64]"


class Initializer(Protocol):
    """A function that draws initial weights of a shape from a numpy Generator."""

    def __call__(self, shape: Shape, rng: np.random.Generator, /) -> NDArray[Any]: ...


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel).

    >>> fans((16, 6, 5, 5))
    (150, 400)

    Raises
    ------
    InputError
        The shape has fewer than two axes, as that of a bias, which has no fans.
    """
    if len(shape) < 2:
        msg = f"a weight of shape {shape} has no fan-in; this initializer needs (out, in, *kernel)"
        raise InputError(msg)
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def uniform(shape: Shape, rng: np.random.Generator, *, bound: float = 1.0) -> Drawn:
    """U(-bound, bound): variance bound²/3."""
    return rng.uniform(-bound, bound, shape)


def normal(shape: Shape, rng: np.random.Generator, *, std: float = 1.0) -> Drawn:
    """N(0, std²)."""
    return rng.normal(0.0, std, shape)


def constant(shape: Shape, rng: np.random.Generator, *, value: float = 0.0) -> Drawn:
    """`value` everywhere, without a draw from `rng`."""
    return np.full(shape, value)


def zeros(shape: Shape, rng: np.random.Generator) -> Drawn:
    """0 everywhere, the usual bias."""
    return constant(shape, rng, value=0.0)


def fan_in_uniform(shape: Shape, rng: np.random.Generator, *, fan_in: int | None = None) -> Drawn:
    """U(-1/√fan_in, 1/√fan_in): the default of Linear and Conv2d, as in PyTorch.

    A bias, which has no fan-in of its own, is given its weight's.
    """
    return uniform(shape, rng, bound=1 / math.sqrt(fans(shape)[0] if fan_in is None else fan_in))


def map_by_map(
    shape: Shape, rng: np.random.Generator, *, inputs: Sequence[int], init: Initializer
) -> NDArray[Any]:
    """Kernels (Σ inputs, *kernel) of feature maps with different numbers of inputs.

    The kernels of a map with n inputs are drawn by `init` as a weight (1, n, *kernel), with its
    fan-in.
    """
    return np.concatenate([init((1, n, *shape[1:]), rng)[0] for n in inputs])


def lenet_uniform(
    shape: Shape, rng: np.random.Generator, *, bound: float = 2.4, fan_in: int | None = None
) -> Drawn:
    """U(-bound/fan_in, bound/fan_in); LeCun, Bottou, Bengio & Haffner 1998, appendix A.

    The variance is 1.92/fan_in², for inputs so correlated that their sum grows like fan_in instead
    of √fan_in.
    """
    return uniform(shape, rng, bound=bound / (fans(shape)[0] if fan_in is None else fan_in))


def xavier_uniform(shape: Shape, rng: np.random.Generator, *, gain: float = 1.0) -> Drawn:
    """Uniform of variance 2·gain²/(fan_in + fan_out).

    Glorot & Bengio 2010, eq. 16: keeps the variance of activations and gradients across layers
    that are linear around 0, such as tanh (with a gain of 5/3 in PyTorch).
    """
    return uniform(shape, rng, bound=gain * math.sqrt(6 / sum(fans(shape))))


def xavier_normal(shape: Shape, rng: np.random.Generator, *, gain: float = 1.0) -> Drawn:
    """Normal of variance 2·gain²/(fan_in + fan_out); Glorot & Bengio 2010, eq. 12."""
    return normal(shape, rng, std=gain * math.sqrt(2 / sum(fans(shape))))


def he_uniform(shape: Shape, rng: np.random.Generator, *, gain: float = math.sqrt(2)) -> Drawn:
    """Uniform of variance gain²/fan_in, 2/fan_in by default.

    He et al. 2015, eq. 10: a ReLU halves the second moment, the factor 2 restores it.
    """
    return uniform(shape, rng, bound=gain * math.sqrt(3 / fans(shape)[0]))


def he_normal(shape: Shape, rng: np.random.Generator, *, gain: float = math.sqrt(2)) -> Drawn:
    """Normal of variance gain²/fan_in, 2/fan_in by default; He et al. 2015, eq. 10."""
    return normal(shape, rng, std=gain / math.sqrt(fans(shape)[0]))


def lecun_uniform(shape: Shape, rng: np.random.Generator) -> Drawn:
    """Uniform of variance 1/fan_in; LeCun et al. 1998, Efficient BackProp, eq. 16."""
    return he_uniform(shape, rng, gain=1.0)


def lecun_normal(shape: Shape, rng: np.random.Generator) -> Drawn:
    """Normal of variance 1/fan_in; LeCun et al. 1998, Efficient BackProp, eq. 16."""
    return he_normal(shape, rng, gain=1.0)


def orthogonal(shape: Shape, rng: np.random.Generator, *, gain: float = 1.0) -> Drawn:
    """A matrix (out, in·∏kernel) with orthonormal rows, or columns if it is tall, times `gain`.

    Saxe et al. 2014: a square one keeps the length of any vector in both directions, so that a
    linear network of any depth has gradients that neither vanish nor explode. Each entry has
    variance gain²/max(out, in·∏kernel). The matrix is Q of the QR decomposition of normal numbers,
    with signs that make R's diagonal positive, so that it is uniform over all such matrices.
    """
    columns, rows = fans(shape)[0], shape[0]
    drawn = normal((max(rows, columns), min(rows, columns)), rng)
    q, r = np.linalg.qr(drawn)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return gain * (q.T if rows < columns else q).reshape(shape)


def sinusoidal(shape: Shape, rng: np.random.Generator, *, period: float = 10_000.0) -> Drawn:
    """sin(t ω_i) in the columns 2i and cos(t ω_i) in 2i + 1 of row t, with ω_i = period^(-2i/W).

    Vaswani et al. 2017, section 3.5, for a table (T, W) of positions; `rng` is not drawn from. As a
    sum of angles is a rotation, row t + s is a linear function of row t that does not depend on t.
    """
    column = np.arange(math.prod(shape[1:]))
    frequency = period ** (-2 * (column // 2) / len(column))
    angle = np.arange(shape[0])[:, None] * frequency
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).reshape(shape)
