"""LeNet-5."""

from __future__ import annotations

from typing import Any

from xbp import nn
from xbp.random import Seed, generator


class LeNet5(nn.Sequential):
    """LeNet-5 for 28 × 28 grey images, 61,706 parameters.

    After LeCun, Bottou, Bengio & Haffner 1998, figure 2, in the form in which it is taught today:
    ReLU, maximum pooling, C3 connected to all of S2, and a linear output layer for cross-entropy.
    C1 pads the 28 × 28 image to the 32 × 32 of the paper.

    ====== ================================= ============== ==========
    layer                                    output         parameters
    ====== ================================= ============== ==========
    C1     convolution 5 × 5, padding 2      6 × 28 × 28    156
    S2     maximum of 2 × 2                  6 × 14 × 14
    C3     convolution 5 × 5                 16 × 10 × 10   2,416
    S4     maximum of 2 × 2                  16 × 5 × 5
    C5     fully connected                   120            48,120
    F6     fully connected                   84             10,164
    output fully connected                   10             850
    ====== ================================= ============== ==========

    Parameters
    ----------
    num_classes : int, default 10
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Notes
    -----
    Input (N, 1, 28, 28), output logits (N, num_classes).

    Examples
    --------
    >>> import xbp
    >>> sum(p.data.size for p in xbp.models.LeNet5(rng=0).parameters())
    61706
    """

    def __init__(self, num_classes: int = 10, *, dtype: Any = "float32", rng: Seed = None) -> None:
        rng = generator(rng)
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2, dtype=dtype, rng=rng),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, dtype=dtype, rng=rng),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120, dtype=dtype, rng=rng),
            nn.ReLU(),
            nn.Linear(120, 84, dtype=dtype, rng=rng),
            nn.ReLU(),
            nn.Linear(84, num_classes, dtype=dtype, rng=rng),
        )
