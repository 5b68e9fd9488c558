"""Gradient accumulation: the gradients of a batch, part by part."""

from __future__ import annotations

from typing import Any

from xbp.backend import Array, array_namespace
from xbp.nested import tree_leaves, tree_map
from xbp.nn import for_parameters
from xbp.nn.backward import run_forward
from xbp.random import RandomStream
from xbp.training.results import CheckedLoss
from xbp.training.state import Pieces


def accumulated(
    pieces: Pieces,
    loss: CheckedLoss,
    x: Array,
    y: Array,
    rng: RandomStream,
    size: int,
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
        The batch, or this process's share of it.
    rng : RandomStream
        Advanced to this step.
    size : int
        Samples in a part; the last one may be smaller.

    Returns
    -------
    prediction : array
        For all of `x`.
    value : array, 0-d
        L.
    finite : bool
        False if, on the host, the value of a part is not finite; the rest is then left out.
    """
    share, whole, sums = pieces.share, None, None
    total = share.samples(y)
    for start in range(0, total, size):
        stop = min(start + size, total)
        part = share.part(start, stop)
        some, target = (
            tree_map(lambda array, part=part: array[part, ...], data) for data in (x, y)
        )
        share.draw(rng, start, stop - start)
        prediction, backward = run_forward(pieces.model, some, training=True, rng=rng)
        whole = _put(whole, prediction, part, tree_leaves(x)[0].shape[0])
        value, gradient, weight = share.loss_of_part(loss, prediction, target, total)
        if share.hopeless(value):
            return whole, value, False
        sums = (value, weight) if sums is None else (sums[0] + value, _sum(sums[1], weight))
        if pieces.scaling is not None:
            gradient = pieces.scaling.scaled(gradient)
        for_parameters(backward)(gradient)
    assert sums is not None
    return whole, share.reduce(pieces.optimizer.parameters, *sums), True


def _sum(one: Any, other: Any) -> Any:
    return None if one is None else one + other


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
