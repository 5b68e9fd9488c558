"""Which classes are taken for which."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import integer
from xbp.backend import to_numpy
from xbp.errors import InputError


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> NDArray[np.int64]:
    """Count how often each class was taken for each.

    Parameters
    ----------
    labels, predictions : arrays (N,) of integers, of any library
        The true classes and the predicted ones, each from 0 to ``classes - 1``.
    classes : int
        C.

    Returns
    -------
    matrix : numpy.ndarray
        int64 (C, C), on the host: row = true class, column = predicted class. So the diagonal
        holds the correct ones, a row's sum the images of a class.

    Raises
    ------
    InputError
        The shapes differ, or something is not an integer from 0 to ``classes - 1``.

    Examples
    --------
    >>> import numpy as np
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    classes = integer("classes", classes, least=1)
    true = _checked("labels", labels, classes)
    predicted = _checked("predictions", predictions, classes)
    if true.shape != predicted.shape:
        msg = f"there are {true.size} labels but {predicted.size} predictions; give one for each"
        raise InputError(msg)
    cells = np.bincount(true * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64, copy=False)


def _checked(name: str, values: Any, classes: int) -> NDArray[np.int64]:
    array = to_numpy(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        msg = f"{name} must be integers (N,), got {array.dtype} of shape {array.shape}"
        raise InputError(msg)
    wrong = array[(array < 0) | (array >= classes)]
    if wrong.size:
        msg = f"{name} must be from 0 to {classes - 1} for {classes} classes, got {wrong[0]}"
        raise InputError(msg)
    return array.astype(np.int64)
