"""Errors before the first step: dtypes, learning rates, monitored names, data frames."""

from __future__ import annotations

import gc
import warnings
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from training.door import LABELS, inputs, make, network, refused

import xbp
from xbp import nn, optim
from xbp.errors import InputError, OutOfMemoryError
from xbp.training import (
    Callback,
    ConfusionMatrix,
    EarlyStopping,
    F1Score,
    LambdaCallback,
    LearningRateScheduler,
    Metric,
    Precision,
    accuracy,
)


@pytest.mark.parametrize(("own", "given"), [("float32", "float64"), ("float64", "float32")])
def test_floating_point_data_become_the_models(own: str, given: str, xp: Any) -> None:
    model = network(3, dtype=own)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=0)
    x = inputs().astype(given)
    assert trainer.predict(x).dtype == model[0].weight.data.dtype  # type: ignore[index]
    history = trainer.fit(x, LABELS, 2, 4, (x, LABELS))
    again = network(3, dtype=own)
    twin = xbp.Trainer(again, nn.CrossEntropyLoss(), optim.SGD(again.parameters(), 0.1), rng=0)
    converted = x.astype(own)
    assert twin.fit(converted, LABELS, 2, 4, (converted, LABELS)).records == history.records


def test_what_the_models_dtype_cannot_hold_is_refused() -> None:
    model = network(3, dtype="float32")
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1))
    refused(trainer, "beyond the model's float32", np.full((3, 2), 1e300), np.arange(3))
    with pytest.raises(InputError, match="needs floating-point input, got uint8"):
        trainer.predict(np.ones((3, 2), np.uint8))


def test_data_for_which_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise MemoryError

    trainer = make()
    monkeypatch.setattr("xbp.backend.places.as_numbers", no_room)
    with pytest.raises(OutOfMemoryError, match=r"no room for data of shape \(12, 2\)"):
        trainer.predict(inputs())


# --- rates ---

BAD_RATES: list[Any] = [
    -0.1,
    10**400,
    float("nan"),
    float("inf"),
    None,
    "0.1",
    [0.1],
    np.ones(1),
    True,
    1j,
]
GOOD_RATES: list[Any] = [0.5, 1, np.float32(0.5), np.asarray(0.5), np.int64(1), np.float16(0.5)]


def rate(step: int) -> Any:
    return RATE[0]


RATE: list[Any] = [0.0]


@pytest.mark.parametrize("value", BAD_RATES, ids=repr)
def test_a_rate_that_is_none_names_its_function(value: Any) -> None:
    RATE[0] = value
    refused(make(lr=rate), "learning rate of step 0 .* from the schedule rate", inputs(), LABELS)
    scheduler = [LearningRateScheduler(rate)]
    sentence = "learning rate of epoch 1 .* from the schedule rate"
    refused(make(), sentence, inputs(), LABELS, callbacks=scheduler)


@pytest.mark.parametrize("value", GOOD_RATES, ids=repr)
def test_a_rate_may_be_any_number(value: Any) -> None:
    RATE[0] = value
    for trainer, callbacks in ((make(lr=rate), []), (make(), [LearningRateScheduler(rate)])):
        (lr,) = trainer.fit(inputs(), LABELS, callbacks=callbacks)["lr"]
        assert lr == float(value)
        assert type(lr) is float


def test_the_last_rate_is_looked_at_before_the_first_step() -> None:
    sentence = r"learning rate of step 11 .* got -0\.1"
    refused(make(lr=lambda step: 0.1 - step * 0.2 / 11), sentence, inputs(), LABELS, 4, 4)
    rates = [0.1] * 11
    sentence = r"the schedule .*__getitem__ fails at step 11, the last .*IndexError"
    refused(make(lr=rates.__getitem__), sentence, inputs(), LABELS, 4, 4)
    make(lr=[0.1].__getitem__).fit(
        inputs(), LABELS, 4, 4, callbacks=[LearningRateScheduler(lambda epoch: 0.1)]
    )


