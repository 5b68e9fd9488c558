"""A chain of operations and a loss as one call: mathematically the loss is the last operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from xbp.backend import Array
from xbp.primitives.chain import Arrays, Operation, chain
from xbp.primitives.dispatch import primitive

OfParameters: TypeAlias = "Callable[[], Sequence[Array | None]]"
"""Gives the parameters' gradients, those of the last operation first."""


@primitive
def chain_to_loss(
    x: Array,
    operations: Sequence[Operation],
    parameters: Sequence[Arrays],
    loss: Operation,
    target: Array,
) -> tuple[Array, Array, OfParameters]:
    """y = f_n(… f_1(x)), L(y, target), and ∂L/∂p of all parameters.

    Parameters
    ----------
    x, operations, parameters
        As for `chain`.
    loss : (primitive, options)
        ``value, gradient = primitive(y, target, **options)``, such as `cross_entropy`.
    target : array

    Returns
    -------
    y : array
    L : 0-d array
    gradients : callable
        Called once. An accelerator may have computed them already.
    """
    y, gradients = chain(x, operations, parameters)
    function, options = loss
    value, dy = function(y, target, **dict(options))
    return y, value, lambda: gradients(dy, False)[1:]
