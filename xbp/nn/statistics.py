"""What layers keep beside their parameters, moved without training, or held still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xbp.backend import Array, array_namespace, on_device_of
from xbp.nn.backward import Rng, for_parameters, run_forward
from xbp.nn.layer import Layer


def update_statistics(model: Layer, x: Array, *, rng: Rng = None) -> None:
    """Move the statistics of `model` as a step of training on `x` does, and nothing else.

    Running statistics are moved by the backward (see `Buffer`). This runs forward and backward in
    training mode, for a ∂L/∂y of zeros, and leaves all gradients as they were. In PyTorch it is
    ``model.train()`` and ``model(x)`` under ``torch.no_grad()``.

    Parameters
    ----------
    model : Layer
        Without a `Buffer` there is nothing to do.
    x : array
        One batch, where the model lives; call it again for the next one.
    rng : int, numpy.random.Generator, xbp.random.RandomStream or None
        The source of random masks.

    Raises
    ------
    BackendError, InputError
        The model refuses `x`; nothing has changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from xbp import nn
    >>> layer = nn.BatchNorm1d(1, momentum=None, dtype="float64")  # an average of all batches
    >>> for x in ([[1.0], [3.0]], [[5.0], [7.0]]):
    ...     update_statistics(layer, np.array(x))
    >>> layer.running_mean.data.tolist(), layer.weight.grad
    ([4.0], None)
    """
    if next(model.named_buffers(), None) is None:
        return
    y, backward = run_forward(model, x, training=True, rng=rng)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.zero_grad()
        for_parameters(backward)(_zeros(y))
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _zeros(y: Any) -> Any:
    """∂L/∂y of an L that does not depend on y; a layer may have several outputs."""
    if isinstance(y, tuple):
        return tuple(map(_zeros, y))
    with on_device_of(y):
        return array_namespace(y).zeros_like(y)


def _copy(array: Array) -> Array:
    with on_device_of(array):
        return array_namespace(array).asarray(array, copy=True)


@contextmanager
def buffers_kept(model: Layer) -> Iterator[None]:
    """Within the block backwards may move the buffers of `model`; then they are as before."""
    buffers = [buffer for _, buffer in model.named_buffers()]
    saved = [_copy(buffer.data) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.assign(value)
