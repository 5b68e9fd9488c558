"""What convolution and pooling share: a window that moves over an image."""

from __future__ import annotations

from typing import TypeAlias

from xbp.arguments import pair
from xbp.errors import InputError
from xbp.nn.layer import Layer
from xbp.nn.operation import Shape
from xbp.primitives.images import output_size

Size: TypeAlias = "int | tuple[int, int]"


class Windowed(Layer):
    """A layer that looks at its input, (N, C, H, W), through a moving window.

    Parameters
    ----------
    kernel_size, stride, padding : int or (height, width)
    """

    def __init__(self, kernel_size: Size, stride: Size, padding: Size) -> None:
        self.kernel_size = pair("kernel_size", kernel_size, least=1)
        self.stride = pair("stride", stride, least=1)
        self.padding = pair("padding", padding, least=0)

    def output_size(self, shape: Shape, channels: int | None = None) -> tuple[int, int]:
        """Height and width of the output for an input of a shape.

        Raises
        ------
        InputError
            It is not 4-D, has not `channels` channels, or is smaller than the window.
        """
        if len(shape) != 4 or channels not in (None, shape[1]):
            expected = f"(N, {'C' if channels is None else channels}, H, W)"
            msg = f"{self} expects images of shape {expected}, got shape {tuple(shape)}"
            raise InputError(msg)
        size = output_size(shape[2:], self.kernel_size, self.stride, self.padding)
        if min(size) < 1:
            msg = f"{self} does not fit into images of {shape[2]} × {shape[3]} pixels"
            raise InputError(msg)
        return size

    def options(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
