"""Errors before the first step: targets for losses and metrics."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from training.door import LABELS, NUMBERS, ONE_HOT, N, inputs, make, mean_square, refused

import xbp
from xbp import nn
from xbp.errors import InputError
from xbp.models import lenet1998
from xbp.training import (
    Accuracy,
    ConfusionMatrix,
    F1Score,
    Precision,
    TopKAccuracy,
    accuracy,
    binary_accuracy,
)

CLASS_LOSSES = [nn.CrossEntropyLoss, lenet1998.RejectingCrossEntropyLoss]
ENTRY_LOSSES = [nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss]
CLASS_METRICS: list[Any] = [
    *(Accuracy, F1Score, Precision, ConfusionMatrix, partial(TopKAccuracy, 2)),
    lambda: accuracy,
]

NOT_CLASSES = {
    "a column": (LABELS[:, None], r"give y\[:, 0\]"),
    "wider": (np.eye(4)[LABELS], r"\(12, 4\)"),
    "narrower": (np.eye(3)[LABELS][:, :2], r"\(12, 2\)"),
    "one more axis": (ONE_HOT[:, None], r"\(12, 1, 3\)"),
    "one less": (np.asarray(1), r"\(\)"),
}
TRANSPOSED = {"transposed": (ONE_HOT.T, r"\(3, 12\)"), "a row": (LABELS[None], r"\(1, 12\)")}


@pytest.mark.parametrize("loss", CLASS_LOSSES)
@pytest.mark.parametrize("case", NOT_CLASSES | TRANSPOSED)
def test_a_loss_of_classes_refuses_other_targets(loss: Any, case: str) -> None:
    target, sentence = (NOT_CLASSES | TRANSPOSED)[case]
    with pytest.raises(InputError, match=sentence):
        loss()(NUMBERS, target)
    refused(make(loss=loss()), ".", inputs(), target)


@pytest.mark.parametrize("metric", CLASS_METRICS)
@pytest.mark.parametrize("case", NOT_CLASSES | TRANSPOSED)
def test_a_metric_of_classes_refuses_other_targets(metric: Any, case: str) -> None:
    target, sentence = (NOT_CLASSES | TRANSPOSED)[case]
    update = getattr(metric(), "update", metric())
    with pytest.raises(InputError, match=sentence):
        update(NUMBERS, target)


@pytest.mark.parametrize("loss", ENTRY_LOSSES)
@pytest.mark.parametrize(
    ("outputs", "shape", "sentence"),
    [
        (1, (N,), r"give y\[:, None\]"),
        (1, (N, 1, 1), r"give y\[\.\.\., 0\]"),
        (3, (N,), r"CrossEntropyLoss|\(12,\)"),
        (3, (N, 1), r"\(12, 1\)"),
        (3, (N, 4), r"\(12, 4\)"),
        (3, (3, N), r"\(3, 12\)"),
    ],
)
def test_a_loss_of_entries_broadcasts_nothing(
    loss: Any, outputs: int, shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(InputError, match=rf"{sentence}|\(3, 12\)"):
        loss()(np.zeros((N, outputs)), np.zeros(shape))
    refused(make(outputs, loss()), sentence, inputs(), np.zeros(shape))


@pytest.mark.parametrize("shape", [(N,), (1, N), (N, 2)])
def test_binary_accuracy_broadcasts_nothing(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="needs targets of the prediction's shape"):
        binary_accuracy(np.zeros((N, 1)), np.zeros(shape))


REGRESSIONS = {
    "one output": (1, NUMBERS[:, :1], "two classes or more"),
    "some": (3, NUMBERS, "these targets .* are neither"),
    "two": (2, NUMBERS[:, :2], "these targets .* are neither"),
    "several labels a row": (3, np.ones((N, 3)), "these targets .* are neither"),
    "no label in a row": (3, ONE_HOT * (LABELS != 1)[:, None], "these targets .* are neither"),
}


@pytest.mark.parametrize("metric", ["accuracy", "f1", ConfusionMatrix()])
@pytest.mark.parametrize("case", REGRESSIONS)
def test_a_metric_of_classes_has_no_number_for_a_regression(metric: Any, case: str) -> None:
    outputs, y, sentence = REGRESSIONS[case]
    refused(make(outputs, nn.MSELoss(), [metric]), sentence, inputs(), y)
    trainer = make(outputs, nn.MSELoss(), [metric])
    with pytest.raises(InputError, match=sentence):
        trainer.evaluate(inputs(), y)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0.1, 0.9)])
def test_codes_of_labels_are_labels(low: float, high: float) -> None:
    """LeCun's targets -1 and 1, and Rumelhart's 0.1 and 0.9, with the squared error."""
    trainer = make(3, nn.MSELoss(), ["accuracy"])
    codes = low + (high - low) * ONE_HOT
    right = (trainer.model(inputs()).argmax(1) == LABELS).mean()
    assert trainer.evaluate(inputs(), codes)["accuracy"] == right
    assert "accuracy" in trainer.fit(inputs(), codes, verbose=False).names()


def test_options_of_metrics_are_compared_with_the_outputs() -> None:
    for metric, sentence in [
        (F1Score(average="binary"), "for 2 classes, but there are 3"),
        (F1Score(labels=[3]), "labels must be below 3"),
        (F1Score(4), "for 4 classes, but there are 3 outputs"),
        (TopKAccuracy(3), "is always 1"),
        (F1Score(threshold=0.0), r"needs outputs and targets \(N,\)"),
    ]:
        refused(make(metrics=[metric]), sentence, inputs(), LABELS)
    refused(make(3, mean_square, ["accuracy"]), "2 of 12 samples", inputs(), [7, -1, *LABELS[2:]])
    trainer = make(1, nn.BCEWithLogitsLoss(), [F1Score(threshold=0.0)])
    refused(trainer, "samples have another one", inputs(), np.full((N, 1), 0.5))


# --- nan is no class, and no probability ---


def test_outputs_that_are_nan_are_no_class(xp: Any) -> None:
    outputs = np.array([[0.0, 1], [np.nan, 1], [1, np.nan], [np.nan, np.nan], [2, 1]])
    labels = np.array([1, 0, 1, 0, 0])
    outputs, labels = xbp.asarray(outputs), xbp.asarray(labels)
    for metric, expected in [
        (Accuracy(), 2 / 5),
        (TopKAccuracy(1), 2 / 5),
        (F1Score(average="micro"), 4 / 7),
        (Precision(average=None), [1.0, 1.0]),
    ]:
        metric.update(outputs, labels)
        assert np.allclose(metric.compute(), expected), metric.name
    assert float(accuracy(outputs, labels)) == 2 / 5
    matrix = ConfusionMatrix()
    matrix.update(outputs, labels)
    with pytest.raises(InputError, match="3 of 5 samples"):
        matrix.compute()
    single, truth = xbp.asarray([[np.nan], [-1.0], [1.0]]), xbp.asarray([[0.0], [0.0], [1.0]])
    assert float(binary_accuracy(single, truth)) == pytest.approx(2 / 3)
    recall = F1Score(threshold=0.0, average=None)
    recall.update(single, truth)
    assert recall.compute().tolist() == pytest.approx([2 / 3, 1])


def test_targets_that_are_nan_are_no_probabilities() -> None:
    broken = np.where(np.arange(N)[:, None] == 5, np.nan, ONE_HOT)
    refused(make(), "needs probabilities", inputs(), broken)
    refused(make(1, nn.BCEWithLogitsLoss()), "from 0 to 1", inputs(), broken[:, :1])


def test_targets_that_are_nan_are_no_labels(xp: Any) -> None:
    """Metrics called by hand, where argmax would return the index of the nan."""
    outputs = xp.asarray([[0.1, 0.9], [0.8, 0.2]])
    targets = xp.asarray([[math.nan, 1.0], [1.0, 0.0]])
    assert float(accuracy(outputs, targets)) == 0.5
    for metric in (Accuracy(), F1Score(), ConfusionMatrix()):
        metric.update(outputs, targets)
        with pytest.raises(InputError, match="1 of 2 samples have another one"):
            metric.compute()


NO_INTEGERS = {
    "bool": LABELS > 0,
    "floats": LABELS.astype(float),
    "floats of 32 bits": LABELS.astype("float32"),
}


@pytest.mark.parametrize("labels", NO_INTEGERS.values(), ids=NO_INTEGERS.keys())
def test_labels_of_another_dtype_are_told_how_to_be_converted(labels: NDArray[Any]) -> None:
    advice = r"if they are labels, convert them with xbp\.asarray\(y\)\.astype\('int64'\)"
    refused(make(), advice, inputs(), labels)
    refused(make(), advice, inputs(), LABELS, validation_data=(inputs(), labels))
    with pytest.raises(InputError, match=advice):
        nn.CrossEntropyLoss()(NUMBERS, labels)
    make().fit(inputs(), xbp.asarray(labels).astype("int64"))


@pytest.mark.parametrize("loss", ENTRY_LOSSES)
def test_complex_numbers_lose_no_part(loss: Any) -> None:
    refused(make(loss=loss()), r"y holds complex numbers \(complex128\)", inputs(), NUMBERS + 1j)
    refused(make(loss=loss()), "x holds complex numbers", inputs() + 0j, ONE_HOT)
    with pytest.raises(InputError, match="x holds complex numbers"):
        make().predict(inputs() + 0j)
    with pytest.raises(InputError, match="needs real targets, got complex128"):
        loss()(NUMBERS, ONE_HOT + 0j)


def test_targets_that_are_forgotten() -> None:
    refused(make(), "there are no targets: .* got a ndarray of shape", inputs(), None)
    refused(make(), "there are no targets: .* got a tuple of 2 and None", (inputs(), LABELS), None)
    with pytest.raises(InputError, match="there are no targets"):
        make().evaluate(inputs(), None)
