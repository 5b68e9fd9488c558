"""Gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

from xbp.arguments import number
from xbp.backend import Array, array_namespace, check_beside, on_device_of
from xbp.errors import InputError
from xbp.nn.parameter import Parameter


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> Array:
    """g ← min(1, max_norm / (‖g‖ + 10⁻⁶)) · g, with all gradients as one vector g.

    Pascanu et al. 2013, algorithm 1, against exploding gradients in backpropagation through time;
    the 10⁻⁶ is PyTorch's, so that results equal those of clip_grad_norm_. Call it between the
    backward and the optimizer's step.

    Parameters
    ----------
    parameters : iterable of Parameter
        All on one device. Those without a gradient are ignored.
    max_norm : float
        At least 0.

    Returns
    -------
    norm : array, 0-d
        ‖g‖ before clipping, on the device. If it is nan, all gradients become nan.

    Raises
    ------
    InputError
        No parameter has a gradient, or max_norm is out of range.
    BackendError
        Gradients and parameters are not all on one device.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.zeros(2))
    >>> p.add_grad(np.array([30.0, 40.0]))
    >>> float(optim.clip_grad_norm([p], max_norm=1.0)), p.grad.round(6).tolist()
    (50.0, [0.6, 0.8])
    """
    max_norm = number("max_norm", max_norm, least=0)
    owned = _owned("clip_grad_norm", parameters)
    first = owned[0][1]
    xp = array_namespace(first)
    with on_device_of(first):
        norm = xp.sqrt(sum(xp.sum(g * g) for _, g in owned))
        scale = xp.minimum(max_norm / (norm + 1e-6), 1.0)
        for p, g in owned:
            p.grad = xp.astype(scale, g.dtype) * g  # a new array, as g may be a view
    return norm


def clip_grad_value(parameters: Iterable[Parameter], value: float) -> None:
    """Gradients g ← min(max(g, -value), value), entry by entry; nan stays nan.

    PyTorch's clip_grad_value_. Call it between the backward and the optimizer's step.

    Parameters
    ----------
    parameters : iterable of Parameter
        All on one device. Those without a gradient are ignored.
    value : float
        At least 0.

    Raises
    ------
    InputError
        No parameter has a gradient, or `value` is out of range.
    BackendError
        Gradients and parameters are not all on one device.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn, optim
    >>> p = nn.Parameter(np.zeros(3))
    >>> p.add_grad(np.array([30.0, -40.0, 0.5]))
    >>> optim.clip_grad_value([p], 1.0)
    >>> p.grad.tolist()
    [1.0, -1.0, 0.5]
    """
    value = number("value", value, least=0)
    owned = _owned("clip_grad_value", parameters)
    xp = array_namespace(owned[0][1])
    with on_device_of(owned[0][1]):
        for p, g in owned:  # xp.clip would be a host wait in CuPy
            p.grad = xp.minimum(xp.maximum(g, -value), value)


def _owned(who: str, parameters: Iterable[Parameter]) -> list[tuple[Parameter, Array]]:
    """The parameters that have a gradient, and it; all on one device."""
    owned = [(p, p.grad) for p in parameters if p.grad is not None]
    if not owned:
        msg = "no parameter has a gradient to clip; run a backward first"
        raise InputError(msg)
    first = owned[0][1]
    for p, g in owned:
        check_beside(who, "a gradient", g, "the first one is", first)
        check_beside(who, "a gradient", g, "its parameter is", p.data)
    return owned
