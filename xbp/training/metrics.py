"""Metrics: functions ``(prediction, target) -> 0-d array``, a batch mean, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xbp.backend import Array, array_namespace, dtype_name
from xbp.errors import InputError

Metric: TypeAlias = Callable[[Array, Array], Array]


def accuracy(prediction: Array, target: Array) -> Array:
    """The share of samples whose largest output is at the target; the first one among equals.

    Parameters
    ----------
    prediction : array (N, C)
        Logits or probabilities.
    target : array (N,) of integers, or (N, C)
        Labels; or probabilities, whose largest one then is the label.

    Raises
    ------
    InputError
        The shapes do not fit; or C = 1, where the largest output says nothing: see
        `binary_accuracy`.

    Examples
    --------
    >>> import numpy as np
    >>> float(accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    0.5
    """
    xp = array_namespace(prediction)
    if prediction.ndim != 2 or target.ndim not in (1, 2) or len_of(target) != len_of(prediction):
        msg = (
            f"accuracy needs outputs (N, C) and labels (N,) or probabilities (N, C), "
            f"got shapes {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
        raise InputError(msg)
    if prediction.shape[1] == 1:
        msg = "accuracy needs outputs for two classes or more; for a single one use binary_accuracy"
        raise InputError(msg)
    labels = target if target.ndim == 1 else xp.argmax(target, axis=1)
    if not xp.isdtype(labels.dtype, "integral"):
        msg = f"accuracy needs integer labels, got {dtype_name(labels.dtype)}"
        raise InputError(msg)
    right = xp.argmax(prediction, axis=1) == xp.astype(labels, xp.int64)
    return xp.mean(xp.astype(right, xp.float64))  # so that counts stay exact in epoch averages


def binary_accuracy(prediction: Array, target: Array, threshold: float = 0.0) -> Array:
    """The share of entries that are above the threshold where the target is 1, and only there.

    Parameters
    ----------
    prediction : array
        Logits; or probabilities, with ``threshold=0.5``.
    target : array of the same shape
        0 or 1; any other value counts as missed.
    threshold : float, default 0
        An entry that equals it counts as class 0. The logit 0 is the probability ½.

    Notes
    -----
    For logits, ``Trainer(…, metrics=[binary_accuracy])``. For the output of a Sigmoid layer fix
    the threshold in a function of your own: above 0 such outputs always are.

    Raises
    ------
    InputError
        The shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> float(binary_accuracy(np.array([[2.0], [-1.0]]), np.array([[1], [1]])))
    0.5
    """
    xp = array_namespace(prediction)
    if prediction.shape != target.shape:
        msg = (
            f"binary_accuracy needs targets of the prediction's shape {tuple(prediction.shape)}, "
            f"got {tuple(target.shape)}"
        )
        raise InputError(msg)
    right = xp.astype(prediction > threshold, xp.float64) == xp.astype(target, xp.float64)
    return xp.mean(xp.astype(right, xp.float64))  # as in accuracy


METRICS: dict[str, Metric] = {"accuracy": accuracy}
"""The metrics that `Trainer` knows by name.

`binary_accuracy` is not among them: a name does not say whether outputs are logits.
"""


def find_metric(metric: str | Metric) -> tuple[str, Metric]:
    """(name, function) of a metric given by name or as a function."""
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric not in METRICS:
        msg = f"there is no metric {metric!r}; give a function or one of {', '.join(METRICS)}"
        raise InputError(msg)
    return metric, METRICS[metric]


def len_of(array: Array) -> int:
    """The length of the first axis: how many samples there are."""
    return int(array.shape[0])
