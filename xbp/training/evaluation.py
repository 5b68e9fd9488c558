"""Evaluation and prediction: a model in inference mode, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from xbp.backend import Array, array_namespace
from xbp.nested import tree_map
from xbp.nn import Layer
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
    measured, loss = Averages(pieces.loss, pieces.metrics), CheckedLoss(pieces.loss)
    with closing(feed.batches(batch_size)) as batches:
        for batch, target in batches:
            with enough_memory(batch, batch_size, "evaluating", pieces.model):
                prediction = pieces.model(batch)
                measured.add(loss(prediction, target)[0], prediction, target)
    return measured.result()


def predict(model: Layer, inputs: Iterator[Any], batch_size: int) -> Array:
    """The model's outputs for all batches of inputs.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    outputs: list[Any] = []
    for batch in inputs:
        with enough_memory(batch, batch_size, "predicting", model):
            outputs.append(model(batch))
    with enough_memory(batch, batch_size, "predicting", model):
        return tree_map(lambda *parts: array_namespace(parts[0]).concat(parts, axis=0), *outputs)
