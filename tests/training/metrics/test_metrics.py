"""Metrics: counted by hand, against scikit-learn, on every backend."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY
from training.metrics.counted import (
    Batches,
    batches,
    every_metric,
    joined,
    measured,
)

import xbp
from xbp.testing import assert_no_host_sync
from xbp.training import (
    METRICS,
    Accuracy,
    ConfusionMatrix,
    F1Score,
    Precision,
    Recall,
    TopKAccuracy,
    accuracy,
    binary_accuracy,
)
from xbp.training.metrics import counting
from xbp.training.metrics.confusion import confusion_matrix


@pytest.fixture(autouse=True)
def _undefined_is_no_warning() -> Iterator[None]:
    with warnings.catch_warnings():  # scikit-learn's
        warnings.filterwarnings("ignore", ".*(ill-defined|not in|single label).*")
        yield


def test_metrics_are_those_of_scikit_learn_on_every_backend(backend: xbp.Backend) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    found = batches(7)
    outputs, true, predicted = joined(found)
    expected = {
        "accuracy": learn.accuracy_score(true, predicted),
        "top_5_accuracy": learn.top_k_accuracy_score(true, outputs, k=5),
        "precision": learn.precision_score(true, predicted, average="macro"),
        "recall": learn.recall_score(true, predicted, average="macro"),
        "f1": learn.f1_score(true, predicted, average="macro"),
    }
    # Counts are exact; scikit-learn's mean may add the scores in another order.
    values = {name: measured(make(), found) for name, make in METRICS.items()}
    assert values == pytest.approx(expected, rel=1e-15)
    assert (measured(ConfusionMatrix(), found) == learn.confusion_matrix(true, predicted)).all()


SCORES = {Precision: "precision_score", Recall: "recall_score", F1Score: "f1_score"}
CASES: dict[str, Batches] = {
    "all classes": batches(4),
    "absent classes": batches(5, absent=(1, 4)),
    "never predicted": [(np.eye(4)[[0, 0, 1, 1]], np.array([0, 2, 1, 2]))],
    "only predicted": [(np.eye(4)[[0, 3, 1, 3]], np.array([0, 0, 1, 0]))],
    "nothing right": [(np.eye(4)[[1, 2, 3]], np.array([2, 3, 1]))],
    "two classes": batches(2),
    "one of two": batches(2, absent=(1,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.kind)
def test_scores_are_those_of_scikit_learn(score: Any, case: str) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    function, found = getattr(learn, SCORES[score]), CASES[case]
    outputs, true, predicted = joined(found)
    classes = outputs.shape[1]
    averages = ["micro", "macro", "weighted", *["binary"] * (classes == 2)]
    some = [None, range(classes), [classes - 1], [1, 0]]
    for average, labels, undefined in itertools.product(averages, some, (0.0, 1.0, math.nan)):
        if average == "binary" and labels is not None:
            continue
        if not NIGHTLY and average != "macro" and undefined != 1:
            continue  # as scikit-learn takes milliseconds for each
        metric = score(average=average, labels=labels, zero_division=undefined)
        expected = function(
            true, predicted, average=average, labels=labels, zero_division=undefined
        )
        # As above.
        assert measured(metric, found) == pytest.approx(expected, rel=1e-15, nan_ok=True), metric
    for labels, undefined in itertools.product(some, (0.0, 1.0, math.nan)):
        metric = score(average=None, labels=labels, zero_division=undefined)
        labels = range(classes) if labels is None else labels
        expected = function(true, predicted, average=None, labels=labels, zero_division=undefined)
        np.testing.assert_array_equal(measured(metric, found), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalize", [None, "true", "pred", "all"])
def test_the_confusion_matrix_is_that_of_scikit_learn(case: str, normalize: str | None) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    outputs, true, predicted = joined(CASES[case])
    classes = range(outputs.shape[1])
    expected = learn.confusion_matrix(true, predicted, labels=classes, normalize=normalize)
    matrix = measured(ConfusionMatrix(normalize=normalize), CASES[case])
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == expected.dtype
    if normalize is None:
        np.testing.assert_array_equal(matrix, confusion_matrix(true, predicted, len(classes)))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_accuracy_is_that_of_scikit_learn(k: int) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    outputs, true, _ = joined(batches(5))
    expected = learn.top_k_accuracy_score(true, outputs, k=k, labels=range(5))
    assert measured(TopKAccuracy(k), batches(5)) == expected


def test_top_k_accuracy_prefers_the_first_of_equal_outputs() -> None:
    """Ties go to the first class; scikit-learn prefers the last, so classes are reversed."""
    learn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    outputs, true = rng.integers(0, 3, (200, 6)).astype(np.float64), rng.integers(0, 6, 200)
    for k in (1, 2, 4):
        from_behind = learn.top_k_accuracy_score(5 - true, outputs[:, ::-1], k=k, labels=range(6))
        assert measured(TopKAccuracy(k), [(outputs, true)]) == from_behind
    assert measured(TopKAccuracy(1), [(outputs, true)]) == measured(Accuracy(), [(outputs, true)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shares_of_right_guesses_by_hand(dtype: str) -> None:
    """In float64, whatever the outputs; nan is no class, and the threshold is 0 itself."""
    outputs = np.array([[np.nan, 0.0], [0.9, 0.1], [0.2, 0.7]], dtype)
    share = accuracy(outputs, np.array([0, 0, 0]))
    assert share == 1 / 3 and share.dtype == "float64"
    logits = np.array([np.nan, np.nan, 1e-3, -1e-3, 0.0, 0.0], dtype)
    share = binary_accuracy(logits, np.array([0, 1, 1, 0, 0, 1]))
    assert share == 1 / 2 and share.dtype == "float64"


def test_an_output_that_is_nan_is_not_right() -> None:
    outputs, labels = np.full((4, 3), np.nan), np.array([0, 1, 2, 0])
    assert measured(TopKAccuracy(2), [(outputs, labels)]) == 0


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "bool"])
def test_a_single_output_is_compared_with_a_threshold(
    backend: xbp.Backend, shape: tuple[int, ...], dtype: str
) -> None:
    logits = np.array([2.0, -1.0, 0.5, -0.1, 0.0, 3.0]).reshape(shape)
    target = np.array([1, 1, 0, 0, 0, 1]).astype(dtype)
    found = [(logits, target), (logits, target.reshape(shape))]
    assert measured(Precision(threshold=0.0, average="binary"), found) == 2 / 3
    assert measured(Recall(threshold=2.0, average="binary"), found) == 1 / 3
    assert measured(ConfusionMatrix(threshold=0.0), found).tolist() == [[4, 2], [2, 4]]


def test_probabilities_as_targets_and_small_integers_as_labels(backend: xbp.Backend) -> None:
    outputs, true, _ = joined(batches(4))
    expected = measured(ConfusionMatrix(), [(outputs, true)])
    for target in (true.astype(np.uint8), np.eye(4, dtype=np.float32)[true]):
        assert (measured(ConfusionMatrix(), [(outputs, target)]) == expected).all()
        assert measured(Accuracy(), [(outputs, target)]) == np.trace(expected) / len(true)
    predicted = outputs.argmax(1).astype(np.int16)
    assert (measured(ConfusionMatrix(4), [(predicted, true)]) == expected).all()


@pytest.mark.parametrize("held", [1, 50, 10**6])
def test_how_many_keys_wait_makes_no_difference(held: int, monkeypatch: Any) -> None:
    expected = [measured(metric, batches(4)) for metric in every_metric()]
    monkeypatch.setattr(counting, "HELD", held)
    for metric, value in zip(every_metric(), expected, strict=True):
        np.testing.assert_array_equal(measured(metric, batches(4)), value)


@pytest.mark.parametrize("make", [ConfusionMatrix, F1Score])
def test_memory_is_bounded_for_many_classes(make: Any, monkeypatch: Any) -> None:
    """No array is larger than the counters and a batch."""
    classes, batch = 120, 64
    largest, calls, count = 0, 0, counting.bincount

    def spy(x: Any, length: int) -> Any:
        nonlocal largest, calls
        largest, calls = max(largest, len(x), length), calls + 1
        return count(x, length)

    monkeypatch.setattr(counting, "bincount", spy)
    monkeypatch.setattr(counting, "HELD", 256)
    metric, rng = make(classes), np.random.default_rng(0)
    for _ in range(400):
        metric.update(rng.integers(0, classes, batch), rng.integers(0, classes, batch))
        assert sum(map(len, metric._waiting)) < max(256, metric.size())
    metric.compute()
    assert largest <= max(256, metric.size()) + 3 * batch
    keys = 400 * batch * (3 if make is F1Score else 1)
    assert calls <= keys // max(256, metric.size()) + 1


def test_counts_are_exact_where_means_of_means_are_not() -> None:
    metric, outputs = Accuracy(), np.eye(2)
    for n in (3, 7, 11):
        metric.update(outputs[np.ones(n, int)], np.arange(n) % 2)
    assert metric.compute() == (1 + 3 + 5) / 21


def test_no_metric_waits_for_the_device_within_an_epoch(monkeypatch: Any) -> None:
    """Sixty steps of an explicit loop, which counts keys many times."""
    pytest.importorskip("array_api_strict")
    monkeypatch.setattr(counting, "HELD", 40)
    found, metrics = batches(4), every_metric()
    with xbp.use_backend("array_api_strict"):
        metrics += [ConfusionMatrix(threshold=0.0), ConfusionMatrix(4, name="of labels")]
        arrays = [(xbp.asarray(x), xbp.asarray(y)) for x, y in found]
        with assert_no_host_sync():
            for (x, y), _ in itertools.product(arrays, range(20)):
                for metric in metrics[:-2]:
                    metric.update(x, y)
                metrics[-2].update(x[:, 0], xbp.get_backend().xp.astype(y > 1, x.dtype))
                metrics[-1].update(y, y)
                values = [accuracy(x, y), binary_accuracy(x, x)]
        for metric, twin in zip(metrics[:-2], every_metric(), strict=True):
            np.testing.assert_array_equal(metric.compute(), measured(twin, found * 20))
        assert metrics[-1].compute().sum() == 20 * 74
        assert [xbp.to_numpy(value).dtype for value in values] == ["float64", "float64"]
