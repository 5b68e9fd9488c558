"""Callbacks: the times of their calls, their effects, and invalid callbacks."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError, NonFiniteError
from xbp.training import (
    Callback,
    Checkpoints,
    Convergence,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    TerminateOnNaN,
    load_model,
    load_weights,
    save_weights,
)
from xbp.training.callbacks.monitoring import sign_of


def data(n: int = 48) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return rng.normal(size=(n, 2)) + np.eye(3)[y][:, :2], y


def make_trainer(*layers: nn.Layer, lr: Any = 0.1, **options: Any) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 3, dtype="float64", rng=0), *layers)
    optimizer = optim.SGD(model.parameters(), lr=lr)
    return xbp.Trainer(
        model, nn.CrossEntropyLoss(), optimizer, ["accuracy", "f1"], rng=0, **options
    )


def fit(*callbacks: Callback, epochs: int = 3, **options: Any) -> xbp.History:
    """Three epochs of three steps."""
    options = {"validation_data": data(), "batch_size": 16} | options
    return make_trainer().fit(*data(), epochs=epochs, callbacks=callbacks, **options)


# --- any function ---


def test_lambda_callback_calls_each_function_with_what_its_method_gets() -> None:
    calls: list[Any] = []
    names = ("on_fit_begin", "on_epoch_begin", "on_step_end", "on_epoch_end", "on_fit_end")
    functions = {name: lambda *args, name=name: calls.append((name, args)) for name in names}
    trainer = make_trainer()
    history = trainer.fit(*data(), 2, 24, callbacks=[LambdaCallback(**functions)])
    epochs = [
        [("on_epoch_begin", e), ("on_step_end", 1), ("on_step_end", 2), ("on_epoch_end", e)]
        for e in (1, 2)
    ]
    expected = [("on_fit_begin",), *epochs[0], *epochs[1], ("on_fit_end",)]
    assert [(name, *args[1:2]) for name, args in calls] == expected
    assert all(args[0] is trainer for _, args in calls)
    assert [args[2] for name, args in calls if name == "on_epoch_end"] == history.records


def test_lambda_callback_takes_one_function_and_no_other_things() -> None:
    losses: list[float] = []
    callback = LambdaCallback(on_epoch_end=lambda trainer, epoch, r: losses.append(r["loss"]))
    assert fit(callback)["loss"] == losses
    with pytest.raises(InputError, match="on_step_end must be a function, got int"):
        LambdaCallback(on_step_end=3)  # type: ignore[arg-type]


# --- the learning rate ---


def test_the_scheduler_sets_the_rate_of_each_epoch() -> None:
    history = fit(LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch))
    assert history["lr"] == [0.1, 0.05, 0.025]


def test_the_scheduler_is_an_optimizers_schedule_by_epochs() -> None:
    trainers = [make_trainer(), make_trainer(lr=optim.StepLR(0.1, 3, gamma=0.5))]
    scheduler = LearningRateScheduler(lambda epoch: np.float32(0.1 * 0.5**epoch))
    exact = LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    for trainer, callbacks in zip(trainers, ([scheduler, exact], []), strict=True):
        trainer.fit(*data(), 3, 16, callbacks=callbacks)
    for name, value in trainers[0].model.state_dict().items():
        assert np.array_equal(value, trainers[1].model.state_dict()[name])
        assert value.dtype == np.float64


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(steps: int, tmp_path: Path) -> None:
    def stop(trainer: xbp.Trainer, step: int) -> None:
        if trainer.optimizer.steps == steps:
            trainer.stop("interrupted by Ctrl-C")

    halved = LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    expected = fit(halved).records
    fit(halved, Checkpoints(tmp_path, every=1), LambdaCallback(on_step_end=stop))
    resumed = fit(halved, Checkpoints(tmp_path, every=1), resume=tmp_path)
    assert resumed.records == expected


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"learning rate of epoch 2 must be .* got -0\.1"):
        fit(LearningRateScheduler(lambda epoch: [0.1, -0.1][epoch]))
    with pytest.raises(InputError, match="schedule must be a function of the epoch, got float"):
        LearningRateScheduler(0.1)  # type: ignore[arg-type]


# --- losses that are not finite ---


class Poison(nn.Layer):
    """The identity until its n-th training step, then nan: no step that could be recorded."""

    def __init__(self, good_steps: int, value: float = math.nan) -> None:
        self.left, self.value = good_steps, value

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        self.left -= training
        return (x if self.left >= 0 else x * self.value), lambda dy: dy


def test_terminate_on_nan_ends_training_where_else_fit_raises(backend: xbp.Backend) -> None:
    with pytest.raises(NonFiniteError) as error:
        make_trainer(Poison(4), capture=False).fit(*data(), 3, 16)
    trainer, ends = make_trainer(Poison(4), capture=False), []
    last = LambdaCallback(on_fit_end=ends.append)
    history = trainer.fit(*data(), 3, 16, callbacks=[TerminateOnNaN(), last])
    assert len(history) == 1
    assert history.stopped == str(error.value)
    assert "epoch 2, step 2; the first thing not finite is the output of layer" in history.stopped
    assert ends == [trainer]


def test_terminate_on_nan_also_looks_at_the_validation_loss() -> None:
    x, y = data()
    broken = np.where(x == x[3, 1], np.nan, x)
    history = fit(TerminateOnNaN(), validation_data=(broken, y))
    assert len(history) == 1
    assert history.stopped == "the validation loss is nan after epoch 1"
    assert len(fit(TerminateOnNaN())) == 3
    assert len(fit(TerminateOnNaN(), validation_data=None)) == 3


# --- what is monitored ---


@pytest.mark.parametrize(
    "monitor", ["loss", "val_loss", "lr", "perplexity", "val_mse", "mean_absolute_error", "val_nll"]
)
def test_smaller_is_better(monitor: str) -> None:
    assert sign_of(monitor, "auto") == sign_of(monitor, "min") == 1
    assert sign_of(monitor, "max") == -1


@pytest.mark.parametrize(
    "monitor",
    [
        *("accuracy", "val_top_5_accuracy", "val_f1", "f1_micro", "recall_3", "acc", "val_acc"),
        *("val_precision_weighted", "val_auc", "binary_accuracy", "balanced_accuracy"),
        *("val/accuracy", "accuracy.val", "val accuracy", "val_accuracy_"),
    ],
)
def test_larger_is_better(monitor: str) -> None:
    assert sign_of(monitor, "auto") == sign_of(monitor, "max") == -1
    assert sign_of(monitor, "min") == 1


@pytest.mark.parametrize(
    "monitor",
    [
        *("f100", "quality", "val_score", "accuracy_loss", "neg_mse", "valAcc", "val_", "", "1"),
        *("1-accuracy", "1 - accuracy", "-accuracy", "val_-loss", "1/loss", "train-val accuracy"),
    ],
)
def test_a_direction_that_is_not_known_is_asked_for(monitor: str) -> None:
    for make in (
        EarlyStopping,
        lambda name: ModelCheckpoint("m", name, save_best_only=True),
        lambda name: Checkpoints("m", monitor=name),
    ):
        with pytest.raises(InputError, match="give mode='max' or mode='min'"):
            make(monitor)
    assert sign_of(monitor, "min") == 1
    ModelCheckpoint("m", monitor)  # the callback need not know


BAD_MONITORS = [
    (
        EarlyStopping("val_f2", mode="max"),
        "no 'val_f2' to monitor, only epoch, lr, loss, accuracy, f1, val_loss",
    ),
    (
        ModelCheckpoint("m", "val_f2", "max", save_best_only=True),
        "no 'val_f2' to monitor, only epoch, lr",
    ),
    (EarlyStopping("val_accuracy "), "no 'val_accuracy ' to monitor"),
    (Checkpoints("m", monitor="val_loss_", mode="min"), "no 'val_loss_' to monitor"),
    (ModelCheckpoint("m-{val_f2}"), "no 'val_f2' to monitor, only epoch, lr, loss"),
    (ModelCheckpoint("m-{loss:s}"), "'m-{loss:s}' is no pattern for a file"),
    (ModelCheckpoint("m-{}"), "'m-{}' is no pattern for a file"),
    (Convergence(0.1, "val_f2"), "no 'val_f2' to monitor"),
]


@pytest.mark.parametrize(("callback", "sentence"), BAD_MONITORS, ids=[s for _, s in BAD_MONITORS])
def test_a_name_that_is_not_recorded_gets_one_sentence(callback: Callback, sentence: str) -> None:
    steps: list[int] = []
    count = LambdaCallback(on_step_end=lambda trainer, step: steps.append(step))
    with pytest.raises(InputError, match=sentence) as error:
        fit(callback, count)
    assert "\n" not in str(error.value)
    assert not steps  # before the first epoch


def test_modes_are_checked() -> None:
    for make in (EarlyStopping, lambda mode: ModelCheckpoint("m", mode=mode)):
        with pytest.raises(InputError, match="mode must be one of 'auto', 'min', 'max'"):
            make(mode="least")


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(),
        ModelCheckpoint("m", save_best_only=True),
        Convergence(0, "val_loss"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_ctrl_c_in_an_epoch_that_is_then_not_validated(callback: Callback) -> None:
    interrupt = LambdaCallback(on_step_end=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    history = fit(callback, interrupt)
    assert history.stopped == "interrupted by Ctrl-C"
    assert "val_loss" not in history.names()


class Scripted(Callback):
    """A callback that puts given values of a quantity into the records."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_epoch_end(self, trainer: xbp.Trainer, epoch: int, record: dict[str, float]) -> None:
        record["quality"] = self.values[epoch - 1]


