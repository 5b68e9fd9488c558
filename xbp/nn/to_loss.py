"""A model and its loss as one operation, for a caller that knows both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xbp import registry
from xbp.backend import Array, library_of, on_device_of, on_host
from xbp.nn.lender import give
from xbp.nn.losses import Loss
from xbp.nn.operation import OperationChain
from xbp.nn.sequential import is_sequential, plan_of
from xbp.primitives import chain_to_loss


def forward_to_loss(
    model: Any, loss: Any, x: Any, target: Any
) -> tuple[Array, Array, Callable[[], None]] | None:
    """The forward of a model in training and its loss, in one call of an accelerator.

    None where no accelerator has such a call, or where the model is not one chain of operations or
    the loss not one operation. Then ``model.forward(x, training=True)`` and ``loss(prediction,
    target)`` compute the same, one after the other.

    Parameters
    ----------
    model : Layer
    loss : Loss or callable
    x, target : array

    Returns
    -------
    prediction : array
    value : 0-d array
    backward : callable
        Adds to the gradients of all parameters; called at most once.
    """
    if registry.find(chain_to_loss.__name__, type(x)) is None:
        return None
    if not isinstance(loss, Loss) or not is_sequential(model) or library_of(x) is None:
        return None
    parts = plan_of(model).parts
    beside = type(target) is type(x) and target.device == x.device
    if len(parts) != 1 or not isinstance(parts[0], OperationChain) or not beside:
        return None
    with on_device_of(x):
        return _run(parts[0], loss, x, target)


def _run(
    model: OperationChain, loss: Loss, x: Array, target: Array
) -> tuple[Array, Array, Callable[[], None]] | None:
    arrays = model.lent(x, training=True)[1]
    last = loss.operation(model.output_shape(x.shape), target)
    if last is None:
        return None
    y, value, gradients = chain_to_loss(x, model.operations[True], arrays, last, target)
    if on_host(value) and math.isnan(value):
        loss(y, target)  # its call says which targets are wrong
    receivers = model.lenders[True].receivers()
    return y, value, lambda: give(receivers, gradients())
