"""Metrics in a trainer: no waits, all numbers, states in the middle of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training.metrics.counted import (
    batches,
    data,
    every_metric,
    make_trainer,
    measured,
)

import xbp
from xbp import nn
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync
from xbp.training import (
    Accuracy,
    Callback,
    ConfusionMatrix,
    LambdaCallback,
    Metric,
    Precision,
    Recall,
    accuracy,
)
from xbp.training.metrics.averages import Averages


def test_a_trainers_epoch_does_not_wait_for_its_metrics() -> None:
    """From the first step of an epoch to the end of its last one."""
    pytest.importorskip("array_api_strict")
    guards: list[Any] = []

    class Guard(Callback):
        def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
            guards.append(assert_no_host_sync())
            guards[-1].__enter__()

        def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
            if step == trainer.steps_per_epoch:
                guards[-1].__exit__(None, None, None)

    records = []
    for backend in ("numpy", "array_api_strict"):
        with xbp.use_backend(backend):
            trainer = make_trainer(every_metric())
            callbacks = [Guard()] if backend != "numpy" else []
            history = trainer.fit(*data(), 2, 4, validation_data=data(), callbacks=callbacks)
        records.append(history.records[-1])
    assert len(guards) == 2
    # The counts are equal, the losses equal to rounding.
    assert records[0] == pytest.approx(records[1], rel=1e-5)


def test_records_have_every_number_and_evaluate_leaves_the_matrix() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    matrix = ConfusionMatrix()
    trainer = make_trainer(["accuracy", "f1", Precision(average=None), matrix])
    x, y = data()
    history = trainer.fit(x, y, epochs=2, batch_size=16, validation_data=(x, y))
    names = ["loss", "accuracy", "f1", *(f"precision_{k}" for k in range(4))]
    assert history.names() == ["epoch", "lr", *names, *(f"val_{name}" for name in names)]
    predicted = trainer.predict(x).argmax(1)
    result = trainer.evaluate(x, y, batch_size=7)
    assert list(result) == names
    assert (matrix.compute() == learn.confusion_matrix(y, predicted)).all()
    assert result["accuracy"] == history["val_accuracy"][-1] == (predicted == y).mean()
    precision = learn.precision_score(y, predicted, average=None)
    assert [result[f"precision_{k}"] for k in range(4)] == precision.tolist()


def test_evaluating_within_an_epoch_leaves_its_own_counts_alone() -> None:
    x, y = data()

    def evaluate(trainer: xbp.Trainer, step: int) -> None:
        trainer.evaluate(x[:10], y[:10])

    records = [
        make_trainer(every_metric()).fit(x, y, 2, 16, callbacks=callbacks).records
        for callbacks in ([], [LambdaCallback(on_step_end=evaluate)])
    ]
    assert records[0] == records[1]


def test_a_function_is_averaged_over_samples_as_before() -> None:
    def share(prediction: Any, target: Any) -> Any:
        return (prediction.argmax(1) == target).mean()

    trainer = make_trainer([share, accuracy])
    x, y = data(50)
    result = trainer.evaluate(x, y, batch_size=16)
    right = (trainer.predict(x).argmax(1) == y).mean()
    # A mean of means, rounded once for each batch.
    assert result["share"] == pytest.approx(right, rel=1e-15)
    assert result["accuracy"] == pytest.approx(right, rel=1e-15)


def test_a_metric_of_ones_own() -> None:
    class Largest(Metric):
        name = "largest"

        def reset(self) -> None:
            self.value: Any = 0.0

        def update(self, prediction: Any, target: Any) -> None:
            self.value = np.maximum(self.value, prediction.max())

        def compute(self) -> float:
            return float(self.value)

    trainer = make_trainer([Largest])
    x, y = data(50)
    assert trainer.evaluate(x, y, batch_size=16)["largest"] == float(trainer.predict(x).max())
    with pytest.raises(NotImplementedError, match=r"define state_dict\(self\)"):
        trainer.metrics["largest"].state_dict()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_state_of_half_an_epoch_goes_on(first: int, backend: xbp.Backend) -> None:
    found = [(xbp.asarray(x), xbp.asarray(y)) for x, y in batches(4)]
    metrics = {metric.name: metric for metric in [*every_metric(), Accuracy(name="a")]}
    results = []
    for stop in (None, first):
        seen = Averages(nn.CrossEntropyLoss(), metrics)
        for step, (x, y) in enumerate(found):
            if step == stop:
                state = seen.state_dict()
                assert all(isinstance(value, np.ndarray) for value in state.values())
                seen = Averages(nn.CrossEntropyLoss(), metrics)
                seen.load_state_dict(state)
            seen.add(nn.CrossEntropyLoss()(x, y)[0], x, y)
        results.append((seen.result(), metrics["confusion_matrix"].compute().tolist()))
    assert results[0] == results[1]


def test_a_state_of_another_metric_is_refused() -> None:
    matrix = ConfusionMatrix()
    measured(matrix, batches(4))
    with pytest.raises(InputError, match="does not fit recall: its counts have another shape"):
        Recall().load_state_dict(matrix.state_dict())
    seen = Averages(nn.MSELoss(), {})
    with pytest.raises(InputError, match="does not fit loss: it needs a value for each batch"):
        seen.load_state_dict({"loss.sizes": np.ones(3, int), "loss.values": np.ones(2)})
