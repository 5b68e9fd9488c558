"""The networks of ``xbp train`` that classify images: data, model and recipe of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp import models, nn, optim
from xbp.backend import asarray
from xbp.cli.options import Options
from xbp.data import Arrays, Compose, Flip, ShiftedCrop
from xbp.data.sources import Batch, Indices
from xbp.datasets.labelled import LABELLED_IMAGES, LabelledImages, Split
from xbp.errors import DataError
from xbp.models import lenet1998
from xbp.optim import Optimizer

PREPARED = 5000


@dataclass(frozen=True)
class Network:
    """What one training needs besides the user's options.

    Attributes
    ----------
    title : str
        The name of the model.
    set_name : str
        Of `LABELLED_IMAGES`.
    make_model : callable ``(classes, *, dtype, rng) -> Layer``
        The model maps (N, C, H, W) to logits (N, classes).
    image_shape : (C, H, W)
    make_optimizer : callable ``(model, schedule) -> Optimizer``
    loss : Loss
        Takes such logits and integer labels.
    augment : callable, optional
        See `Trainer.fit`.
    resident : bool
        Whether all images are standardized and moved to the device before training; otherwise
        batch by batch.
    """

    title: str
    set_name: str
    make_model: Callable[..., nn.Layer]
    image_shape: tuple[int, int, int]
    make_optimizer: Callable[[nn.Layer, optim.OneCycleLR], Optimizer]
    loss: nn.Loss = field(default_factory=nn.CrossEntropyLoss)
    augment: Callable[..., Any] | None = None
    prepare: Callable[[Any, NDArray[Any]], None] | None = None
    resident: bool = False

    @property
    def images(self) -> LabelledImages:
        """The set of images."""
        return LABELLED_IMAGES[self.set_name]

    def load(self, options: Options) -> tuple[Split, Split]:
        """Training and test images with their labels, checked against the model.

        Raises
        ------
        DataError
            A file is missing or malformed, or images or labels do not fit the model.
        """
        (x, y), test = self.images.load(options.data_dir)
        for part, split in (("training", (x, y)), ("test", test)):
            where = f"in {str(options.data_dir)!r}" if options.data_dir else ""
            self._check(f"the {part} set {where}".rstrip(), *split, options.classes)
        return (x[: options.limit], y[: options.limit]), test

    def _check(self, where: str, x: NDArray[np.uint8], y: NDArray[Any], classes: int) -> None:
        if len(x) == 0:
            msg = f"{where} is empty; at least one image is needed"
            raise DataError(msg)
        size = self.image_shape[1:]
        if x.shape[-2:] != size:
            (h, w), (height, width) = size, x.shape[-2:]
            msg = (
                f"{where} has images of {height} × {width} pixels, but {self.title} takes "
                f"{h} × {w}; resize them or give another set"
            )
            raise DataError(msg)
        wrong = y[(y < 0) | (y >= classes)]
        if wrong.size:
            msg = (
                f"{where} has the label {wrong[0]}, where 0 to {classes - 1} were "
                "expected; correct the file, or say with --classes how many classes there are"
            )
            raise DataError(msg)

    def given(self, split: Split, dtype: str) -> Any:
        """What `Trainer.fit` takes of images and labels: two arrays, or a source."""
        if not self.resident:
            return Standardized(*split, self.images, dtype)
        x, y = split
        return asarray(self.images.standardized(x, dtype)), asarray(y)


class Standardized(Arrays):
    """Images, standardized batch by batch, and their labels.

    Parameters
    ----------
    x, y : numpy arrays
        uint8 images and labels.
    images : LabelledImages
        The set that they are of.
    dtype : str
    """

    def __init__(
        self, x: NDArray[np.uint8], y: NDArray[Any], images: LabelledImages, dtype: str
    ) -> None:
        super().__init__(x, y)
        self.images, self.dtype = images, dtype

    def batch(self, indices: Indices) -> Batch:
        x, y = super().batch(indices)
        return self.images.standardized(x, self.dtype), y


# --- recipes --------------------------------------------------------------------------------------


def adam(model: nn.Layer, schedule: optim.OneCycleLR) -> Optimizer:
    return optim.Adam(model.parameters(), schedule)


def nesterov(model: nn.Layer, schedule: optim.OneCycleLR) -> Optimizer:
    """SGD with Nesterov's momentum, and weight decay for matrices and kernels alone."""
    groups = optim.decay_groups(model, weight_decay=5e-4)
    return optim.SGD(groups, schedule, momentum=0.9, nesterov=True)


