"""The content of a report: numbers and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xbp.backend import Array, backend_of, dtype_name, to_numpy
from xbp.datasets.labelled import LABELLED_IMAGES, LabelledImages
from xbp.nn import Flatten, Layer, named_outputs
from xbp.training.metrics.confusion import confusion_matrix
from xbp.training.views import over_views

MISTAKES = 24
"""The number of mistakes shown."""

MAPS = 64
"""The most feature maps shown of a layer."""

MNIST = LABELLED_IMAGES["mnist"]


class Mistake(NamedTuple):
    """A test image, or text, that was assigned to a wrong class."""

    image: Any  # uint8, or a text
    number: int  # index in the test set, from 0
    label: int
    predicted: int
    probability: float  # of the predicted class
    probability_of_label: float


class LayerMaps(NamedTuple):
    """The output of a layer for one image."""

    name: str
    kind: str
    shape: str
    maps: list[NDArray[Any]]  # a vector becomes one matrix
    width: int  # of each map on the page, in pixels

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(max(np.abs(each).max() for each in self.maps))


class Filters(NamedTuple):
    """The kernels of the first layer, if its input are images."""

    name: str
    kind: str
    weights: list[NDArray[Any]]  # (H, W), or of colours (3, H, W)

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(max(np.abs(each).max() for each in self.weights))


@dataclass(frozen=True)
class Tested:
    """The results of a model on its test set."""

    matrix: NDArray[np.int64]
    loss: float
    mistakes: list[Mistake]

    @property
    def images(self) -> int:
        return int(self.matrix.sum())

    @property
    def wrong(self) -> int:
        return self.images - int(self.matrix.trace())


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax along the last axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def outputs(
    model: Layer,
    images: NDArray[np.uint8],
    data: LabelledImages = MNIST,
    *,
    mirror: bool = False,
    shift: int = 0,
) -> NDArray[Any]:
    """The model's logits for images (N, H, W) or (N, C, H, W) of a set, on the host."""
    run = over_views(model, mirror=mirror, shift=shift)
    parts = [images[i : i + 512] for i in range(0, len(images), 512)]
    return np.concatenate([to_numpy(run(_inputs(model, part, data))) for part in parts])


def _inputs(model: Layer, images: NDArray[np.uint8], data: LabelledImages) -> Array:
    """Images, standardized as in training."""
    weight = model.parameters()[0].data
    return backend_of(weight).asarray(data.standardized(images, dtype_name(weight.dtype)))


def examine(
    model: Layer,
    x: NDArray[np.uint8],
    y: NDArray[Any],
    classes: int,
    data: LabelledImages = MNIST,
    *,
    mirror: bool = False,
    shift: int = 0,
) -> Tested:
    """Run the model over its whole test set."""
    return judged(outputs(model, x, data, mirror=mirror, shift=shift), y, classes, x)


def judged(
    logits: NDArray[Any], y: NDArray[Any], classes: int, samples: Sequence[Any] | NDArray[Any]
) -> Tested:
    """What the logits (N, classes) of a test set with the labels y come to."""
    probabilities = softmax(logits)
    predicted, labels = np.argmax(logits, axis=1), y.astype(np.int64)
    rows = np.arange(len(y))
    true, chosen = probabilities[rows, labels], probabilities[rows, predicted]
    loss = float(-np.mean(np.log(np.maximum(true, 1e-300))))
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-chosen[wrong], kind="stable")][:MISTAKES]
    mistakes = [
        Mistake(
            samples[i], int(i), int(labels[i]), int(predicted[i]), float(chosen[i]), float(true[i])
        )
        for i in worst
    ]
    return Tested(confusion_matrix(labels, predicted, classes), loss, mistakes)


def feature_maps(
    model: Layer, image: NDArray[np.uint8], data: LabelledImages = MNIST
) -> list[LayerMaps]:
    """The output of each layer for an image, without layers that only rearrange it."""
    rows = []
    for name, layer, y in named_outputs(model, _inputs(model, image[None], data)):
        values = to_numpy(y)[0]
        if not isinstance(layer, Flatten):
            pictures = values.ndim == 3 and values[0].size > 1
            maps = list(values[:MAPS]) if pictures else [_folded(values)]
            columns = maps[0].shape[1]
            width = 56 if pictures else columns * (12 if columns > 12 else 28)
            shape = " × ".join(map(str, values.shape))
            rows.append(LayerMaps(name, type(layer).__name__, shape, maps, width))
    return rows


def _folded(values: NDArray[Any]) -> NDArray[Any]:
    """A vector as a matrix whose rows have an equal number of entries, at most 30."""
    flat = values.reshape(-1)
    columns = max(n for n in range(1, 31) if flat.size % n == 0)
    return flat.reshape(-1, columns) if columns > 5 else flat.reshape(1, -1)


def first_filters(model: Layer, image_size: tuple[int, int]) -> Filters | None:
    """The weights of the first layer with weights, if they can be shown as pictures."""
    kinds = {name: type(layer).__name__ for name, layer in _leaves(model)}
    for name, value in model.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        if parameter == "weight" and value.ndim == 4:
            colours = value.shape[1] == 3
            shown = value[:MAPS] if colours else value[:MAPS, 0]
            return Filters(layer, kinds.get(layer, ""), list(shown))
        if parameter == "weight" and value.shape[1:] == (image_size[0] * image_size[1],):
            pictures = value[:MAPS].reshape(-1, *image_size)
            return Filters(layer, kinds.get(layer, ""), list(pictures))
        if parameter == "weight":
            return None
    return None


def _leaves(layer: Layer, name: str = "") -> list[tuple[str, Layer]]:
    inside = [pair for key, child in layer.children() for pair in _leaves(child, f"{name}.{key}")]
    return inside or [(name.lstrip("."), layer)]