@pytest.mark.parametrize("schedule", [optim.OneCycleLR, optim.CosineAnnealingLR])
def test_a_schedule_for_another_number_of_steps(schedule: Any, tmp_path: Any) -> None:
    for total, fate in ((13, "will not come to its end"), (11, "stays at its end")):
        with pytest.warns(UserWarning, match=f"made for {total} steps.* after 12: the rate {fate}"):
            make(lr=schedule(0.1, total)).fit(inputs(), LABELS, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make(lr=schedule(0.1, 12))
        halt = LambdaCallback(on_step_end=lambda t, s: t.optimizer.steps == 4 and t.stop("enough"))
        trainer.fit(inputs(), LABELS, 4, 4, callbacks=[xbp.training.Checkpoints(tmp_path, 1), halt])
        trainer = make(lr=schedule(0.1, 12))
        trainer.fit(inputs(), LABELS, 4, 4, resume=tmp_path)  # 4 of 12 steps are done
    assert trainer.optimizer.steps == 12


# --- what callbacks will find ---


def test_what_others_record_can_be_monitored() -> None:
    """These names are unknown before the first epoch."""

    class Own(Callback):
        def on_epoch_end(self, trainer: xbp.Trainer, epoch: int, record: Any) -> None:
            record["quality"] = epoch

    class Several(Metric):
        name = "several"

        def reset(self) -> None:
            pass

        def update(self, prediction: Any, target: Any) -> None:
            pass

        def numbers(self) -> dict[str, float]:
            return {"quality": 1.0}

    stop = EarlyStopping("quality", mode="max")
    make().fit(inputs(), LABELS, callbacks=[Own(), stop])
    make(metrics=[Several()]).fit(inputs(), LABELS, callbacks=[stop])
    refused(make(), "there is no 'quality' to monitor", inputs(), LABELS, callbacks=[stop])


def test_the_names_of_records_are_known() -> None:
    metrics = [F1Score(average=None), Precision(average=None, labels=[1, 2]), ConfusionMatrix()]
    trainer = make(metrics=[*metrics, "accuracy", accuracy and mean_of_first])
    history = trainer.fit(inputs(), LABELS, validation_data=(inputs(), LABELS))
    assert history.names() == trainer.expected


def mean_of_first(prediction: Any, target: Any) -> Any:
    return prediction[:, 0].mean()


def test_frames_of_pandas() -> None:
    """Floats of 64 bits for a model of 32, and a column of targets for one output."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(inputs(), columns=["a", "b"])
    model = network(1, dtype="float32")
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    refused(trainer, r"give y\[:, None\]", table, table["a"])
    assert len(trainer.fit(table, table[["a"]], validation_data=(table, table[["a"]]))) == 1


@pytest.mark.parametrize("where", ["", "on_fit_begin", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_data_are_free_when_fit_has_ended(where: str) -> None:
    """Errors form no reference cycles."""

    def fail(*_: Any) -> None:
        raise RuntimeError

    gc.disable()
    try:
        x = inputs().copy()
        held = weakref.ref(x)
        with suppress(RuntimeError):
            callbacks = [LambdaCallback(**{where: fail})] if where else []
            make().fit(x, LABELS, callbacks=callbacks)
        del x
        assert held() is None
    finally:
        gc.enable()


def test_a_model_too_large_for_one_sample_is_one_sentence() -> None:
    class TooLarge(nn.Layer):
        def forward(self, x, *, training=False, rng=None):
            raise MemoryError("convolve found no memory for its workspace; use a smaller batch")

    model = nn.Sequential(TooLarge(), nn.Linear(2, 1, rng=0))
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1))
    with pytest.raises(OutOfMemoryError, match="not even a batch size of 1 would fit"):
        trainer.fit(np.zeros((4, 2)), np.zeros((4, 1)), 1, 2, verbose=False)
