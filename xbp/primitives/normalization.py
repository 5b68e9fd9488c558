"""Normalization to mean 0 and variance 1: over a batch, parts of a sample, or by running moments.

With μ and σ² the mean and the variance of n numbers that are normalized together:

    x̂ = (x - μ) r,   r = 1/√(σ² + ε),   y = w x̂ + b.

The backward, with δ = ∂L/∂y and g = ∂L/∂x̂ = w δ. As Σx̂ = 0 and ∂r/∂x = -r² x̂/n,

    ∂x̂ᵢ/∂xⱼ = r (1[i = j] - 1/n - x̂ᵢ x̂ⱼ/n),
    ∂L/∂x = r (g - mean g - x̂ · mean(g x̂)),   ∂L/∂w = Σ δ x̂,   ∂L/∂b = Σ δ

(Ioffe & Szegedy 2015, section 3, with their terms in σ² and μ collected).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from xbp.backend import Array, Namespace, array_namespace
from xbp.primitives.dispatch import primitive
from xbp.primitives.updates import accumulate

Gradients: TypeAlias = "tuple[Array | None, Array | None, Array | None]"
"""∂L/∂x, or None where it is not wanted, ∂L/∂w and ∂L/∂b, or None where there is none."""


class Moments(NamedTuple):
    """Mean and variance of the n numbers of each channel; None where running ones were used."""

    n: Any
    mean: Any = None
    variance: Any = None


BatchGradients: TypeAlias = "tuple[Array | None, Array | None, Array | None, Moments]"
"""The same, and the moments of the batch."""


@primitive
def normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    axes: tuple[int, ...],
    eps: float,
    centre: bool = True,
) -> tuple[Array, Callable[..., Gradients]]:
    """y = w (x - μ)/√(σ² + ε) + b by the moments of `x`, or y = w x/√(mean x² + ε) + b.

    Parameters
    ----------
    x : array
    weight, bias : arrays that broadcast against `x`, or None
        w and b; without them 1 and 0.
    axes : tuple of int
        Numbers along these axes are normalized together.
    eps : float
    centre : bool, default True
        False does not subtract the mean (Zhang & Sennrich 2019): without μ in x̂, there is no
        "mean g" in ∂L/∂x.

    Returns
    -------
    y : array of the shape of `x`
    gradients : callable
        From ∂L/∂y, and whether ∂L/∂x is wanted (True), to (∂L/∂x, ∂L/∂w, ∂L/∂b).
    """
    xp = array_namespace(x)

    def mean(values: Array) -> Array:
        return xp.mean(values, axis=axes, keepdims=True)

    centred = deviations(x, mean)[0] if centre else x
    r = 1 / xp.sqrt(mean(centred * centred) + eps)
    normal = centred * r

    def gradients(dy: Array, wants_dx: bool = True) -> Gradients:
        dweight = None if weight is None else _summed(xp, dy * normal, weight.shape)
        dbias = None if bias is None else _summed(xp, dy, bias.shape)
        if not wants_dx:
            return None, dweight, dbias
        g = dy if weight is None else weight * dy
        dx = g - normal * mean(g * normal)
        if centre:
            dx -= mean(g)
        dx *= r
        return dx, dweight, dbias

    return _scaled(normal, weight, bias), gradients


@primitive
def batch_normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    *,
    eps: float,
    sum_: Callable[[Array], None] | None = None,
) -> tuple[Array, Callable[..., BatchGradients]]:
    """y = w (x - μ)/√(σ² + ε) + b for each channel, by running moments or those of the batch.

    As w is one number for each channel, mean g = w/n ∂L/∂b and mean(g x̂) = w/n ∂L/∂w. Running
    moments are constants, with ∂L/∂x = r g.

    Parameters
    ----------
    x : array (N, C, …)
    weight, bias : arrays (C,) or None
        w and b; without them 1 and 0.
    mean, variance : arrays (C,), or None for those of the batch
        μ and σ².
    eps : float
    sum_ : callable, optional
        Replaces an array, in place, by its sum over all processes that have a part of the batch:
        `x` and ∂L/∂y are such a part, which may have no rows. ∂L/∂w and ∂L/∂b are then those of
        this part alone. Without running moments the forward calls it four times, and ∂L/∂x once.

    Returns
    -------
    y : array (N, C, …)
    gradients : callable
        From ∂L/∂y, and whether ∂L/∂x is wanted (True), to (∂L/∂x, ∂L/∂w, ∂L/∂b, moments), with
        the `Moments` of the batch for the update of running ones: the variance is divided by n,
        and n is a 0-d array if it is a sum over processes.
    """
    xp = array_namespace(x)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)

    def here(values: Array) -> Array:
        """Σ values over the part of the batch that is here."""
        return xp.sum(values, axis=others, keepdims=True)

    def everywhere(*sums: Array) -> list[Array]:
        """1/n Σ of some sums over the parts of all processes: they travel in one call."""
        if sum_ is None:
            return [total / count() for total in sums]
        together = xp.stack(sums)
        sum_(together)
        return [together[i, ...] / count() for i in range(len(sums))]

    def over_batch(values: Array) -> Array:
        """Σ values / n: all sums of the forward over the batch are taken here."""
        if sum_ is None:
            return xp.mean(values, axis=others, keepdims=True)
        return everywhere(here(values))[0]

    known: list[Any] = []

    def count() -> Any:
        """n, the values of a channel in the batch. (An ONNX graph has none while it is traced.)"""
        if not known:
            n: Any = math.prod(x.shape) / x.shape[1]
            if sum_ is not None:
                n = xp.asarray(n, dtype=x.dtype, device=x.device)
                sum_(n)
            known.append(n)
        return known[0]

    def by_channel(array: Array) -> Array:
        return xp.reshape(array, (1, -1, *(1,) * (x.ndim - 2)))

    def flat(array: Array | None) -> Array | None:
        return None if array is None else xp.reshape(array, (-1,))

    w, b = (None if array is None else by_channel(array) for array in (weight, bias))
    moments: tuple[Array | None, Array | None] = None, None
    if mean is None or variance is None:
        centred, centre = deviations(x, over_batch)
        spread = over_batch(centred * centred)
        moments = flat(centre), flat(spread)
    else:
        centred, spread = x - by_channel(mean), by_channel(variance)
    r = 1 / xp.sqrt(spread + eps)
    normal = centred * r

    def gradients(dy: Array, wants_dx: bool = True) -> BatchGradients:
        along, level = here(dy * normal), here(dy)
        dweight = None if w is None else flat(along)
        dbias = None if b is None else flat(level)
        if not wants_dx:
            return None, dweight, dbias, Moments(count(), *moments)
        dx = dy
        if moments[0] is not None:
            along, level = everywhere(along, level)
            dx = dy - level - normal * along
        dx = dx * (r if w is None else w * r)
        return dx, dweight, dbias, Moments(count(), *moments)

    return _scaled(normal, w, b), gradients


@primitive
def track(
    mean: Array,
    variance: Array,
    count: Array,
    new_mean: Array,
    new_variance: Array,
    *,
    share: Any,
    correction: Any,
) -> None:
    """Move running statistics, in place, to those of a batch, and count it.

    mean ← (1 - share) mean + share · new_mean,  count ← count + 1, and for the variance likewise,
    with n/(n - 1) of the new one.

    Parameters
    ----------
    mean, variance, new_mean, new_variance : arrays of one shape and dtype
    count : array () of int64
    share, correction : float, or 0-d array of that dtype
        correction is n/(n - 1).
    """
    count += 1
    accumulate(mean, 1 - share, new_mean, share)
    accumulate(variance, 1 - share, new_variance, share * correction)


def deviations(x: Array, mean: Callable[[Array], Array]) -> tuple[Array, Array]:
    """x - μ and μ, to the precision of x.

    The first mean has a rounding error relative to its own size: for numbers of 10⁶ ± 1 in float32
    some percent of their differences. The mean of the deviations from it is that error (Chan, Golub
    & LeVeque 1983, eq. 1.7). With this correction, equal numbers have almost no variance.

    Parameters
    ----------
    x : array
    mean : callable
        The mean of numbers that are normalized together, with axes of size 1.
    """
    xp, first = array_namespace(x), mean(x)
    centred = x - first
    rest = mean(centred)
    centred -= rest
    return centred, xp.where(xp.isnan(rest), first, first + rest)  # an infinite mean stays


def _scaled(normal: Array, weight: Array | None, bias: Array | None) -> Array:
    """W x̂ + b."""
    y = normal if weight is None else weight * normal
    return y if bias is None else y + bias


def _summed(xp: Namespace, values: Array, shape: tuple[int, ...]) -> Array:
    """Σ values over the axes along which an array of `shape` was repeated."""
    new = values.ndim - len(shape)
    repeated = [axis for axis in range(values.ndim) if axis < new or shape[axis - new] == 1]
    return xp.reshape(xp.sum(values, axis=tuple(repeated)), shape)
