"""Binary accuracy: entries on the right side."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.training import (
    accuracy,
    binary_accuracy,
)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32", "uint8"])
def test_binary_accuracy_counts_entries_on_the_right_side(dtype: str) -> None:
    logits = np.array([[2.0], [-1.0], [0.5], [-0.1], [0.0]], dtype=np.float32)
    target = np.array([[1], [1], [0], [0], [0]]).astype(dtype)
    assert float(binary_accuracy(logits, target)) == 3 / 5  # 0 is not above 0
    assert float(binary_accuracy(logits, target, threshold=0.5)) == 4 / 5


def test_a_target_that_is_neither_0_nor_1_is_missed() -> None:
    assert float(binary_accuracy(np.array([3.0, -3.0]), np.array([2, -1]))) == 0


def test_binary_accuracy_on_the_strict_backend() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        share = binary_accuracy(xbp.asarray([[1.0], [-1.0]]), xbp.asarray([[1], [1]]))
    assert xbp.to_numpy(share) == 0.5


def test_targets_of_another_shape_are_not_broadcast() -> None:
    with pytest.raises(InputError, match=r"prediction's shape \(4, 1\), got \(4,\)"):
        binary_accuracy(np.zeros((4, 1)), np.zeros(4))


def test_accuracy_of_a_single_output_is_refused() -> None:
    """The argmax of one output is always 0, so that argmax would count the zeros."""
    with pytest.raises(InputError, match="for a single one use binary_accuracy"):
        accuracy(np.zeros((4, 1)), np.zeros(4, dtype=np.int64))


def test_a_trainer_takes_binary_accuracy() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    y = np.array([[0], [0], [1], [1]])
    model = nn.Linear(1, 1, dtype="float64", rng=0)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    trainer = xbp.Trainer(model, nn.BCEWithLogitsLoss(), optimizer, [binary_accuracy], rng=0)
    history = trainer.fit(x, y, epochs=20, batch_size=2, validation_data=(x, 1 - y))
    assert history["binary_accuracy"][-1] == 1
    assert history["val_binary_accuracy"][-1] == 0
