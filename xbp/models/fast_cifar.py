"""A small network that learns CIFAR-10 fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xbp import nn
from xbp.arguments import described, integer
from xbp.datasets.whitening import PATCH, whitening
from xbp.errors import InputError
from xbp.initializers import fan_in_uniform, zeros
from xbp.random import Seed, generator

if TYPE_CHECKING:
    from xbp.random import Generator


class FastCIFAR(nn.Sequential):
    """A convolutional network whose first layer whitens: after Jordan 2024.

    The kernels of the first convolution, 2 × 2, are computed from training images (`whiten`) and
    not learned; its biases, which shift the whitened patches, are learned from 0 on. GELU follows.
    Each of three stages is convolution 3 × 3, maximum of 2 × 2, normalization, GELU, convolution
    3 × 3, normalization, GELU; then the maximum over 3 × 3 and a linear layer. The kernels of a
    convolution begin with the identity, as far as there are input channels, so that the network
    begins near one that hands its input on.

    No other convolution has biases; normalizations have a short memory (momentum 0.4), as a
    training has few steps. From "94% on CIFAR-10 in 3.29 seconds on a single GPU" are the layers,
    the whitening, its shift and the initial weights; not its optimizer. Its test-time augmentation
    is ``Trainer.predict(images, mirror=True, shift=1)``.

    Parameters
    ----------
    num_classes : int, default 10
    widths : sequence of three int, default (32, 64, 128)
        Channels of the stages; the paper's are 64, 256 and 256.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Notes
    -----
    Input (N, 3, 32, 32), standardized; output logits (N, num_classes).

    Raises
    ------
    InputError
        An argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import models
    >>> model = models.FastCIFAR(rng=0)
    >>> images = np.random.default_rng(0).normal(size=(50, 3, 32, 32)).astype("float32")
    >>> model.whiten(images)
    >>> model(images).shape
    (50, 10)
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (32, 64, 128),
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        if not isinstance(widths, tuple | list) or len(widths) != 3:
            msg = f"widths must be three integers, got {described(widths)}"
            raise InputError(msg)
        self.arguments: dict[str, Any] = {
            "num_classes": integer("num_classes", num_classes, least=1),
            "widths": [integer("each of widths", width, least=1) for width in widths],
        }
        rng = generator(rng)
        patch = 3 * PATCH**2
        first = nn.Conv2d(3, 2 * patch, PATCH, dtype=dtype, rng=rng, bias_init=zeros)
        first.weight.trainable = False
        layers: list[nn.Layer] = [first, nn.GELU()]
        before = 2 * patch
        for width in widths:
            for place in range(2):
                conv = nn.Conv2d(
                    *(before, width, 3, 1, 1, False),
                    weight_init=identity_first,
                    dtype=dtype,
                    rng=rng,
                )
                pool = [] if place else [nn.MaxPool2d(2)]
                layers += [conv, *pool, nn.BatchNorm2d(width, momentum=0.4, dtype=dtype), nn.GELU()]
                before = width
        head = nn.Linear(before, num_classes, False, dtype=dtype, rng=rng)
        super().__init__(*layers, nn.MaxPool2d(3), nn.Flatten(), head)

    def whiten(self, images: Any, eps: float = 5e-4) -> None:
        """Make the first layer whiten the patches of images.

        Parameters
        ----------
        images : numpy array (N, 3, H, W)
            Standardized training images, some thousands.
        eps : float
            Added to the variances.

        Raises
        ------
        InputError
            There are no such images.
        """
        self.layers[0].weight.assign(whitening(images, eps))  # type: ignore[attr-defined]


def identity_first(shape: tuple[int, ...], rng: Generator) -> Any:
    """Kernels (out, in, kh, kw): the first ones hand channel after channel on; U(±1/√n) others."""
    kernels = fan_in_uniform(shape, rng)
    for channel in range(min(shape[:2])):
        kernels[channel] = 0
        kernels[channel, channel, shape[2] // 2, shape[3] // 2] = 1
    return kernels
