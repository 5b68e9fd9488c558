"""Precision, recall and F1, class by class or averaged, as scikit-learn computes and names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xbp.arguments import choice, integer, number
from xbp.backend import Array, array_namespace, dtype_name
from xbp.errors import InputError
from xbp.nn.classes import label
from xbp.training.metrics.counting import CountingMetric, guesses, labels_of, len_of, within

Counts = NDArray[np.int64]

AVERAGES = ("binary", "micro", "macro", "weighted")
NO_CLASS = -2
"""The prediction for a sample with an output of nan; -1 is an invalid label."""

FRACTION = -(2**63)
"""A label that is none, and that nobody ignores."""

SINGLE = "give threshold=0.0 for logits, 0.5 for probabilities"


class ClassMetric(CountingMetric):
    """A metric of true and predicted classes.

    Parameters
    ----------
    name : str
    num_classes : int, optional
        C; by default as many as the first batch has outputs.
    threshold : float, optional
        For models with a single output: class 1 is predicted where the output is above it.
    ignore_index : int, optional
        The label that does not count, as in the loss.
    """

    def __init__(
        self,
        name: str,
        num_classes: int | None = None,
        threshold: float | None = None,
        ignore_index: int | None = None,
    ) -> None:
        self.ignore_index = None if ignore_index is None else label("ignore_index", ignore_index)
        if num_classes is not None:
            num_classes = integer("num_classes", num_classes, least=2)
        self.threshold = None if threshold is None else number("threshold", threshold)
        if threshold is not None and num_classes not in (None, 2):
            msg = f"a threshold separates 2 classes, got num_classes={num_classes}; leave one out"
            raise InputError(msg)
        super().__init__(name, num_classes)

    def keys(self, prediction: Array, target: Array) -> Array:
        if self.threshold is not None:
            classes, (true, predicted) = 2, self._of_one_output(prediction, target)
        elif prediction.ndim == 1:
            classes, (true, predicted) = self.classes, self._of_labels(prediction, target)
        else:
            true = labels_of(self.name, prediction, target, SINGLE)
            classes = int(prediction.shape[1])
            guess, is_one = guesses(prediction)
            predicted = array_namespace(prediction).where(is_one, guess, NO_CLASS)
        if self.classes not in (0, classes):
            msg = f"{self.name} is for {self.classes} classes, but there are {classes} outputs"
            raise InputError(msg)
        self.classes = classes
        known = within(predicted, classes) | (predicted == NO_CLASS)
        valid = within(true, classes) & known
        if self.ignore_index is None:
            return self.keys_of(true, predicted, valid)
        xp, ignored = array_namespace(true), true == self.ignore_index
        keys = self.keys_of(true, predicted, valid & ~ignored)
        return xp.where(xp.tile(ignored, (self.keys_each,)), self.cells(), keys)

    def cells(self) -> int:
        """The number of keys of samples that count."""
        raise NotImplementedError

    def size(self) -> int:
        """One key more, the last, for samples with the ignored label."""
        return self.cells() + (self.ignore_index is not None)

    def cell_counts(self) -> tuple[Counts, int]:
        """The counts of the cells, and the number of samples that are ignored."""
        counts, cells = self.counts(), self.cells()
        return counts[:cells], int(counts[cells:].sum()) // self.keys_each

    def keys_of(self, true: Array, predicted: Array, valid: Array) -> Array:
        """The keys for `CountingMetric`; a sample with an output of nan has `NO_CLASS`."""
        raise NotImplementedError

    def true_labels(self, prediction: Array, target: Array) -> Array:
        if self.threshold is not None:
            return _binary(target)
        if prediction.ndim == 1:
            return array_namespace(target).astype(target, array_namespace(target).int64)
        return labels_of(self.name, prediction, target, SINGLE, same_length=False)

    def _of_one_output(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp, n = array_namespace(prediction), len_of(prediction)
        if not (_size(prediction) == _size(target) == len_of(target) == n):
            msg = (
                f"{self.name} with a threshold needs outputs and targets (N,) or (N, 1), "
                f"got shapes {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
            raise InputError(msg)
        prediction = xp.reshape(prediction, (n,))
        guess = xp.astype(prediction > self.threshold, xp.int64)
        return _binary(target), xp.where(prediction == prediction, guess, NO_CLASS)

    def _of_labels(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = array_namespace(prediction)
        for array in (prediction, target):
            if array.shape != prediction.shape or not xp.isdtype(array.dtype, "integral"):
                kind = dtype_name(array.dtype)
                msg = (
                    f"{self.name} needs outputs (N, C), or predicted and true labels (N,) of "
                    f"integers, got {kind} {tuple(array.shape)}; for a single output {SINGLE}"
                )
                raise InputError(msg)
        if not self.classes:
            msg = f"{self.name} of predicted labels needs to know how many classes: num_classes="
            raise InputError(msg)
        predicted = xp.astype(prediction, xp.int64)
        return xp.astype(target, xp.int64), xp.where(predicted < 0, -1, predicted)


class Score(ClassMetric):
    """Base of scores that are, for each class, a quotient of exact counts.

    Parameters
    ----------
    num_classes : int, optional
        C; by default as many as the first batch has outputs.
    average : {"macro", "micro", "weighted", "binary", None}, default "macro"
        The mean over classes; the score of all samples together; the mean weighted by the number of
        samples of each class; the score of class 1 of two; or None, an array with the score of each
        class (in records ``name_0``, ``name_1``, …).
    labels : sequence of int, optional
        The classes to average. By default those that occur in targets or predictions; for
        ``average=None`` all C. As in scikit-learn, ``labels=range(C)`` includes absent classes.
    zero_division : {0, 1, nan}, default 0
        The score of a class if it would be 0/0; classes with nan are left out of averages.
    threshold : float, optional
        For models with a single output: class 1 is predicted where the output is above it.
    ignore_index : int, optional
        The label that does not count, as in the loss.
    name : str, optional
        In records.

    Notes
    -----
    ``update(prediction, target)`` takes outputs (N, C) and labels (N,), as a Trainer has them; or
    predicted and true labels (N,), with `num_classes`. It never waits for the device, `compute`
    does once.

    Raises
    ------
    InputError
        An option is out of range; in `update`, the shapes or dtypes do not fit; in `compute`, a
        label is no class, or there were no samples.
    """

    kind: str

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        average: str | None = "macro",
        labels: Sequence[int] | None = None,
        zero_division: float = 0.0,
        threshold: float | None = None,
        ignore_index: int | None = None,
        name: str | None = None,
    ) -> None:
        self.average = None if average is None else choice("average", average, AVERAGES)
        if zero_division not in (0, 1) and not np.isnan(zero_division):
            msg = f"zero_division must be 0, 1 or nan, got {zero_division!r}"
            raise InputError(msg)
        self.zero_division = float(zero_division)
        self.labels = None if labels is None else [integer("labels", v, least=0) for v in labels]
        if self.labels is not None and (average == "binary" or not self.labels):
            msg = "labels must be at least one class, and none with average='binary', class 1's"
            raise InputError(msg)
        usual = self.kind if average in ("macro", None) else f"{self.kind}_{average}"
        super().__init__(name or usual, num_classes, threshold, ignore_index)

    def fraction(self, hits: Counts, predicted: Counts, true: Counts) -> tuple[Counts, Counts]:
        """Numerator and denominator.

        Parameters
        ----------
        hits, predicted, true : numpy arrays of int64
            For each class: its samples predicted as it, samples predicted as it, its samples.
        """
        raise NotImplementedError

    keys_each = 3

    def keys_of(self, true: Array, predicted: Array, valid: Array) -> Array:
        """Three keys for each sample: for the counters of hits, predictions and true classes."""
        xp, classes = array_namespace(true), self.classes
        hits = xp.where(true == predicted, true, -1)
        guessed = xp.where(predicted == NO_CLASS, -1, predicted + classes)
        keys = xp.stack([hits, guessed, true + 2 * classes])
        return xp.reshape(xp.where(valid, keys, -1), (-1,))

    def cells(self) -> int:
        return 3 * self.classes

    def compute(self) -> Any:
        counts, ignored = self.cell_counts()
        hits, predicted, true = counts.reshape(3, self.classes)
        self.check_all_counted(int(true.sum()) + ignored)
        chosen = self._chosen(predicted + true)
        hits, predicted, true = hits[chosen], predicted[chosen], true[chosen]
        if self.average == "micro":
            hits, predicted, true = (np.sum(n, keepdims=True) for n in (hits, predicted, true))
        above, below = self.fraction(hits, predicted, true)
        scores = np.full(len(below), self.zero_division)
        np.divide(above, below, out=scores, where=below > 0)
        if self.average is None:
            return scores
        defined = ~np.isnan(scores)
        scores, weights = scores[defined], true[defined]
        if not len(scores):
            return float("nan")
        weighted = self.average == "weighted" and weights.sum()
        return float(np.average(scores, weights=weights if weighted else None))

    def check(self, prediction: Array, target: Array) -> None:
        super().check(prediction, target)
        twin = self.fresh()
        twin.update(prediction[:1, ...], target[:1, ...])
        twin.compute()  # refuses an average or classes that do not fit such outputs

    def names(self, prediction: Array) -> list[str]:
        if self.average is not None:
            return [self.name]
        outputs = 2 if self.threshold is not None else prediction.shape[-1]
        return [f"{self.name}_{k}" for k in self.labels or range(self.num_classes or int(outputs))]

    def numbers(self) -> dict[str, float]:
        if self.average is not None:
            return super().numbers()
        scores = self.compute()
        shown = self.labels or range(self.classes)
        return {f"{self.name}_{k}": v for k, v in zip(shown, scores.tolist(), strict=True)}

    def _chosen(self, occurrences: Counts) -> Any:
        if self.average == "binary":
            if self.classes != 2:
                msg = (
                    f"average='binary' is for 2 classes, but there are {self.classes}; choose "
                    "'micro', 'macro', 'weighted' or None"
                )
                raise InputError(msg)
            return [1]
        if self.labels is not None:
            if max(self.labels) >= self.classes:
                msg = f"labels must be below {self.classes}, the classes; got {max(self.labels)}"
                raise InputError(msg)
            return self.labels
        return slice(None) if self.average is None else np.flatnonzero(occurrences)


class Precision(Score):
    """The share of the samples predicted as a class that belong to it: hits / predicted.

    Examples
    --------
    >>> import numpy as np
    >>> metric = Precision(3, average=None)
    >>> metric.update(np.array([0, 1, 1, 1]), np.array([0, 1, 2, 1]))  # predicted, true
    >>> metric.compute().round(3).tolist()
    [1.0, 0.667, 0.0]
    """

    kind = "precision"

    def fraction(self, hits: Counts, predicted: Counts, true: Counts) -> tuple[Counts, Counts]:
        return hits, predicted


class Recall(Score):
    """The share of the samples of a class that are predicted as it: hits / true.

    Examples
    --------
    >>> import numpy as np
    >>> metric = Recall(3, average=None)
    >>> metric.update(np.array([0, 1, 1, 1]), np.array([0, 1, 2, 1]))  # predicted, true
    >>> metric.compute().tolist()
    [1.0, 1.0, 0.0]
    """

    kind = "recall"

    def fraction(self, hits: Counts, predicted: Counts, true: Counts) -> tuple[Counts, Counts]:
        return hits, true


class F1Score(Score):
    """The harmonic mean of precision and recall: 2 hits / (predicted + true).

    Examples
    --------
    >>> import numpy as np
    >>> metric = F1Score(3, average=None)
    >>> metric.update(np.array([0, 1, 1, 1]), np.array([0, 1, 2, 1]))  # predicted, true
    >>> metric.compute().tolist()
    [1.0, 0.8, 0.0]
    """

    kind = "f1"

    def fraction(self, hits: Counts, predicted: Counts, true: Counts) -> tuple[Counts, Counts]:
        return 2 * hits, predicted + true


def _binary(target: Array) -> Array:
    """Targets (N,) or (N, 1) of any dtype as int64 (N,); `FRACTION` for fractions."""
    xp = array_namespace(target)
    target = xp.reshape(target, (-1,))
    true = xp.astype(target, xp.int64)
    if xp.isdtype(target.dtype, "real floating"):  # as losses take them; ½ is no class
        true = xp.where(xp.astype(true, target.dtype) == target, true, FRACTION)
    return true


def _size(array: Array) -> int:
    return int(np.prod(array.shape))
