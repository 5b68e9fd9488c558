"""Sets of labelled images by name: where they come from, and what a network is given of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.datasets.cifar import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, load_cifar10
from xbp.datasets.mnist import MNIST_MEAN, MNIST_STD, load_mnist, standardize_images

Split = tuple[NDArray[np.uint8], NDArray[Any]]
Load = Callable[[Path | None], tuple[Split, Split]]


@dataclass(frozen=True)
class LabelledImages:
    """A set of images for training and one for the test, each with a label.

    Attributes
    ----------
    title : str
    load : callable ``folder -> (x, y), (x_test, y_test)``
        Images uint8 (N, H, W) or (N, C, H, W), and integer labels (N,); without a folder those
        where the loader looks by itself.
    mean, std : float or tuple
        Of the training images, for `standardize_images`.
    classes : tuple of str
        What the labels stand for; empty where they are digits.
    """

    title: str
    load: Load
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    classes: tuple[str, ...] = ()

    def standardized(
        self, images: NDArray[np.uint8], dtype: Any = "float32"
    ) -> NDArray[np.floating[Any]]:
        """What a network is given: (N, C, H, W)."""
        return standardize_images(images, self.mean, self.std, dtype)

    def name(self, label: int) -> str:
        """What a label stands for."""
        return self.classes[label] if label < len(self.classes) else str(label)


# The loaders are looked up when they are called, so that one may be replaced.
LABELLED_IMAGES = {
    "mnist": LabelledImages("MNIST", lambda folder: load_mnist(folder), MNIST_MEAN, MNIST_STD),
    "cifar10": LabelledImages(
        "CIFAR-10",
        lambda folder: load_cifar10(folder),
        CIFAR10_MEAN,
        CIFAR10_STD,
        CIFAR10_CLASSES,
    ),
}
