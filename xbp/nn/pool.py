"""Max and average pooling."""

from __future__ import annotations

from typing import Any, ClassVar

from xbp.arguments import integer
from xbp.errors import InputError
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.windowed import Size, Windowed, check_images, described
from xbp.primitives.pooling import average_pool, max_pool
from xbp.primitives.resampling import adaptive_average_pool
from xbp.primitives.signals import average_pool1d, max_pool1d


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

    ∂L/∂x sums ∂L/∂y over the windows in which the entry is the largest, of equal ones the first in
    row-major order, as in PyTorch.

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

    ∂L/∂x is 1/(kh·kw) of the sum of ∂L/∂y over the windows that contain the entry.

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

    complex_gradients = True

    primitive = average_pool


class MaxPool1d(_Pool):
    """y[n, c, s] = max_j x[n, c, s·stride + j]: a `MaxPool2d` of one row, with its rules.

    Parameters
    ----------
    kernel_size : int
    stride : int, optional
        None is `kernel_size`: windows side by side. Smaller ones overlap.
    padding : int, default 0
        With -∞, on both sides; at most half of `kernel_size`.

    Notes
    -----
    Input (N, C, L), output (N, C, OL) with OL = ⌊(L + 2·padding - k)/stride⌋ + 1.

    Raises
    ------
    InputError
        For sizes out of range, and in forward for input that is not 3-D or too short.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.MaxPool1d(2)(np.array([[[1.0, 2.0, 4.0, 3.0]]])).tolist()
    [[[2.0, 4.0]]]
    """

    axes = 1
    primitive = max_pool1d


class AvgPool1d(_Pool):
    """y[n, c, s] = 1/k Σ_j x[n, c, s·stride + j]: an `AvgPool2d` of one row.

    Parameters
    ----------
    kernel_size : int
    stride : int, optional
        None is `kernel_size`: windows side by side. Smaller ones overlap.
    padding : int, default 0
        With zeros, which count in the average (PyTorch's default); at most half of `kernel_size`.

    Notes
    -----
    Input (N, C, L), output (N, C, OL) with OL = ⌊(L + 2·padding - k)/stride⌋ + 1.

    Raises
    ------
    InputError
        For sizes out of range, and in forward for input that is not 3-D or too short.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.AvgPool1d(2)(np.array([[[1.0, 2.0, 4.0, 3.0]]])).tolist()
    [[[1.5, 3.5]]]
    """

    complex_gradients = True

    axes = 1
    primitive = average_pool1d


class AdaptiveAvgPool2d(OperationLayer):
    """y[n, c, r, s] = mean of x[n, c, i, j] over ⌊rH/OH⌋ ≤ i < ⌈(r+1)H/OH⌉, and so for j.

    The output's size is given, not that of the windows, which are as equal as possible. ∂L/∂x sums
    ∂L/∂y, divided by the window's size, over the windows that contain the entry.

    Parameters
    ----------
    output_size : int, None, or (height, width) of these
        None leaves that size as it is; 1 is the mean of each channel.

    Notes
    -----
    Input (N, C, H, W), output (N, C, OH, OW). In ``AdaptiveAvgPool2d(3)`` of a row of 5, windows
    share an entry: 0–1, 1–3, 3–4.

    Raises
    ------
    InputError
        For sizes out of range, and in forward for input that is not 4-D or has no pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.AdaptiveAvgPool2d((1, 3))(np.array([[[[1.0, 3.0, 5.0, 7.0, 9.0]]]])).tolist()
    [[[[2.0, 5.0, 8.0]]]]
    """

    complex_gradients = True

    def __init__(self, output_size: int | tuple[int | None, int | None] | None) -> None:
        values = output_size if isinstance(output_size, tuple | list) else (output_size,) * 2
        if len(values) != 2:
            msg = f"output_size must be an integer or a pair (height, width), got {output_size!r}"
            raise InputError(msg)
        height, width = values
        self.output_size = (_size_or_none(height), _size_or_none(width))

    def operation(self) -> Operation:
        return Operation(adaptive_average_pool, options={"output_size": self.output_size})

    def output_shape(self, shape: Shape) -> Shape:
        check_images(self, shape, 2)
        if min(shape[2:]) < 1:
            raise InputError(f"{self} has nothing to average in {described(shape)}")
        sizes = zip(shape[2:], self.output_size, strict=True)
        return (*shape[:2], *(old if new is None else new for old, new in sizes))

    def options(self) -> str:
        return f"output_size={self.output_size}"


def _size_or_none(value: int | None) -> int | None:
    return None if value is None else integer("output_size", value, least=1)
