"""Confusion matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import choice, integer
from xbp.backend import Array, array_namespace, to_numpy
from xbp.errors import InputError
from xbp.training.metrics.scores import NO_CLASS, ClassMetric


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> NDArray[np.int64]:
    """Count how often each class was predicted for each true class.

    Parameters
    ----------
    labels, predictions : arrays (N,) of integers, of any library
        True and predicted classes, from 0 to ``classes - 1``.
    classes : int
        C.

    Returns
    -------
    matrix : numpy.ndarray
        int64 (C, C), on the host: row = true class, column = predicted class. The diagonal counts
        correct predictions, and the sum of a row is the number of samples of a class.

    Raises
    ------
    InputError
        The shapes differ, or an entry is not an integer from 0 to ``classes - 1``.

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


class ConfusionMatrix(ClassMetric):
    """How often each class was predicted for each true class, counted on the device.

    It is no number, and so is missing in records. Call `compute` after an epoch or `evaluate`.

    Parameters
    ----------
    num_classes : int, optional
        C; by default as many as the first batch has outputs.
    normalize : {"true", "pred", "all"}, optional
        Return shares of each row (true class), of each column, or of all samples, in place of
        counts; 0 for an empty row or column. (scikit-learn's names.)
    threshold : float, optional
        For models with a single output: class 1 is predicted where the output is above it.
    ignore_index : int, optional
        The label that does not count, as in the loss.
    name : str, default "confusion_matrix"

    Notes
    -----
    ``update(prediction, target)`` takes outputs (N, C) and labels (N,), as a Trainer has them; or
    predicted and true labels (N,), with `num_classes`.

    Raises
    ------
    InputError
        An option is out of range; in `update`, the shapes or dtypes do not fit; in `compute`, a
        label is no class, or there were no samples.

    Examples
    --------
    >>> import numpy as np
    >>> metric = ConfusionMatrix(2)
    >>> metric.update(np.array([0, 1, 1]), np.array([0, 0, 1]))  # predicted, true
    >>> metric.compute().tolist()
    [[1, 1], [0, 1]]
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        normalize: str | None = None,
        threshold: float | None = None,
        ignore_index: int | None = None,
        name: str = "confusion_matrix",
    ) -> None:
        if normalize is not None:
            choice("normalize", normalize, ("true", "pred", "all"))
        self.normalize = normalize
        super().__init__(name, num_classes, threshold, ignore_index)

    def keys_of(self, true: Array, predicted: Array, valid: Array) -> Array:
        here = valid & (predicted != NO_CLASS)
        return array_namespace(true).where(here, true * self.classes + predicted, -1)

    def names(self, prediction: Array) -> list[str]:
        return []

    def cells(self) -> int:
        return self.classes**2

    def compute(self) -> NDArray[Any]:
        """int64 (C, C), or float64 where normalized: row = true class, column = predicted class."""
        counts, ignored = self.cell_counts()
        matrix: NDArray[Any] = counts.reshape(self.classes, self.classes)
        self.check_all_counted(int(matrix.sum()) + ignored)
        if self.normalize is None:
            return matrix
        axis = {"true": 1, "pred": 0, "all": None}[self.normalize]
        totals = np.maximum(matrix.sum(axis=axis, keepdims=True), 1)
        return np.asarray(matrix / totals)

    def numbers(self) -> dict[str, float]:
        return {}
