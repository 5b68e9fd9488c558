"""Test-time augmentation: the mean of a model's outputs over views of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xbp.arguments import described, integer
from xbp.backend import Array, array_namespace
from xbp.data.augment import padded
from xbp.errors import InputError
from xbp.nested import first_of, tree_map


def over_views(
    model: Callable[[Any], Any], *, mirror: bool = False, shift: int = 0
) -> Callable[[Any], Any]:
    """A function that gives the mean of the model's outputs over views of its images.

    Parameters
    ----------
    model : callable
    mirror : bool, default False
        Whether each view is joined by its mirror image, x[..., ::-1]: Krizhevsky et al. 2012,
        section 4.1.
    shift : int, default 0
        With s > 0 the image has half the weight, and the two that are moved by s pixels up and
        left, and down and right, have a quarter each (Jordan 2024, section 3.6). The border is
        reflected.

    Returns
    -------
    callable
        Takes images (N, C, H, W). Without any view but the image itself it is the model.

    Raises
    ------
    InputError
        The shift is negative; later, if the input is no image, or not larger than the shift.
    """
    shift = integer("shift", shift, least=0)
    if not (mirror or shift):
        return model

    def mean(x: Any) -> Any:
        _check(x, shift)
        xp = array_namespace(first_of(x))
        views = [(1.0, x)]
        if shift:
            views = [(0.5, x), (0.25, moved(x, shift)), (0.25, moved(x, -shift))]
        if mirror:
            views = [
                (0.5 * part, image)
                for part, view in views
                for image in (view, xp.flip(view, axis=3))
            ]
        total = None
        for part, view in views:
            output = tree_map(lambda a, part=part: part * a, model(view))
            total = output if total is None else tree_map(lambda a, b: a + b, total, output)
        return total

    return mean


def moved(x: Array, shift: int) -> Array:
    """Images (N, C, H, W) moved up and left by `shift` pixels; negative: down and right.

    ``moved(x, s)[..., i, j]`` is ``x[..., i + s, j + s]``, where an index beyond the border is
    reflected at the outermost pixel.
    """
    xp, size = array_namespace(x), abs(shift)
    height, width = x.shape[2:]
    for axis in (2, 3):
        x = padded(xp, x, axis, size, "reflect")
    first = size + shift
    return x[:, :, first : first + height, first : first + width]


def _check(x: Any, shift: int) -> None:
    """Refuse what has no views."""
    if isinstance(x, tuple) or x.ndim != 4:
        msg = f"mirror and shift need images (N, C, H, W), got {described(x)}"
        raise InputError(msg)
    if min(x.shape[2:]) <= shift:
        msg = f"shift must be less than height and width, got {shift} for {described(x)}"
        raise InputError(msg)