def lenet5(activation: str, pool: str, variant: str | None) -> Network:
    model = partial(models.LeNet5, activation=activation, pool=pool, variant=variant)
    loss = nn.CrossEntropyLoss() if variant is None else lenet1998.RejectingCrossEntropyLoss()
    return Network("LeNet-5", "mnist", model, (1, 28, 28), adam, loss, resident=True)


def cifar(title: str, make_model: Callable[..., nn.Layer], **others: Any) -> Network:
    """A network for CIFAR-10 with the augmentation of He et al. 2016: flips and shifted crops."""
    recipe: dict[str, Any] = {
        "make_optimizer": nesterov,
        "augment": Compose(Flip(), ShiftedCrop(4)),
    } | others
    return Network(title, "cifar10", make_model, (3, 32, 32), **recipe)


def resnet(depth: int, shortcut: str) -> Network:
    return cifar(
        f"ResNet-{depth}",
        partial(models.ResNet, depth, shortcut=shortcut),
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        make_optimizer=partial(muon, rising=0.1, vectors=2.0, decay=0.05),
    )


def vgg(depth: int, channels: int) -> Network:
    return cifar(f"VGG-{depth}", partial(models.VGG, depth, width=channels))


def fast_cifar() -> Network:
    def whiten(model: models.FastCIFAR, images: NDArray[Any]) -> None:
        model.whiten(images)

    return cifar(
        "FastCIFAR",
        partial(models.FastCIFAR, widths=WIDTHS),
        loss=nn.CrossEntropyLoss(label_smoothing=0.2),
        make_optimizer=muon,
        augment=Compose(Flip(), ShiftedCrop(2, "reflect")),
        prepare=whiten,
    )


WIDTHS = (64, 128, 256)
"""The channels of FastCIFAR's stages; Jordan 2024 has 64, 256 and 256."""


def muon(
    model: nn.Layer,
    schedule: optim.OneCycleLR,
    *,
    rising: float = 0.23,
    vectors: float = 4.0,
    decay: float = 0.12,
) -> Optimizer:
    """Muon for the kernels, as in Jordan's later airbench; SGD with Nesterov's momentum for others.

    Rates rise linearly from a fifth of the highest one, in the part `rising` of the steps, and fall
    linearly to 0. Scales and shifts learn at a rate `vectors` times that of the kernels, the last
    matrix at half of it. A decay of 0.12 keeps kernels near the norm at which airbench holds them.
    """
    steps = schedule.total_steps
    up = max(1, round(rising * steps))

    def times(factor: float) -> optim.SequentialLR:
        highest = factor * schedule.max_lr
        rising = optim.LinearLR(highest, 0.2, 1.0, up)
        falling = optim.LinearLR(highest, 1.0, 0.0, max(1, steps - up))
        return optim.SequentialLR([rising, falling], [up])

    kernels, scales, matrices = (
        [p for p in model.parameters() if p.data.ndim == axes] for axes in (4, 1, 2)
    )
    sgd: dict[str, Any] = {"rule": optim.SGD, "momentum": 0.85, "nesterov": True}
    groups: list[dict[str, Any]] = [
        {"params": kernels},
        {"params": scales, "lr": times(vectors), "weight_decay": 0.0, **sgd},
        {"params": matrices, "lr": times(0.5), "weight_decay": 5e-4, **sgd},
    ]
    return optim.Muon(groups, times(1.0), weight_decay=decay, momentum=0.6)
