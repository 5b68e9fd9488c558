"""Base of convolution and pooling: a window that moves over an image or a signal."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from xbp.arguments import choice, sizes
from xbp.errors import InputError
from xbp.nn.layer import Layer
from xbp.nn.operation import Shape
from xbp.primitives.images import Padding, Pair, output_size

Size: TypeAlias = "int | tuple[int, ...]"


class Windowed(Layer):
    """A layer that looks at its input through a moving window.

    Images are (N, C, H, W). Signals (N, C, L) are images of one row, for subclasses with
    ``axes = 1``.

    Parameters
    ----------
    kernel_size, stride, dilation : int or (height, width)
    padding : int, (height, width), "valid" or "same"
        "valid" means 0. "same" keeps the size, and requires a stride of 1; if the total padding is
        odd, the larger half goes below, or to the right, as in PyTorch.

    Attributes
    ----------
    kernel_size, stride, dilation : tuple of int
        One number per axis.
    padding : tuple of int, or str as given
    """

    axes: ClassVar[int] = 2

    def __init__(self, kernel_size: Size, stride: Size, padding: Size | str) -> None:
        self.kernel_size = self.sizes("kernel_size", kernel_size)
        self.stride = self.sizes("stride", stride)
        self.dilation = (1,) * self.axes
        if isinstance(padding, str):
            self.padding: tuple[int, ...] | str = choice("padding", padding, ("valid", "same"))
            if padding == "same" and self.stride != (1,) * self.axes:
                msg = f'padding="same" takes a stride of 1, got stride={stride}'
                raise InputError(msg)
        else:
            self.padding = self.sizes("padding", padding, least=0)

    def sizes(self, name: str, value: Any, least: int = 1) -> tuple[int, ...]:
        """A tuple with one integer per axis, from such a tuple or from an int for all axes."""
        return sizes(name, value, axes=self.axes, least=least)

    def window(self) -> tuple[Pair, Pair, Padding, Pair]:
        """Kernel, stride, padding and dilation for images; a signal is an image of one row."""
        padding: Any = self.padding
        if isinstance(padding, str):
            padding = self._named_padding()
        window: Any = self.kernel_size, self.stride, padding, self.dilation
        if self.axes == 2:
            return window  # type: ignore[no-any-return]
        kernel, stride, _, dilation = window
        return (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)

    def _named_padding(self) -> tuple[int | Pair, ...]:
        if self.padding == "valid":
            return (0,) * self.axes
        whole = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return tuple((it // 2, it - it // 2) if it % 2 else it // 2 for it in whole)

    def output_size(self, shape: Shape, channels: int | None = None) -> tuple[int, ...]:
        """Height and width of the output, or its length, for an input of this shape.

        Raises
        ------
        InputError
            The shape has another number of axes or channels, or is smaller than the window.
        """
        axes = self.axes
        check_images(self, shape, axes, channels)
        height, width = shape[2:] if axes == 2 else (1, shape[2])
        size = output_size((height, width), *self.window())
        if size[0] < 1 or size[1] < 1:
            raise InputError(f"{self} does not fit into {described(shape)}")
        return size if axes == 2 else size[1:]

    def options(self) -> str:
        padding = repr(self.padding)
        more = f", dilation={self.dilation}" if max(self.dilation) > 1 else ""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={padding}{more}"


def check_images(layer: Layer, shape: Shape, axes: int, channels: int | None = None) -> None:
    """Refuse a shape that is not (N, C, H, W), or (N, C, L) where `axes` is 1.

    Raises
    ------
    InputError
    """
    if len(shape) != 2 + axes or channels not in (None, shape[1]):
        c = "C" if channels is None else channels
        expected = f"images of shape (N, {c}, H, W)" if axes == 2 else f"signals (N, {c}, L)"
        msg = f"{layer} expects {expected}, got shape {tuple(shape)}"
        raise InputError(msg)


def described(shape: Shape) -> str:
    """An input of this shape, in the words of a message."""
    if len(shape) == 4:
        return f"images of {shape[2]} × {shape[3]} pixels"
    return f"signals of length {shape[2]}"
