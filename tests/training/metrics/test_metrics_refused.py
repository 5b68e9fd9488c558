"""Batches, labels and options that a metric refuses; labels that it ignores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training.metrics.counted import (
    batches,
    every_metric,
    make_trainer,
    measured,
)

import xbp
from xbp.errors import InputError
from xbp.training import (
    Accuracy,
    ConfusionMatrix,
    F1Score,
    Metric,
    Precision,
    Recall,
    TopKAccuracy,
    accuracy,
)

LOGITS = np.zeros((3, 4))
BAD_UPDATES: list[tuple[Any, Any, Any, str]] = [
    (Accuracy(), LOGITS, np.zeros(2, int), r"outputs \(N, C\).*\(3, 4\) and \(2,\)"),
    (Accuracy(), LOGITS, np.zeros(3), "accuracy needs integer labels, got float64"),
    (Recall(), np.zeros((3, 1)), np.zeros(3, int), "single one give threshold=0.0 for logits"),
    (TopKAccuracy(4), LOGITS, np.zeros(3, int), "top_4_accuracy of 4 outputs is always 1"),
    (F1Score(5), LOGITS, np.zeros(3, int), "f1 is for 5 classes, but there are 4 outputs"),
    (F1Score(), np.zeros(3), np.zeros(3, int), "predicted and true labels.*got float64"),
    (F1Score(), np.zeros(3, int), np.zeros(3, int), "num_classes="),
    (F1Score(2, threshold=0.0), LOGITS, np.zeros(3), r"\(N,\) or \(N, 1\), got shapes \(3, 4\)"),
    (F1Score(3), np.zeros(3, int), np.zeros((3, 3)), r"got float64 \(3, 3\)"),
]


@pytest.mark.parametrize(
    ("metric", "x", "y", "sentence"), BAD_UPDATES, ids=[b[3] for b in BAD_UPDATES]
)
def test_a_batch_that_does_not_fit_gets_one_sentence(
    metric: Metric, x: Any, y: Any, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        metric.update(x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
@pytest.mark.parametrize("metric", every_metric(), ids=lambda metric: metric.name)
def test_labels_that_are_no_class_are_found_in_the_end(metric: Metric, wrong: int) -> None:
    with xbp.use_backend("numpy"):
        outputs, labels = LOGITS, np.array([0, wrong, 1])
        with pytest.raises(InputError, match="from 0 to 3 for 4 classes; 1 of 3 samples"):
            measured(metric.fresh(), [(outputs, labels)])


@pytest.mark.parametrize("make", [ConfusionMatrix, F1Score])
@pytest.mark.parametrize(
    ("predicted", "true"), [(4, 0), (-1, 1), (0, 4), (1, -1), (-1, 4), (4, -1)]
)
def test_labels_that_are_no_class_are_not_counted_elsewhere(
    make: Any, predicted: int, true: int
) -> None:
    """Either of both, with any key."""
    metric = make(4)
    with pytest.raises(InputError, match="from 0 to 3 for 4 classes; 1 of 2 samples"):
        measured(metric, [(np.array([0, predicted]), np.array([0, true]))])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_keys_do_not_overflow_the_labels_dtype(dtype: str, backend: xbp.Backend) -> None:
    found = [(np.arange(200).astype(dtype), np.arange(200)[::-1].astype(dtype))]
    matrix = measured(ConfusionMatrix(200), found)
    assert (matrix == np.eye(200)[::-1]).all()
    assert measured(Precision(200), [(found[0][0], found[0][0])]) == 1


def test_a_half_is_no_class() -> None:
    metric = ConfusionMatrix(threshold=0.0)
    with pytest.raises(InputError, match="from 0 to 1 for 2 classes; 1 of 2 samples"):
        measured(metric, [(np.zeros(2), np.array([0.5, 1.0]))])


def test_nothing_seen_is_no_number() -> None:
    for metric in [*every_metric(), *make_trainer([accuracy]).metrics.values()]:
        with pytest.raises(InputError, match=f"{metric.name} has seen no samples"):
            metric.compute()
    used = Accuracy()
    measured(used, batches(4))
    used.reset()
    with pytest.raises(InputError, match="no samples"):
        used.compute()


BAD_OPTIONS: list[tuple[Any, str]] = [
    (lambda: TopKAccuracy(0), "k must be an integer of at least 1"),
    (lambda: F1Score(1), "num_classes must be an integer of at least 2"),
    (lambda: F1Score(average="mean"), "average must be one of 'binary', 'micro'"),
    (lambda: F1Score(zero_division=2), "zero_division must be 0, 1 or nan"),
    (lambda: F1Score(labels=[]), "at least one class"),
    (lambda: F1Score(labels=[1], average="binary"), "none with average='binary'"),
    (lambda: F1Score(labels=[-1]), "labels must be an integer of at least 0"),
    (lambda: F1Score(3, threshold=0.0), "separates 2 classes, got num_classes=3"),
    (lambda: ConfusionMatrix(normalize="rows"), "normalize must be one of 'true', 'pred', 'all'"),
    (lambda: measured(F1Score(average="binary"), batches(3)), "is for 2 classes, but there are 3"),
    (
        lambda: measured(F1Score(labels=[3]), batches(3)),
        "labels must be below 3, the classes; got 3",
    ),
    (lambda: make_trainer(["f1", F1Score()]), "two quantities would be called 'f1'"),
    (lambda: make_trainer([F1Score(name="loss")]), "two quantities would be called 'loss'"),
    (
        lambda: make_trainer(["auc"]),
        "no metric 'auc'; give a function, a Metric or one of accuracy",
    ),
    (lambda: make_trainer([[]]), r"no metric like a list of 0"),
]


@pytest.mark.parametrize(("make", "sentence"), BAD_OPTIONS, ids=[s for _, s in BAD_OPTIONS])
def test_bad_options_get_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


IGNORING = [
    lambda **options: F1Score(3, average=None, **options),
    lambda **options: F1Score(3, average="micro", **options),
    lambda **options: Precision(3, average="weighted", **options),
    lambda **options: Recall(3, **options),
    lambda **options: ConfusionMatrix(3, **options),
    lambda **options: ConfusionMatrix(3, normalize="true", **options),
]


@pytest.mark.parametrize("ignored", [-100, -1, -2, 0, 7])
@pytest.mark.parametrize("make", IGNORING)
@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_an_ignored_label_does_not_count(backend: str, make: Any, ignored: int) -> None:
    """As if its samples were missing, whatever their outputs."""
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    labels[rng.random(40) < 0.3] = ignored
    kept = labels != ignored
    outputs[np.flatnonzero(~kept)[:3]] = np.nan
    with xbp.use_backend(backend) as found:
        metric, reference = make(ignore_index=ignored), make()
        metric.check(found.asarray(outputs), found.asarray(labels))
        for part in (slice(0, 25), slice(25, 40)):
            metric.update(found.asarray(outputs[part]), found.asarray(labels[part]))
        reference.update(found.asarray(outputs[kept]), found.asarray(labels[kept]))
    np.testing.assert_array_equal(metric.compute(), reference.compute())
    resumed = make(ignore_index=ignored)
    resumed.load_state_dict(metric.state_dict())
    np.testing.assert_array_equal(resumed.compute(), reference.compute())


def test_a_label_that_is_neither_class_nor_ignored_is_refused_beside_ignored_ones() -> None:
    metric = F1Score(2, ignore_index=-100)
    metric.update(np.eye(2), np.array([-100, 5]))
    with pytest.raises(InputError, match=r"needs labels from 0 to 1 .*; 1 of 2 samples"):
        metric.compute()
    single = Precision(threshold=0.5, ignore_index=-1)
    single.update(np.array([0.7, 0.7, 0.1]), np.array([1.0, -1.0, 0.5]))
    with pytest.raises(InputError, match="1 of 3 samples"):
        single.compute()
    with pytest.raises(InputError, match="ignore_index"):
        ConfusionMatrix(2, ignore_index="no")  # type: ignore[arg-type]
