"""A small network that learns CIFAR-10 fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp import nn
from xbp.arguments import described, integer
from xbp.backend import as_numbers
from xbp.errors import InputError
from xbp.initializers import fan_in_uniform
from xbp.random import Seed, generator

PATCH = 2
"""Rows and columns of the whitened patches."""


class FastCIFAR(nn.Sequential):
    """A convolutional network without biases whose first layer whitens: after Jordan 2024.

    The first convolution, 2 × 2, is computed from training images (`whiten`) and not learned; GELU
    follows. Each of three stages is convolution 3 × 3, maximum of 2 × 2, normalization, GELU,
    convolution 3 × 3, normalization, GELU; then the maximum over 3 × 3 and a linear layer. The
    kernels of a convolution begin with the identity, as far as there are input channels, so that
    the network begins near one that hands its input on.

    From "94% on CIFAR-10 in 3.29 seconds on a single GPU" are the layers, the whitening and the
    initial weights; not its optimizer, its test-time augmentation, and its shift that is learned
    for the whitened patches.

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
        first = nn.Conv2d(3, 2 * patch, PATCH, bias=False, dtype=dtype, rng=rng)
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
                layers += [conv, *pool, nn.BatchNorm2d(width, dtype=dtype), nn.GELU()]
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


def whitening(images: Any, eps: float) -> NDArray[np.float64]:
    """Kernels (24, 3, 2, 2) that whiten patches of 2 × 2 pixels, and their negatives.

    With patches p as vectors, covariance E[p pᵀ] = Q Λ Qᵀ and kernels q_i/√(λ_i + eps), the results
    q_iᵀ p/√(λ_i + eps) are uncorrelated, with variances λ_i/(λ_i + eps).
    """
    x = as_numbers(images)
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or min(x.shape[2:]) < PATCH:
        msg = f"whitening needs images (N, 3, H, W), got {described(images)}"
        raise InputError(msg)
    x = x.astype(np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(x, (PATCH, PATCH), axis=(2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH**2)
    variances, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    # Largest variance first; a sign that does not depend on the machine.
    order = np.argsort(-variances)
    kernels = (vectors / np.sqrt(np.maximum(variances, 0) + eps))[:, order].T
    largest = np.take_along_axis(kernels, np.abs(kernels).argmax(axis=1)[:, None], axis=1)
    kernels = kernels * np.sign(largest)
    whole: NDArray[np.float64] = np.concatenate([kernels, -kernels])
    return whole.reshape(-1, 3, PATCH, PATCH)


def identity_first(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Kernels (out, in, kh, kw): the first ones hand channel after channel on; U(±1/√n) others."""
    kernels = np.asarray(fan_in_uniform(shape, rng))
    for channel in range(min(shape[:2])):
        kernels[channel] = 0
        kernels[channel, channel, shape[2] // 2, shape[3] // 2] = 1
    return kernels
