"""Captured steps equal eager steps, bit for bit, whatever happens between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.capture.trainers import (
    BATCH,
    SAMPLES,
    check_same,
    data,
    fit,
    network,
    recorded_by,
    replayed,
    result,
    trainer_of,
)

import xbp
from xbp import nn, optim
from xbp.testing import assert_no_host_sync
from xbp.training import Callback, Checkpoints, EarlyStopping, LambdaCallback


def test_no_step_of_an_epoch_waits_for_the_device(place: str) -> None:
    """The block has all steps of two epochs and all between them: batches, masks, rates, metrics,
    callbacks and looks at the losses. Outside are the door, and the records of the epochs."""
    if place != "array_api_strict":
        pytest.skip("what waits is found on array_api_strict")
    steps: list[int] = []

    class Guard(Callback):
        def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
            self.guard = assert_no_host_sync()
            self.guard.__enter__()

        def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
            steps.append(step)
            if step == trainer.steps_per_epoch:
                self.guard.__exit__(None, None, None)

    x, y = data(n=2 * 52)  # one reading of the losses in each epoch
    for capture in (False, True):
        trainer = trainer_of(capture, metrics=["accuracy", "f1"])
        trainer.fit(x, y, epochs=2, batch_size=2, validation_data=(x, y), callbacks=[Guard()])
        momentum = lambda model: optim.SGD(model.parameters(), 0.1, momentum=0.9)  # noqa: E731
        trainer_of(capture, optimizer=momentum).fit(x, y, batch_size=2, callbacks=[Guard()])
    assert steps == [*range(1, 53)] * 6


@pytest.mark.usefixtures("device")
def test_a_second_fit_replays_what_the_first_one_recorded() -> None:
    trainer = trainer_of(True)
    fit(trainer)
    steps = recorded_by(trainer)
    assert steps is not None
    recordings = dict(steps.by_size)
    assert set(recordings) == {BATCH, SAMPLES % BATCH}
    fit(trainer)
    assert recorded_by(trainer) is steps
    assert steps.by_size == recordings
    other = trainer_of(False)
    assert fit(other, 4)[2:] == trainer.history.records
    assert result(other) == result(trainer)


@pytest.mark.parametrize("moved", [False, True])
def test_another_fit_takes_its_own_data(moved: bool) -> None:
    """Other values, then another shape, dtype, batch size; from the host or from the device."""

    def fits(trainer: xbp.Trainer) -> Any:
        x, y = data()
        mine = xbp.asarray if moved else np.asarray
        whole = mine(x)
        trainer.fit(whole, mine(y), batch_size=BATCH)
        trainer.fit(whole, mine(y), batch_size=BATCH)
        trainer.fit(mine(-x), mine(y[::-1].copy()), batch_size=BATCH)
        trainer.fit(mine(x[:30]), mine(y[:30]), batch_size=BATCH)
        trainer.fit(mine(x[:30]), mine(y[:30].astype(np.int32)), batch_size=BATCH)
        trainer.fit(mine(x[:30]), mine(y[:30]), batch_size=5)
        assert np.array_equal(xbp.to_numpy(whole), x)
        return trainer.history.records

    check_same(fits)


def test_two_trainers_at_once() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        other = trainer_of(trainer.capture, network(dropout=0.5))
        for _ in range(3):
            fit(trainer, 1)
            fit(other, 1)
        return result(other)

    check_same(run)


def test_two_trainers_of_one_model() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        other = trainer_of(trainer.capture, trainer.model)
        return [fit(each, 1) for each in (trainer, other) * 3]

    check_same(run)


def test_validation_and_early_stopping_that_restores_the_best() -> None:
    stopping = partial(EarlyStopping, patience=1, restore_best=True)

    def run(trainer: xbp.Trainer) -> Any:
        trainer.optimizer.lr = optim.StepLR(0.01, 24, gamma=30.0)
        records = fit(trainer, 8, validation_data=data(20), callbacks=[stopping()])
        assert len(records) < 8
        return records, fit(trainer)

    check_same(run)


@pytest.mark.parametrize("last", [1, 2, 7, 8, 11])
def test_a_stop_in_the_middle(last: int) -> None:
    def run(trainer: xbp.Trainer) -> Any:
        stop = LambdaCallback(
            on_step_end=lambda t, step: t.optimizer.steps == last and t.stop("on purpose")
        )
        return fit(trainer, 3, callbacks=[stop]), fit(trainer)

    check_same(run)


@pytest.mark.parametrize("last", [1, 2, 7, 11])
def test_an_exception_in_the_middle(last: int) -> None:
    def run(trainer: xbp.Trainer) -> Any:
        def fail(trainer: xbp.Trainer, step: int) -> None:
            if trainer.optimizer.steps == last:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fit(trainer, 3, callbacks=[LambdaCallback(on_step_end=fail)])
        return fit(trainer)

    check_same(run)


def test_losses_that_are_read_at_once_or_later() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        read: list[float] = []
        kept: list[Any] = []

        def look(trainer: xbp.Trainer, step: int) -> None:
            if step % 3:
                read.append(float(xbp.to_numpy(trainer.current_loss)))
            if step % 2:
                kept.append(trainer.current_loss)

        records = fit(trainer, callbacks=[LambdaCallback(on_step_end=look)])
        assert len({*read}) == len(read)
        assert trainer.current_loss.shape == ()
        last = float(xbp.to_numpy(trainer.current_loss))
        return records, read, [float(xbp.to_numpy(loss)) for loss in kept], last

    check_same(run)


def test_rates_that_are_set_by_hand() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        def choose(trainer: xbp.Trainer, step: int) -> None:
            if step in (3, 4, 9):
                trainer.optimizer.lr = 0.01 / step

        return fit(trainer, 3, callbacks=[LambdaCallback(on_step_end=choose)])

    fast = check_same(run)
    assert replayed(fast)
    decoupled = partial(optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True)
    check_same(run, optimizer=lambda model: decoupled(model.parameters()))


def test_a_schedule_that_looks_elsewhere() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        now = [0.01]
        trainer.optimizer.lr = lambda step: now[0]
        change = LambdaCallback(on_step_end=lambda t, step: now.append(now.pop() * 0.9))
        return fit(trainer, callbacks=[change])

    check_same(run)


def between(change: Callable[[xbp.Trainer], Any], at: int = 11) -> Callable[[xbp.Trainer], Any]:
    """Training with `change` after some step."""

    def run(trainer: xbp.Trainer) -> Any:
        def act(trainer: xbp.Trainer, step: int) -> None:
            if trainer.optimizer.steps == at:
                change(trainer)

        return fit(trainer, 3, callbacks=[LambdaCallback(on_step_end=act)])

    return run


def earlier_state(trainer: xbp.Trainer) -> None:
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())


def scaled(trainer: xbp.Trainer) -> None:
    state = trainer.model.state_dict()
    trainer.model.load_state_dict({name: 0.9 * value for name, value in state.items()})


def replaced(trainer: xbp.Trainer) -> None:
    for parameter in trainer.model.parameters():
        parameter.data = 0.9 * parameter.data


def other_dropout(trainer: xbp.Trainer) -> None:
    trainer.model[2].p = 0.8  # type: ignore[index]


def other_layer(trainer: xbp.Trainer) -> None:
    trainer.model.layers = (*trainer.model[:1], nn.Tanh(), *trainer.model[2:])  # type: ignore[attr-defined, index]


def another_dropout(trainer: xbp.Trainer) -> None:
    """Another dropout in place of the first, whose p changes later."""
    trainer.model.layers = (*trainer.model[:2], nn.Dropout(0.5), *trainer.model[3:])  # type: ignore[attr-defined, index]
    halve = LambdaCallback(on_step_end=lambda t, step: step == 6 and setattr(t.model[2], "p", 0.1))
    trainer.callbacks.append(halve)


def other_betas(trainer: xbp.Trainer) -> None:
    trainer.optimizer.betas = (0.5, 0.6)  # type: ignore[attr-defined]


def frozen_layer(trainer: xbp.Trainer) -> None:
    trainer.model[0].weight.trainable = not trainer.model[0].weight.trainable  # type: ignore[index]


def a_step_by_hand(trainer: xbp.Trainer) -> None:
    x, y = (xbp.asarray(array[:3]) for array in data())
    trainer.step(x, y)


def a_gradient_by_hand(trainer: xbp.Trainer) -> None:
    parameter = trainer.model.parameters()[0]
    parameter.add_grad(parameter.data * 0.1)


def other_seed(trainer: xbp.Trainer) -> None:
    trainer.stream = xbp.random.RandomStream(99, step=trainer.optimizer.steps)


def another_loss(trainer: xbp.Trainer) -> None:
    trainer.loss = nn.CrossEntropyLoss("sum")


CHANGES = [
    earlier_state, scaled, replaced, other_dropout, other_layer, another_dropout, other_betas,
    frozen_layer, a_step_by_hand, a_gradient_by_hand, other_seed, another_loss,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_something_else_changes(change: Callable[[xbp.Trainer], Any]) -> None:
    assert replayed(check_same(between(change)))


def test_a_layer_that_thaws_counts_its_own_updates() -> None:
    """Its bias corrections start with its own first update."""

    def run(trainer: xbp.Trainer) -> Any:
        frozen_layer(trainer)
        return between(frozen_layer)(trainer)

    fast = check_same(run)
    assert len({*fast.optimizer.counts}) == 2
    assert replayed(fast)


def test_a_checkpoint_in_the_middle_goes_on(tmp_path: Path) -> None:
    def run(trainer: xbp.Trainer) -> Any:
        folder = tmp_path / str(trainer.capture)
        stop = LambdaCallback(on_step_end=lambda t, step: t.optimizer.steps == 18 and t.stop("now"))
        fit(trainer, 3, callbacks=[Checkpoints(folder, 5, keep=99), stop])
        later = trainer_of(trainer.capture)
        fit(later, 3, callbacks=[Checkpoints(folder, 5, keep=99)], resume=folder)
        again = trainer_of(not trainer.capture)  # checkpoints of both kinds are equal
        fit(again, 3, resume=folder / "step-00000005.safetensors")
        assert result(again) == result(later)
        assert again.history.records == later.history.records
        return later.history.records, result(later)

    check_same(run)
