"""Layers that keep every number and change, at most, the shape or the order of axes."""

from __future__ import annotations

import math

from xbp.arguments import integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.layer import Layer


class Identity(Layer):
    """y = x, of any shape; for example one branch of `Parallel`."""

    complex_gradients = True

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        return x, self.checked(self.namespace(x), x.shape, lambda dy: dy)


class Reshape(Layer):
    """(N, …) → (N, *shape), in row-major order; backward restores the shape.

    Parameters
    ----------
    *shape : int
        Of one sample, without the batch axis; one size may be -1, to be inferred.

    Raises
    ------
    InputError
        A size is neither at least 1 nor -1, or two are -1; in forward, the number of entries
        differs.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Reshape(3, -1)(np.zeros((5, 12))).shape
    (5, 3, 4)
    """

    complex_gradients = True

    def __init__(self, *shape: int) -> None:
        if shape.count(-1) > 1:
            msg = f"only one size of a shape can be -1, got {shape}"
            raise InputError(msg)
        self.shape = tuple(s if s == -1 else integer("a size", s, least=1) for s in shape)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.namespace(x)
        fixed = math.prod(size for size in self.shape if size != -1)
        entries = math.prod(x.shape[1:])
        if x.ndim == 0 or (entries % fixed if -1 in self.shape else entries != fixed):
            msg = f"{self} cannot make samples of that shape of an input {tuple(x.shape)}"
            raise InputError(msg)
        sizes = (entries // fixed if size == -1 else size for size in self.shape)

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, shape)
            return xp.reshape(dy, x.shape)

        y = xp.reshape(x, (-1, *sizes))  # any number of samples
        shape = y.shape
        return y, backward

    def options(self) -> str:
        return ", ".join(map(str, self.shape))


class Permute(Layer):
    """Axes in another order: axis i of y is axis ``axes[i]`` of x; backward puts them back.

    Parameters
    ----------
    *axes : int
        All axes, as in ``torch.permute``; the first is 0, the batch axis.

    Raises
    ------
    InputError
        They are not 0 followed by a permutation of the others; in forward, x has more or fewer
        axes.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.Permute(0, 2, 1)(np.zeros((2, 3, 4))).shape
    (2, 4, 3)
    """

    complex_gradients = True

    def __init__(self, *axes: int) -> None:
        axes = tuple(integer("an axis", axis, least=0) for axis in axes)
        if not axes or axes[0] != 0 or sorted(axes) != list(range(len(axes))):
            msg = f"axes must be 0, that of the samples, and then 1, 2, … in any order, got {axes}"
            raise InputError(msg)
        self.axes = axes

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, axes = self.namespace(x), self.axes
        if x.ndim != len(axes):
            msg = f"{self} expects input of {len(axes)} axes, got shape {tuple(x.shape)}"
            raise InputError(msg)
        back = tuple(sorted(range(len(axes)), key=axes.__getitem__))

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, shape)
            return xp.permute_dims(dy, back)

        y = xp.permute_dims(x, axes)
        shape = y.shape
        return y, backward

    def options(self) -> str:
        return ", ".join(map(str, self.axes))
