"""Confusion matrices."""

import re

import numpy as np
import pytest

from xbp.errors import InputError
from xbp.training.metrics.confusion import confusion_matrix


class TestConfusionMatrix:
    def test_rows_are_true_classes(self):
        labels, predictions = np.array([0, 0, 0, 2], np.uint8), np.array([0, 1, 1, 0])
        matrix = confusion_matrix(labels, predictions, 3)
        assert matrix.tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 0]]
        assert matrix.dtype == np.int64

    def test_small_integers_do_not_overflow(self):
        labels = np.full(5, 99, np.uint8)
        assert confusion_matrix(labels, labels, 100)[99, 99] == 5

    def test_other_libraries(self):
        strict = pytest.importorskip("array_api_strict")
        labels = strict.asarray([1, 0], device=strict.Device("device1"))
        assert confusion_matrix(labels, labels, 2).tolist() == [[1, 0], [0, 1]]

    @pytest.mark.parametrize(
        ("labels", "predictions", "part"),
        [
            ([0, 2], [0, 1], "labels must be from 0 to 1 for 2 classes, got 2"),
            ([0, 1], [0, -1], "predictions must be from 0 to 1 for 2 classes, got -1"),
            ([0, 1, 1], [0, 1], "3 labels but 2 predictions"),
            ([0.0, 1.0], [0, 1], "labels must be integers"),
            ([[0, 1]], [0, 1], "labels must be integers"),
        ],
    )
    def test_refuses(self, labels, predictions, part):
        with pytest.raises(InputError, match=re.escape(part)):
            confusion_matrix(np.array(labels), np.array(predictions), 2)
