"""Softmax and its logarithm, along one axis."""

from __future__ import annotations

from xbp.arguments import integer
from xbp.backend import Array
from xbp.errors import InputError
from xbp.nn.backward import Backward, Rng
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.primitives import softmax


class Softmax(OperationLayer):
    """y_i = e^{x_i} / Σ_j e^{x_j} along one axis.

    Its Jacobian is ∂y_i/∂x_j = y_i (δ_ij - y_j), so ∂L/∂x = y ∘ (dy - Σ_j y_j dy_j).
    The largest x is subtracted first, which changes nothing but keeps the exponentials finite.

    Parameters
    ----------
    axis : int, default -1

    Raises
    ------
    InputError
        The input has no such axis.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = integer("axis", axis, least=-64)

    def operation(self) -> Operation:
        return Operation(softmax, options={"axis": self.axis})

    def output_shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.axis < len(shape):
            msg = f"{self} got input of shape {tuple(shape)}, which has no axis {self.axis}"
            raise InputError(msg)
        return shape

    def options(self) -> str:
        return f"axis={self.axis}"


class LogSoftmax(Softmax):
    """y_i = x_i - log Σ_j e^{x_j} along one axis: the logarithm of `Softmax`.

    Its Jacobian is ∂y_i/∂x_j = δ_ij - e^{y_j}, so ∂L/∂x = dy - e^y Σ_j dy_j. Finite where Softmax
    has rounded to 0. For training, CrossEntropyLoss includes it.

    Parameters
    ----------
    axis : int, default -1

    Raises
    ------
    InputError
        The input has no such axis.
    """

    def forward(
        self, x: Array, *, training: bool = False, rng: Rng = None
    ) -> tuple[Array, Backward]:
        xp, axis = self.check_input(x), self.axis
        self.output_shape(x.shape)  # for its check of the axis
        shifted = x - xp.max(x, axis=axis, keepdims=True) if x.shape[axis] != 0 else x
        y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))

        def backward(dy: Array) -> Array:
            self.check_gradient(xp, dy, y.shape)
            return dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True)

        return y, backward
