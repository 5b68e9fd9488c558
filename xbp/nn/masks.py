"""Masks of padding: the ignored time steps of a batch of sequences."""

from __future__ import annotations

from xbp.backend import Array, array_namespace, check_beside, dtype_name
from xbp.errors import InputError
from xbp.nn.layer import Layer


def check_mask(layer: Layer, name: str, mask: Array, what: str, x: Array) -> None:
    """Refuse a mask that does not match the time steps of x (N, T, …).

    Parameters
    ----------
    layer : Layer
    name : str
        The name of the mask, for messages.
    mask : array
    what : str
        What `x` is, for messages.
    x : array (N, T, …)

    Raises
    ------
    InputError
    """
    check_beside(layer, f"a {name}", mask, f"the {what} is", x)
    boolean = array_namespace(mask).isdtype(mask.dtype, "bool")
    if not boolean or tuple(mask.shape) != tuple(x.shape[:2]):
        msg = (
            f"{layer} expects a {name} of shape {tuple(x.shape[:2])} and dtype bool, True where a "
            f"position is ignored, got shape {tuple(mask.shape)} and dtype {dtype_name(mask.dtype)}"
        )
        raise InputError(msg)
