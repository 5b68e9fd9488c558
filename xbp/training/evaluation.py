"""Evaluation and prediction: a model in inference mode, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from xbp.backend import Array, array_namespace, joined
from xbp.nested import tree_map
from xbp.training.feeds import Feed
from xbp.training.memory import enough_memory
from xbp.training.metrics.averages import Averages
from xbp.training.results import CheckedLoss
from xbp.training.state import Pieces
from xbp.training.views import over_views


def evaluate(pieces: Pieces, feed: Feed, batch_size: int) -> dict[str, float]:
    """The loss and each metric over all samples.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    measured = Averages(pieces.loss, pieces.metrics, pieces.share)
    loss = CheckedLoss(pieces.loss)
    with closing(feed.batches(batch_size)) as batches:
        for size, (batch, target) in batches:
            with (
                pieces.share.batch(size),
                enough_memory(batch, batch_size, "evaluating", pieces.model),
            ):
                prediction = pieces.model(batch)
                measured.add_share(loss, prediction, target)
    return measured.result()


def predict(
    pieces: Pieces,
    inputs: Iterator[tuple[int, Any]],
    batch_size: int,
    *,
    mirror: bool = False,
    shift: int = 0,
) -> Array:
    """The model's outputs for all batches of inputs.

    Parameters
    ----------
    pieces : Pieces
    inputs : iterator of (int, array)
        Of each batch its number of samples, and the rows of this process.
    batch_size : int
    mirror : bool, default False
    shift : int, default 0
        Test-time augmentation: see `over_views`.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    outputs: list[Any] = []
    model, share = pieces.model, pieces.share
    run = over_views(model, mirror=mirror, shift=shift)
    for size, batch in inputs:
        with share.batch(size), enough_memory(batch, batch_size, "predicting", model):
            outputs.append(share.gathered(run(batch)))
    with enough_memory(batch, batch_size, "predicting", model):
        return tree_map(lambda *parts: joined(array_namespace(parts[0]), parts), *outputs)
