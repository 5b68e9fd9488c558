"""Output units that measure the distance to a code for each class."""

from __future__ import annotations

from typing import Any

from xbp.backend import Array, asarray
from xbp.errors import InputError
from xbp.nn import Backward, Layer, Parameter
from xbp.nn.backward import Rng


class EuclideanRBF(Layer):
    """y_i = Σ_j (x_j - w_ij)², the squared distance of x to each of some fixed codes w_i.

    y_i is a penalty: up to a constant, -½ y_i is the log-likelihood of x under a unit Gaussian
    around w_i. The class with the least penalty is the answer.
    ∂L/∂x_j = 2 Σ_i (x_j - w_ij) ∂L/∂y_i.
    (LeCun, Bottou, Bengio & Haffner 1998, eq. 7.)

    Parameters
    ----------
    codes : array or nested sequence (classes, features)
        Not trainable: otherwise the codes and x would collapse into one point.
    dtype : dtype, default "float32"

    Attributes
    ----------
    codes : Parameter (classes, features)
        Moved, converted and saved with the layer, but not among its `parameters`.

    Notes
    -----
    Input (…, features), output (…, classes).

    Raises
    ------
    InputError
        The codes are no matrix; in forward, the input has another number of features or another
        dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp.models import lenet1998
    >>> layer = lenet1998.EuclideanRBF([[-1, 1], [1, 1]], dtype="float64")
    >>> y, backward = layer.forward(np.array([[-1.0, 0.0]]))
    >>> y.tolist(), backward(np.array([[1.0, 0.0]])).tolist(), layer.parameters()
    ([[1.0, 5.0]], [[0.0, -2.0]], [])
    """

    def __init__(self, codes: Any, *, dtype: Any = "float32") -> None:
        array = asarray(codes, dtype=dtype)
        if array.ndim != 2 or 0 in array.shape:
            msg = f"codes must have the shape (classes, features), got {tuple(array.shape)}"
            raise InputError(msg)
        self.codes = Parameter(array, trainable=False)

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp = self.check_input(x)
        w = self.codes.data
        if x.ndim == 0 or x.shape[-1] != w.shape[1]:
            msg = f"{self} expects input (…, {w.shape[1]}), got shape {tuple(x.shape)}"
            raise InputError(msg)
        away = xp.expand_dims(x, axis=-2) - w  # (…, classes, features)

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, away.shape[:-1])
            return 2 * xp.sum(away * xp.expand_dims(dy, axis=-1), axis=-2)

        return xp.sum(away * away, axis=-1), backward

    def options(self) -> str:
        classes, features = self.codes.shape
        return f"{classes} codes of {features}"
