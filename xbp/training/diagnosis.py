"""The origin of a loss that is infinite or nan."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from xbp.backend import Array, array_namespace, to_numpy
from xbp.nested import tree_leaves, tree_map
from xbp.nn import named_outputs
from xbp.random import RandomStream
from xbp.training.state import Pieces

Place: TypeAlias = "tuple[Any, Any, Array]"
"""All x, all y, and which of them are the batch."""


def batch_of(x: Any, y: Any, indices: Array) -> tuple[Any, Any]:
    take = array_namespace(indices).take
    batch, target = (tree_map(lambda part: take(part, indices, axis=0), parts) for parts in (x, y))
    return batch, target


def not_finite(
    pieces: Pieces,
    seed: int,
    value: float,
    epoch: int,
    step: int,
    place: Place,
    where: str = "",
) -> str:
    """One sentence: the first thing that is not finite, of data, layers and loss, in this order.

    Parameters
    ----------
    pieces : Pieces
    seed : int
        Of the masks.
    value : float
        The loss.
    epoch : int
        Counted from 1.
    step : int
        The step of the epoch with that loss, counted from 0.
    place : (x, y, indices)
        On a device the step may be an earlier one than that of this batch.
    where : str
        What the numbers of samples are counted in, if not all of them: ``" of this batch"``.
    """
    optimizer, (x, y, _) = pieces.optimizer, place
    rate = max(optimizer.rates_at(optimizer.steps))
    advice = f"; a learning rate below {rate:g} may help"
    broken = [f"{n}[{i}]" for n, a in (("x", x), ("y", y)) if (i := _first_broken(a)) is not None]
    if broken:
        what = "the input" if broken[0].startswith("x") else "the target"
        culprit = f"{what}: check the data, first {broken[0]}{where}"
    else:
        culprit = _layer(pieces, seed, batch_of(*place)[0])
    culprit = pieces.share.known(culprit) or "the loss itself: check the targets"
    if optimizer.steps == 0 or ": check the data, " in culprit:
        advice = ""  # the parameters are the initial ones
    return (
        f"the loss is {value} in epoch {epoch}, step {step + 1}; the first thing not finite is "
        f"{culprit}{advice}"
    )


def spoiled(pieces: Pieces, epoch: int) -> str:
    """One sentence if the last step made a trainable parameter infinite or nan; else empty."""
    named = list(pieces.model.named_parameters())
    if not named:
        return ""
    xp = array_namespace(named[0][1].data)
    finite = to_numpy(xp.stack([xp.all(xp.isfinite(p.data)) for _, p in named]))
    if finite.all():
        return ""
    name = named[int(np.argmin(finite))][0]
    lr = max(pieces.optimizer.rates_at(max(pieces.optimizer.steps - 1, 0)))
    return (
        f"the last step, in epoch {epoch}, has made the parameter {name!r} infinite or nan, though "
        f"the loss before it was finite; a learning rate below {lr:g} may help"
    )


def _layer(pieces: Pieces, seed: int, batch: Any) -> str:
    """The first layer whose output is not finite, as it would be in training."""
    stream = RandomStream(seed, step=pieces.optimizer.steps)
    for name, layer, output in named_outputs(pieces.model, batch, training=True, rng=stream):
        if not all(map(_finite, tree_leaves(output))):
            return f"the output of layer {name!r}, {' '.join(str(layer).split())}"
    return ""


def _first_broken(arrays: Any) -> int | None:
    """The first sample in which something is infinite or nan."""
    for array in tree_leaves(arrays):
        if not _finite(array):
            finite = np.isfinite(to_numpy(array))
            return int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
    return None


def _finite(array: Array) -> bool:
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, ("real floating", "complex floating")):
        return True
    return bool(to_numpy(xp.all(xp.isfinite(array))))
