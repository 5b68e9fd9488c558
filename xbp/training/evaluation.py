"""Evaluation and prediction: a model in inference mode, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from xbp.arguments import described
from xbp.backend import Array, array_namespace, joined
from xbp.errors import InputError
from xbp.nested import first_of, tree_map
from xbp.training.feeds import Feed
from xbp.training.memory import enough_memory
from xbp.training.metrics.averages import Averages
from xbp.training.results import CheckedLoss
from xbp.training.state import Pieces


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


def mirrored(model: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The mean of a model's outputs for images and for their mirror images, x[..., ::-1]."""

    def mean(x: Any) -> Any:
        xp = array_namespace(first_of(x))
        if isinstance(x, tuple) or x.ndim != 4:
            msg = f"mirror needs images (N, C, H, W), got {described(x)}"
            raise InputError(msg)
        return tree_map(lambda a, b: 0.5 * (a + b), model(x), model(xp.flip(x, axis=3)))

    return mean


def predict(
    pieces: Pieces, inputs: Iterator[tuple[int, Any]], batch_size: int, *, mirror: bool = False
) -> Array:
    """The model's outputs for all batches of inputs.

    Parameters
    ----------
    pieces : Pieces
    inputs : iterator of (int, array)
        Of each batch its number of samples, and the rows of this process.
    batch_size : int
    mirror : bool, default False
        See `mirrored`.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    outputs: list[Any] = []
    model, share = pieces.model, pieces.share
    run = mirrored(model) if mirror else model
    for size, batch in inputs:
        with share.batch(size), enough_memory(batch, batch_size, "predicting", model):
            outputs.append(share.gathered(run(batch)))
    with enough_memory(batch, batch_size, "predicting", model):
        return tree_map(lambda *parts: joined(array_namespace(parts[0]), parts), *outputs)
