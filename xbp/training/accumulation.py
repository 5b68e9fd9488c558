"""Gradient accumulation: the gradients of a batch, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from xbp.backend import Array, array_namespace, library_of, on_host
from xbp.nested import first_of, tree_leaves, tree_map
from xbp.nn import for_parameters
from xbp.nn.backward import run_forward
from xbp.random import RandomStream
from xbp.training.metrics.averages import counted
from xbp.training.metrics.counting import len_of
from xbp.training.results import CheckedLoss
from xbp.training.state import Pieces


def accumulated(
    pieces: Pieces, loss: CheckedLoss, x: Array, y: Array, rng: RandomStream, size: int
) -> tuple[Array, Array, bool]:
    """Add the gradients of a batch to the parameters, one part of the batch after the other.

    The mean over the batch is the weighted mean of its parts,

        L = Σ c_j L_j / Σ c_j,      ∂L/∂θ = Σ c_j ∂L_j/∂θ / Σ c_j,

    where c_j is the number of samples in part j, or the loss's own `denominator`. For a loss that
    is a sum, c_j is 1 and there is no division.

    Parameters
    ----------
    loss : CheckedLoss
        Of ``pieces.loss``.
    x, y : array
        The batch.
    rng : RandomStream
        Advanced to this step.
    size : int
        Samples in a part; the last one may be smaller.

    Returns
    -------
    prediction : array
        Of the whole batch.
    value : array, 0-d
        L.
    finite : bool
        False if, on the host, the value of a part is not finite; the rest is then left out.
    """
    samples, summed = len_of(first_of(y)), getattr(pieces.loss, "reduction", "mean") == "sum"
    whole: Any = None
    total: Any = 0.0
    count: Any = None  # a 0-d array for a loss with a denominator
    for part in _parts(samples, size):
        some, target = (
            tree_map(lambda array, part=part: array[part, ...], data) for data in (x, y)
        )
        prediction, backward = run_forward(pieces.model, some, training=True, rng=rng)
        value, gradient = loss(prediction, target)
        whole = _put(whole, prediction, part, samples)
        if on_host(value) and not math.isfinite(value):
            return whole, value, False
        own = counted(pieces.loss, prediction, target)
        weight: Any = own
        if isinstance(own, int):
            weight = 1.0 if summed else own / samples
        else:
            count = own if count is None else count + own
        total = total + weight * value
        for_parameters(backward)(tree_map(lambda g, w=weight: _times(g, w), gradient))
    if count is None:
        return whole, total, True
    xp = array_namespace(count)
    factor = 1 / xp.where(count > 0, count, 1.0)  # count 0: all gradients are 0
    for parameter in pieces.optimizer.parameters:
        if parameter.grad is not None:
            parameter.grad = _times(parameter.grad, factor)
    return whole, total * factor, True


def _parts(samples: int, size: int) -> Iterator[slice]:
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))


def _times(gradient: Array, factor: Any) -> Array:
    if library_of(factor) is not None:
        xp = array_namespace(gradient)
        factor = xp.astype(xp.asarray(factor), gradient.dtype)
    return factor * gradient


def _put(whole: Any, prediction: Any, part: slice, samples: int) -> Any:
    """`whole`, allocated for the first part, with the prediction of this part written into it."""
    if whole is None:
        whole = tree_map(lambda array: _room(array, samples), prediction)
    for array, values in zip(tree_leaves(whole), tree_leaves(prediction), strict=True):
        array[part, ...] = values
    return whole


def _room(array: Array, samples: int) -> Array:
    xp = array_namespace(array)
    return xp.zeros((samples, *array.shape[1:]), dtype=array.dtype, device=array.device)
