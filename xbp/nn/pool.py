"""Pooling: one number for each window of an image."""

from __future__ import annotations

from typing import Any, ClassVar

from xbp.errors import InputError
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.windowed import Size, Windowed
from xbp.primitives.pooling import average_pool, max_pool


class _Pool(Windowed, OperationLayer):
    """Windows that do not overlap unless `stride` says so; padding of at most half a window."""

    primitive: ClassVar[Any]
    padding: tuple[int, ...]

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        padding = self.sizes("padding", padding, least=0)
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            msg = f"padding {self.padding} is more than half of kernel_size {self.kernel_size}"
            raise InputError(msg)  # a window could lie in the padding altogether

    def operation(self) -> Operation:
        kernel, stride, padding, _ = self.window()
        window = {"kernel_size": kernel, "stride": stride, "padding": padding}
        return Operation(self.primitive, options=window)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape[:2], *self.output_size(shape))


class MaxPool2d(_Pool):
    """y[n, c, r, s] = max_ij x[n, c, r·stride + i, s·stride + j].

    The maximum is where the gradient goes: ∂L/∂x sums ∂L/∂y of all windows in which that entry is
    the largest. Among equals it is the first in row-major order, as in PyTorch.

    Parameters
    ----------
    kernel_size : int or (height, width)
    stride : int or (height, width), optional
        None is `kernel_size`: windows side by side. Smaller ones overlap.
    padding : int or (height, width), default 0
        With -∞, on both sides; at most half of `kernel_size`.

    Notes
    -----
    Input (N, C, H, W), output (N, C, OH, OW) with OH = ⌊(H + 2·padding - kh)/stride⌋ + 1.
    A window that holds a nan gives nan, and the last nan takes its gradient, as in PyTorch.

    Raises
    ------
    InputError
        For sizes out of range, and in forward for input that is not 4-D or too small.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> x = np.array([[[[1.0, 2.0], [4.0, 3.0]]]])
    >>> y, backward = nn.MaxPool2d(2).forward(x)
    >>> y.tolist(), backward(np.ones_like(y)).tolist()
    ([[[[4.0]]]], [[[[0.0, 0.0], [1.0, 0.0]]]])
    """

    primitive = max_pool


class AvgPool2d(_Pool):
    """y[n, c, r, s] = 1/(kh·kw) Σ_ij x[n, c, r·stride + i, s·stride + j].

    So each entry of x takes 1/(kh·kw) of ∂L/∂y of every window that holds it.

    Parameters
    ----------
    kernel_size : int or (height, width)
    stride : int or (height, width), optional
        None is `kernel_size`: windows side by side. Smaller ones overlap.
    padding : int or (height, width), default 0
        With zeros, which count in the average (PyTorch's default); at most half of `kernel_size`.

    Notes
    -----
    Input (N, C, H, W), output (N, C, OH, OW) with OH = ⌊(H + 2·padding - kh)/stride⌋ + 1.

    Raises
    ------
    InputError
        For sizes out of range, and in forward for input that is not 4-D or too small.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.AvgPool2d(2)(np.array([[[[1.0, 2.0], [4.0, 3.0]]]])).tolist()
    [[[[2.5]]]]
    """

    primitive = average_pool