def test_early_stopping_passes_over_nan_and_obeys_its_mode() -> None:
    script = Scripted(math.nan, 1.0, 2.0, 1.5, 1.7, 9.0)
    history = fit(script, EarlyStopping("quality", patience=2, mode="max"), epochs=6)
    assert len(history) == 5
    assert history.stopped == "quality has not improved since epoch 3 (2)"


# --- files ---


def weights_by_epoch() -> list[dict[str, NDArray[Any]]]:
    found: list[Any] = []
    fit(LambdaCallback(on_epoch_end=lambda t, e, r: found.append(t.model.state_dict())), epochs=6)
    return found


def assert_equal(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("mode", "best"), [("min", 5), ("max", 3)])
def test_the_best_model_is_kept(mode: str, best: int, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint = ModelCheckpoint(path, "quality", mode, True, True)
    fit(Scripted(2.0, 3.0, 4.0, 1.0, 0.5, 4.0), checkpoint, epochs=6)
    assert_equal(load_weights(path), weights_by_epoch()[best - 1])


def test_every_model_is_kept_under_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "m-{epoch:02d}-{val_loss:.3f}.safetensors"
    history = fit(ModelCheckpoint(path, save_weights_only=True), epochs=6)
    names = [f"m-{r['epoch']:02d}-{r['val_loss']:.3f}.safetensors" for r in history.records]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, weights in zip(names, weights_by_epoch(), strict=True):
        assert_equal(load_weights(tmp_path / name), weights)


def test_a_whole_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    expected = fit(EarlyStopping(), epochs=6).records
    fit(EarlyStopping(), ModelCheckpoint(path), epochs=4)
    history = fit(EarlyStopping(), ModelCheckpoint(path), resume=path, epochs=6)
    assert history.records == expected
    assert len(history) == 6


def test_the_best_value_outlives_an_interruption(tmp_path: Path) -> None:
    best, folder = tmp_path / "best.safetensors", tmp_path / "checkpoints"

    def callbacks() -> list[Callback]:
        script = Scripted(3.0, 1.0, 2.0, 2.5)
        return [script, ModelCheckpoint(best, "quality", "min", True, True), Checkpoints(folder)]

    fit(*callbacks(), epochs=2)
    before = best.read_bytes()
    fit(*callbacks(), epochs=4, resume=folder)
    assert best.read_bytes() == before  # epochs 3 and 4 are no better than 2


def test_weights_of_a_known_model_make_the_model(tmp_path: Path) -> None:
    model = xbp.models.LeNet5(rng=0)
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), rng=0
    )
    x = np.zeros((4, 1, 28, 28), np.float32)
    path = tmp_path / "model.safetensors"
    trainer.fit(x, np.arange(4), callbacks=[ModelCheckpoint(path, save_weights_only=True)])
    assert np.array_equal(load_model(path)(x), model(x))
    save_weights(model.state_dict(), tmp_path / "same.safetensors", model=model)
    assert path.read_bytes() == (tmp_path / "same.safetensors").read_bytes()


def test_a_folder_that_is_missing_gets_one_sentence(tmp_path: Path) -> None:
    for only in (False, True):
        callback = ModelCheckpoint(tmp_path / "nowhere" / "m", save_weights_only=only)
        with pytest.raises(DataError, match=r"nowhere/m' cannot be written") as error:
            fit(callback)
        assert "\n" not in str(error.value)
