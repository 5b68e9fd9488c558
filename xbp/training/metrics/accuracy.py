"""Accuracy by the largest output or the k largest."""

from __future__ import annotations

from xbp.arguments import integer
from xbp.backend import Array, array_namespace, check_beside, there
from xbp.errors import InputError
from xbp.nn.classes import by_rows, label
from xbp.nn.losses import advice
from xbp.training.metrics.counting import CountingMetric, guesses, labels_of, within

SINGLE = "use binary_accuracy"


@there
def accuracy(prediction: Array, target: Array) -> Array:
    """The share of samples whose largest output is that of the target; of equals the first counts.

    Parameters
    ----------
    prediction : array (N, C), or (N, C, d1, …)
        Logits or probabilities. A row with nan is wrong.
    target : array (N,) or (N, d1, …) of integers, or of the shape of `prediction`
        Labels; or probabilities, whose largest one then is the label.

    Raises
    ------
    InputError
        The shapes do not fit; or C = 1, for which see `binary_accuracy`.

    Examples
    --------
    >>> import numpy as np
    >>> float(accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    0.5
    """
    check_beside("accuracy", "a prediction", prediction, "the target is", target)
    labels, xp = labels_of("accuracy", prediction, target, SINGLE), array_namespace(prediction)
    guess, is_one = guesses(prediction)
    right = (guess == labels) & is_one
    return xp.mean(xp.astype(right, xp.float64))  # exact in averages over an epoch


@there
def binary_accuracy(prediction: Array, target: Array, threshold: float = 0.0) -> Array:
    """The share of entries that are above the threshold exactly if the target is 1.

    Parameters
    ----------
    prediction : array
        Logits; or probabilities, with ``threshold=0.5``.
    target : array of the same shape
        0 or 1; any other value counts as wrong.
    threshold : float, default 0
        An entry equal to it counts as class 0, and nan as neither class. The logit 0 is the
        probability ½.

    Notes
    -----
    For logits, use ``Trainer(…, metrics=[binary_accuracy])``. The outputs of a Sigmoid layer are
    always above 0: for them, write a function with ``threshold=0.5``.

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
    check_beside("binary_accuracy", "a prediction", prediction, "the target is", target)
    xp = array_namespace(prediction)
    if prediction.shape != target.shape:
        msg = (
            f"binary_accuracy needs targets of the prediction's shape {tuple(prediction.shape)}, "
            f"got {tuple(target.shape)}{advice(tuple(prediction.shape), tuple(target.shape))}"
        )
        raise InputError(msg)
    right = xp.astype(prediction > threshold, xp.float64) == xp.astype(target, xp.float64)
    right = right & (prediction == prediction)  # nan is no class
    return xp.mean(xp.astype(right, xp.float64))  # as in accuracy


class TopKAccuracy(CountingMetric):
    """The share of samples whose target is among the k largest outputs.

    Of equal outputs the first ones count as larger, as for `accuracy`; so k = 1 is accuracy.
    (scikit-learn's ``top_k_accuracy_score`` prefers the last ones.) An output of nan counts as
    larger than all others, but never as right.

    Parameters
    ----------
    k : int, default 5
    name : str, optional
        In records; by default ``"top_5_accuracy"`` for k = 5.
    ignore_index : int, optional
        The label that does not count, as in the loss. Without any other label the result is nan.

    Notes
    -----
    ``update(prediction, target)`` takes outputs (N, C) and labels (N,), or outputs (N, C, d1, …)
    and labels (N, d1, …), counted one by one.

    Raises
    ------
    InputError
        k < 1; in `update`, the shapes do not fit, or there are no more than k outputs; in
        `compute`, a label is no class.

    Examples
    --------
    >>> import numpy as np
    >>> metric = TopKAccuracy(2)
    >>> metric.update(np.array([[0.1, 0.7, 0.2], [0.4, 0.5, 0.1]]), np.array([2, 2]))
    >>> metric.compute()
    0.5
    """

    def __init__(
        self, k: int = 5, *, name: str | None = None, ignore_index: int | None = None
    ) -> None:
        self.k = integer("k", k, least=1)
        self.ignore_index = None if ignore_index is None else label("ignore_index", ignore_index)
        super().__init__(name or f"top_{k}_accuracy")

    def keys(self, prediction: Array, target: Array) -> Array:
        """1 for right, 0 for wrong, 2 for an ignored label."""
        labels, xp = labels_of(self.name, prediction, target, SINGLE), array_namespace(prediction)
        self.classes = int(prediction.shape[1])
        if self.classes <= self.k:
            msg = f"{self.name} of {self.classes} outputs is always 1; choose a smaller k"
            raise InputError(msg)
        right = xp.astype(self.right(by_rows(prediction), labels), xp.int64)
        keys = xp.where(within(labels, self.classes), right, -1)
        return keys if self.ignore_index is None else xp.where(labels == self.ignore_index, 2, keys)

    def true_labels(self, prediction: Array, target: Array) -> Array:
        return labels_of(self.name, prediction, target, SINGLE, same_length=False)

    def right(self, prediction: Array, labels: Array) -> Array:
        xp = array_namespace(prediction)
        labels = xp.reshape(labels, (-1, 1))
        classes = xp.arange(self.classes, dtype=xp.int64, device=prediction.device)
        here = classes == labels
        own = xp.sum(xp.where(here, prediction, 0.0), axis=1, keepdims=True)
        ahead = ~(prediction <= own) | ((prediction == own) & (classes < labels))
        return xp.sum(xp.astype(ahead, xp.int64), axis=1) < self.k

    def size(self) -> int:
        return 2 if self.ignore_index is None else 3

    def compute(self) -> float:
        wrong, right, *ignored = self.counts().tolist()
        self.check_all_counted(wrong + right + sum(ignored))
        return right / (wrong + right) if wrong + right else float("nan")


class Accuracy(TopKAccuracy):
    """The share of samples whose largest output is that of the target; of equals the first counts.

    Counted exactly. A row with nan is wrong. This is the ``"accuracy"`` of a `Trainer`.

    Parameters
    ----------
    name : str, default "accuracy"
        In records.
    ignore_index : int, optional
        The label that does not count, as in the loss. Without any other label the result is nan.

    Raises
    ------
    InputError
        In `update`, the shapes do not fit, or there is a single output (see `binary_accuracy`); in
        `compute`, a label is no class.

    Examples
    --------
    >>> import numpy as np
    >>> metric = Accuracy()
    >>> metric.update(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    >>> metric.compute()
    0.5
    """

    def __init__(self, *, name: str = "accuracy", ignore_index: int | None = None) -> None:
        super().__init__(1, name=name, ignore_index=ignore_index)

    def right(self, prediction: Array, labels: Array) -> Array:
        guess, is_one = guesses(prediction)
        return (guess == labels) & is_one
