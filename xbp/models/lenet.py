"""LeNet-5."""

from __future__ import annotations

from typing import Any

from xbp import nn
from xbp.arguments import choice
from xbp.errors import InputError
from xbp.models import lenet1998
from xbp.random import Seed, generator

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class LeNet5(nn.Sequential):
    """LeNet-5 for 28 × 28 grey images, by default with 61,706 parameters.

    After LeCun, Bottou, Bengio & Haffner 1998, figure 2, in the form in which it is taught today:
    ReLU, maximum pooling, C3 connected to all of S2, and a linear output layer for cross-entropy.
    C1 pads the 28 × 28 image to the 32 × 32 of the paper. The right column counts the parameters of
    ``variant="1998"``, the network of the paper, with 60,000 in all.

    ====== ================================= ============== ========== ======
    layer                                    output         parameters 1998
    ====== ================================= ============== ========== ======
    C1     convolution 5 × 5, padding 2      6 × 28 × 28    156        156
    S2     maximum (or average) of 2 × 2     6 × 14 × 14               12
    C3     convolution 5 × 5                 16 × 10 × 10   2,416      1,516
    S4     maximum (or average) of 2 × 2     16 × 5 × 5                32
    C5     fully connected                   120            48,120     48,120
    F6     fully connected                   84             10,164     10,164
    output fully connected                   10             850
    ====== ================================= ============== ========== ======

    Parameters
    ----------
    num_classes : int, default 10
    activation : {"relu", "tanh"}, default "relu"
    pool : {"max", "average"}, default "max"
    variant : {"1998"}, optional
        The network of the paper, with layers from `xbp.models.lenet1998`: 1.7159 tanh(⅔ a) after
        each layer up to F6; S2 and S4 with a learned coefficient and bias (`Subsample2d`); C3
        connected to S2 as in table I (`PartialConv2d`); outputs that are distances of F6 to fixed
        codes, stylised images of the ten digits (`EuclideanRBF`); initial weights U(-2.4/fan_in,
        2.4/fan_in). Biases start at 0, as the paper does not say.
    dtype : dtype, default "float32"
    rng : int, numpy.random.Generator or None
        Seed of the initial weights.

    Notes
    -----
    Input (N, 1, 28, 28), output logits (N, num_classes). The logits of the 1998 variant are the RBF
    units' penalties with opposite sign, so that the largest one is the answer as well;
    `xbp.models.lenet1998.RejectingCrossEntropyLoss` is the loss of the paper. Padding is with 0,
    where the paper has -0.1, its background.

    Raises
    ------
    InputError
        A choice is unknown; or activation, pool or number of classes are given with
        ``variant="1998"``, which fixes them.

    Examples
    --------
    >>> import xbp
    >>> sum(p.data.size for p in xbp.models.LeNet5(rng=0).parameters())
    61706
    >>> sum(p.data.size for p in xbp.models.LeNet5(variant="1998", rng=0).parameters())
    60000
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        activation: str = "relu",
        pool: str = "max",
        variant: str | None = None,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        squash = ACTIVATIONS[choice("activation", activation, tuple(ACTIVATIONS))]
        shrink = POOLS[choice("pool", pool, tuple(POOLS))]
        rng = generator(rng)
        self.arguments = {
            "num_classes": num_classes,
            "activation": activation,
            "pool": pool,
            "variant": variant,
        }
        if variant is not None:
            choice("variant", variant, ("1998",))
            if (num_classes, activation, pool) != (10, "relu", "max"):
                msg = (
                    'variant="1998" has ten classes, an activation and pooling of its own; '
                    "leave num_classes, activation and pool out"
                )
                raise InputError(msg)
            super().__init__(*lenet1998.layers(dtype, rng))
            return
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2, dtype=dtype, rng=rng),
            squash(),
            shrink(2),
            nn.Conv2d(6, 16, 5, dtype=dtype, rng=rng),
            squash(),
            shrink(2),
            nn.Flatten(),
            nn.Linear(400, 120, dtype=dtype, rng=rng),
            squash(),
            nn.Linear(120, 84, dtype=dtype, rng=rng),
            squash(),
            nn.Linear(84, num_classes, dtype=dtype, rng=rng),
        )
