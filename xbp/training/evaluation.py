"""Evaluation and prediction: a model in inference mode, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

from xbp.backend import Array, array_namespace
from xbp.nested import each
from xbp.nn import Layer
from xbp.training.memory import enough_memory
from xbp.training.metrics.averages import Averages
from xbp.training.metrics.counting import len_of
from xbp.training.results import CheckedLoss
from xbp.training.state import Pieces
from xbp.training.steps import batch_indices


def evaluate(pieces: Pieces, x: Array, y: Array, batch_size: int) -> dict[str, float]:
    """The loss and each metric over all samples.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    measured, loss = Averages(pieces.loss, pieces.metrics), CheckedLoss(pieces.loss)
    with enough_memory(x, batch_size, "evaluating", pieces.model):
        for batch, target in zip(_slices(x, batch_size), _slices(y, batch_size), strict=True):
            prediction = pieces.model(batch)
            measured.add(loss(prediction, target)[0], prediction, target)
        return measured.result()


def predict(model: Layer, x: Array, batch_size: int) -> Array:
    """The model's outputs for all samples.

    Raises
    ------
    OutOfMemoryError
        A batch needs more memory than there is; the sentence says which size may do.
    """
    with enough_memory(x, batch_size, "predicting", model):
        outputs = [model(batch) for batch in _slices(x, batch_size)]
        return each(lambda *parts: array_namespace(x).concat(parts, axis=0), *outputs)


def _slices(array: Array, size: int) -> Iterator[Array]:
    for k in range(1, -(-len_of(array) // size) + 1):
        yield batch_indices(array, k, size)
