"""Running statistics: updated without training, or protected from updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xbp.backend import Array, array_namespace, on_device_of
from xbp.nn.backward import Rng, for_parameters, run_forward
from xbp.nn.batch_norm import BatchNorm
from xbp.nn.layer import Layer
from xbp.parallel.groups import Group


def update_statistics(model: Layer, x: Array, *, rng: Rng = None) -> None:
    """Update the running statistics of `model` as a training step on `x` does, and nothing else.

    The backward updates running statistics (see `Buffer`). This function runs forward and backward
    in training mode, with ∂L/∂y = 0, and restores all gradients. The equivalent in PyTorch is
    ``model.train()`` and ``model(x)`` under ``torch.no_grad()``.

    Parameters
    ----------
    model : Layer
        Without a `Buffer` nothing changes.
    x : array
        One batch, on the model's device.
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


def pool_statistics(model: Layer, group: Group | None) -> None:
    """Let batch norm, in training, normalize by the batch of all processes of `group`.

    Each process then computes with its share of a batch what one would compute with the whole:
    outputs, gradients and running statistics. Its sums travel in the forward and in the backward,
    so all processes have to run both, in the same order, also one whose share has no rows.
    Inference stays as it is.

    Parameters
    ----------
    model : Layer
        Without batch norm there is nothing to do.
    group : Group or None
        See `xbp.parallel.group`. None makes each process normalize by its own rows again.

    Examples
    --------
    >>> from xbp import nn, parallel
    >>> model = nn.Sequential(nn.Linear(4, 3, rng=0), nn.BatchNorm1d(3))
    >>> pool_statistics(model, parallel.group("alone"))
    >>> model[1].group
    Alone(rank=0, size=1)
    """
    for layer in model.tree():
        if isinstance(layer, BatchNorm):
            layer.group = group


@contextmanager
def pooled(model: Layer, group: Group | None) -> Iterator[None]:
    """A context of `pool_statistics`, which restores the groups of all layers at its end."""
    layers = [layer for layer in model.tree() if isinstance(layer, BatchNorm)]
    before = [layer.group for layer in layers]
    pool_statistics(model, group)
    try:
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.group = earlier


def _zeros(y: Any) -> Any:
    """∂L/∂y = 0 for one output or a tuple of outputs."""
    if isinstance(y, tuple):
        return tuple(map(_zeros, y))
    with on_device_of(y):
        return array_namespace(y).zeros_like(y)


def _copy(array: Array) -> Array:
    with on_device_of(array):
        return array_namespace(array).asarray(array, copy=True)


@contextmanager
def buffers_kept(model: Layer) -> Iterator[None]:
    """A context that restores the buffers of `model` at its end."""
    buffers = [buffer for _, buffer in model.named_buffers()]
    saved = [_copy(buffer.data) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.assign(value)
