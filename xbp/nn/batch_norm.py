"""Batch normalization: each channel with mean 0 and variance 1 over the batch."""

from __future__ import annotations

import math
from typing import Any

from xbp.arguments import integer, number
from xbp.backend import array_namespace, asarray, on_host
from xbp.errors import InputError
from xbp.initializers import zeros
from xbp.nn.norm import ones
from xbp.nn.operation import Operation, OperationLayer, Shape, Statistics
from xbp.nn.parameter import Buffer, Parameter
from xbp.parallel.groups import Group
from xbp.primitives.normalization import Moments, batch_normalize, track
from xbp.random import generator


class BatchNorm(OperationLayer):
    """Base of `BatchNorm1d` and `BatchNorm2d`, which differ in the shapes of their input."""

    shapes: tuple[str, ...] = ()
    """Shapes of valid inputs, with a C for the number of channels."""

    group: Group | None = None
    """Processes that each have a share of the batch; see `xbp.nn.pool_statistics`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        self.num_features = integer("num_features", num_features, least=1)
        self.eps = number("eps", eps, least=0)
        self.momentum = None if momentum is None else number("momentum", momentum, least=0, most=1)
        shape, rng = (self.num_features,), generator(0)
        self.weight = Parameter.draw(shape, ones, rng, dtype) if affine else None
        self.bias = Parameter.draw(shape, zeros, rng, dtype) if affine else None
        self.running_mean = self.running_var = self.num_batches_tracked = None
        if track_running_stats:
            self.running_mean = Buffer.draw(shape, zeros, rng, dtype)
            self.running_var = Buffer.draw(shape, ones, rng, dtype)
            self.num_batches_tracked = Buffer(asarray(0, dtype="int64"))

    @property
    def alone(self) -> bool:
        """Whether it has a group, whose sums travel between processes."""
        return self.group is not None

    def operation(self) -> Operation:
        pooled = {} if self.group is None else {"sum_": self.group.sum_}
        return Operation(
            batch_normalize,
            (self.weight, self.bias),
            options={"eps": self.eps},
            statistics=Statistics((self.running_mean, self.running_var), self._commit, pooled),
        )

    def output_shape(self, shape: Shape) -> Shape:
        axes = {len(it.split(",")) for it in self.shapes}
        if len(shape) not in axes or shape[1] != self.num_features:
            wanted = " or ".join(self.shapes).replace("C", str(self.num_features))
            msg = f"{self} expects input {wanted}, got shape {tuple(shape)}"
            raise InputError(msg)
        return shape

    def check_batch(self, shape: Shape) -> None:
        """Refuse fewer than two values a channel; of a pooled batch `_commit` knows how many."""
        if self.group is None and math.prod(shape) < 2 * self.num_features:
            raise self._too_few(f"shape {tuple(shape)}")

    def _commit(self, found: Moments) -> None:
        """Update the running statistics, in place, by those of a batch."""
        n, mean, variance = found
        if self.group is not None and on_host(n) and n < 2:
            raise self._too_few(f"one in the batches of {self.group.size} processes")
        count = self.num_batches_tracked
        if self.running_mean is None or self.running_var is None or count is None:
            return
        share: Any = self.momentum
        if share is None:
            share = 1 / array_namespace(mean).astype(count.data + 1, mean.dtype)
        running = self.running_mean.data, self.running_var.data, count.data
        track(*running, mean, variance, share=share, correction=n / (n - 1))

    def _too_few(self, got: str) -> InputError:
        return InputError(
            f"{self} needs more than one value a channel in training, where it normalizes by "
            f"their variance, got {got}; give larger batches (the last one of an epoch may be "
            "smaller)"
        )

    def options(self) -> str:
        tracked = self.running_mean is not None
        return (
            f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, track_running_stats={tracked}"
        )


class BatchNorm1d(BatchNorm):
    """y = w (x - μ)/√(σ² + ε) + b, for each channel with its mean and variance over the batch.

    In training μ and σ² are those of the batch, over all axes but that of the channels; in
    inference the running ones,

        running ← (1 - m) running + m · (that of the batch),

    with momentum m (Ioffe & Szegedy 2015, algorithms 1 and 2). For the derivation of the backward
    see `xbp.primitives.normalization`.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float, default 1e-5
        ε.
    momentum : float or None, default 0.1
        m; None averages over all batches so far, by m = 1/num_batches_tracked.
    affine : bool, default True
        Whether w and b are learned; else they are 1 and 0.
    track_running_stats : bool, default True
        False keeps no statistics, and normalizes by those of the batch in inference, too.
    dtype : dtype, default "float32"

    Attributes
    ----------
    weight, bias : Parameter (num_features,) or None
        w and b, initially 1 and 0.
    running_mean, running_var : Buffer (num_features,) or None
        Initially 0 and 1.
    num_batches_tracked : Buffer () of int64, or None

    Notes
    -----
    Input (N, C) or (N, C, L), output of the same shape. The σ² that normalizes is Σ (x - μ)²/n,
    the one that enters running_var Σ (x - μ)²/(n - 1).

    A forward changes nothing: the first backward of a training forward updates the running
    statistics, in place. In PyTorch the forward updates them, even if no backward follows; here
    `xbp.nn.update_statistics` does that. If a model uses a layer twice, the later use updates
    first, in the order of the backward.

    Where several processes have a share of each batch, `xbp.nn.pool_statistics` lets the layer take
    its sums over all shares. A share may then have any number of rows, also none.

    Raises
    ------
    InputError
        In the constructor for sizes below 1, an eps below 0 or a momentum that is not from 0 to 1;
        in forward for another shape or dtype, in training for fewer than two values a channel.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.BatchNorm1d(1, eps=0, dtype="float64")
    >>> y, backward = layer.forward(np.array([[1.0], [3.0]]), training=True)
    >>> y.tolist(), layer.running_mean.data.tolist()
    ([[-1.0], [1.0]], [0.0])
    >>> dx = backward(np.ones((2, 1)))
    >>> layer.running_mean.data.tolist(), layer.running_var.data.tolist()
    ([0.2], [1.1])
    """

    shapes = "(N, C)", "(N, C, L)"


class BatchNorm2d(BatchNorm):
    """`BatchNorm1d` for images (N, C, H, W): mean and variance over the batch and all pixels.

    Parameters, attributes, formula, statistics and errors are those of `BatchNorm1d`.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.BatchNorm2d(1, eps=0, dtype="float64")
    >>> layer.forward(np.array([[[[1.0, 3.0]]]]), training=True)[0].tolist()
    [[[[-1.0, 1.0]]]]
    """

    shapes = ("(N, C, H, W)",)
