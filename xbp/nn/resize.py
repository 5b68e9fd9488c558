"""Layers that change the size of images."""

from __future__ import annotations

from typing import Any

from xbp.arguments import choice, flag, pair, positive
from xbp.errors import InputError
from xbp.nn.operation import Operation, OperationLayer, Shape
from xbp.nn.windowed import check_images, described
from xbp.primitives.images import zero_pad
from xbp.primitives.resampling import scaled, upsample


class Upsample(OperationLayer):
    """Resizes images: to the nearest pixel, or to a weighted mean of the four pixels around.

    Row r of the output lies at position u of the input, and columns likewise:
    y[r] = (1 - λ) x[⌊u⌋] + λ x[⌊u⌋ + 1] with λ = u - ⌊u⌋. With ρ = H/OH, or 1/scale_factor if that
    is given,

        nearest:   u = ⌊ρ r⌋,
        bilinear:  u = max(ρ (r + ½) - ½, 0), or (H - 1)/(OH - 1) r with aligned corners.

    ∂L/∂x is a sum of ∂L/∂y with the same weights.

    Parameters
    ----------
    size : int or (height, width), optional
        The size of the output.
    scale_factor : float or (height, width), optional
        In place of `size`: the output has ⌊H·scale_factor⌋ rows.
    mode : "nearest" or "bilinear"
    align_corners : bool, optional
        For "bilinear" only: whether the centres of the corner pixels of x and y coincide; with
        False, the default, their outer edges do.

    Notes
    -----
    Input (N, C, H, W), output (N, C, OH, OW).

    Raises
    ------
    InputError
        In the constructor unless exactly one of `size` and `scale_factor` is given, and for values
        out of range; in forward for input that is not 4-D, or an output without pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> x = np.array([[[[1.0, 2.0]]]])
    >>> nn.Upsample((1, 4))(x).tolist()
    [[[[1.0, 1.0, 2.0, 2.0]]]]
    >>> nn.Upsample((1, 4), mode="bilinear")(x).tolist()
    [[[[1.0, 1.25, 1.75, 2.0]]]]
    """

    complex_gradients = True

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        if (size is None) == (scale_factor is None):
            msg = f"give one of size and scale_factor, got size={size}, scale_factor={scale_factor}"
            raise InputError(msg)
        self.size = None if size is None else pair("size", size, least=1)
        self.scale_factor = None if scale_factor is None else _factors(scale_factor)
        self.mode = choice("mode", mode, ("nearest", "bilinear"))
        if mode == "nearest" and align_corners is not None:
            msg = f'align_corners is of mode="bilinear", got {align_corners!r} with mode="nearest"'
            raise InputError(msg)
        self.align_corners = (
            False if align_corners is None else flag("align_corners", align_corners)
        )

    def operation(self) -> Operation:
        options = {"size": self.size, "scale_factor": self.scale_factor, "mode": self.mode}
        return Operation(upsample, options=options | {"align_corners": self.align_corners})

    def output_shape(self, shape: Shape) -> Shape:
        check_images(self, shape, 2)
        size = self.size
        if self.scale_factor is not None:
            size = scaled((shape[2], shape[3]), self.scale_factor)
        assert size is not None
        if min(*size, *shape[2:]) < 1:
            raise InputError(f"{self} makes no pixels of {described(shape)}")
        return (*shape[:2], *size)

    def options(self) -> str:
        size = f"size={self.size}" if self.size else f"scale_factor={self.scale_factor}"
        corners = f", align_corners={self.align_corners}" if self.mode == "bilinear" else ""
        return f"{size}, mode={self.mode!r}{corners}"


def _factors(value: Any) -> tuple[float, float]:
    """A positive number or a pair of them, as a pair."""
    values = value if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        msg = f"scale_factor must be a number or a pair (height, width), got {value!r}"
        raise InputError(msg)
    return positive("scale_factor", values[0]), positive("scale_factor", values[1])


class ZeroPad2d(OperationLayer):
    """Pads images with zeros; ∂L/∂x is ∂L/∂y without the padding.

    Parameters
    ----------
    padding : int or (left, right, top, bottom)
        In PyTorch's order. Negative numbers crop.

    Notes
    -----
    Input (N, C, H, W), output (N, C, top + H + bottom, left + W + right).

    Raises
    ------
    InputError
        In the constructor for a padding of another form; in forward for input that is not 4-D, or
        an output without pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> nn.ZeroPad2d((1, 0, 0, 1))(np.array([[[[1.0, 2.0]]]])).tolist()
    [[[[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]]]
    """

    complex_gradients = True

    def __init__(self, padding: int | tuple[int, int, int, int]) -> None:
        values = padding if isinstance(padding, tuple | list) else (padding,) * 4
        if len(values) != 4 or any(type(each) is not int for each in values):
            msg = f"padding must be an integer or (left, right, top, bottom), got {padding!r}"
            raise InputError(msg)
        self.padding = tuple(values)

    def operation(self) -> Operation:
        left, right, top, bottom = self.padding
        return Operation(zero_pad, options={"padding": ((top, bottom), (left, right))})

    def output_shape(self, shape: Shape) -> Shape:
        check_images(self, shape, 2)
        left, right, top, bottom = self.padding
        cut = [min(side, 0) for side in self.padding]
        if shape[2] + cut[2] + cut[3] < 1 or shape[3] + cut[0] + cut[1] < 1:
            raise InputError(f"{self} leaves nothing of {described(shape)}")
        return (*shape[:2], top + shape[2] + bottom, left + shape[3] + right)

    def options(self) -> str:
        return f"padding={self.padding}"
