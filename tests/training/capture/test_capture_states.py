"""The states of a recording, and steps that cannot be recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from training.capture.trainers import (
    BATCH,
    adam,
    data,
    fit,
    network,
    recorded_by,
    result,
    trainer_of,
)

import xbp
from xbp import nn, optim
from xbp.errors import InputError
from xbp.training import LambdaCallback
from xbp.training.capture import Phase


def test_a_recording_warms_up_records_and_replays_until_it_is_stale() -> None:
    """The phases of a recording, after each step with batches of one size."""
    trainer, phases, met = trainer_of(True), [], []

    def look(trainer: Any, step: int) -> None:
        recordings = recorded_by(trainer)
        assert recordings is not None
        recording = recordings.by_size[BATCH]
        if recording not in met:
            met.append(recording)
        phases.append([each.phase for each in met])
        if step == 3:
            trainer.model[2].p = 0.5  # frozen in the first recording

    trainer.fit(*data(5 * BATCH), batch_size=BATCH, callbacks=[LambdaCallback(on_step_end=look)])
    record, replay, stale = Phase.RECORD, Phase.REPLAY, Phase.STALE
    assert phases == [[record], [replay], [replay], [stale, record], [stale, replay]]


# --- what cannot be recorded ---


class OwnRule(optim.Optimizer):
    """A rule whose coefficients are the rate and the step."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        lr, t = numbers
        p -= lr / t * g


class OwnStep(optim.SGD):
    def step(self, numbers: Any = None) -> None:
        super().step()


class Reading(nn.Layer):
    """A layer that reads a value, which is not allowed."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        if training and float(x[0, 0]) > 1e9:
            raise AssertionError
        return x, lambda dy: dy


class Placing(nn.Layer):
    """A layer that draws random numbers on the host."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        noise = np.random.default_rng(0).normal(size=tuple(x.shape)).astype(np.float32)
        return x + xbp.asarray(noise), lambda dy: dy


class Counting(nn.Layer):
    """A layer with another function in each step."""

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        self.calls += training
        factor = 1 + 1 / (1 + self.calls)
        return factor * x, lambda dy: factor * dy


class Masking(nn.Layer):
    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        assert x[x > 0].shape
        return x, lambda dy: dy


def own_rule(model: nn.Layer) -> optim.Optimizer:
    return OwnRule(model.parameters(), lr=0.1)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": own_rule}, "OwnRule does not say which coefficients"),
    ({"optimizer": lambda m: OwnStep(m.parameters(), 0.1)}, "OwnStep has a step of its own"),
    ({"more": Reading}, "__float__ of .* waits|D2H transfers are disallowed"),
    ({"more": Placing}, "asarray of .* copies from the host|H2D transfers are disallowed"),
    ({"more": Counting}, "something that Counting keeps changes in each step"),
    ({"more": Masking}, "__getitem__ of .* waits|D2H transfers are disallowed"),
]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("options", "reason"), REFUSED, ids=[reason.partition("|")[0] for _, reason in REFUSED]
)
def test_what_cannot_be_recorded_is_said_once_and_done_without(
    options: dict[str, Any], reason: str
) -> None:
    more = options.get("more")
    given = {name: value for name, value in options.items() if name != "more"}

    def make(capture: bool | None) -> xbp.Trainer:
        return trainer_of(capture, network(*([more()] if more else [])), **given)

    eager, fallen, strict = make(False), make(None), make(True)
    fit(eager)
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        fit(fallen)
    caught = [warning for warning in caught if warning.category is RuntimeWarning]
    assert len(caught) == 1
    fit(fallen)  # without a second warning, which would be an error
    assert "\n" not in str(caught[0].message)
    fit(eager)
    assert fallen.history.records == eager.history.records
    assert result(fallen) == result(eager)
    with pytest.raises((InputError, RuntimeError), match=reason):  # or RecordingError
        fit(strict)


@pytest.mark.usefixtures("device")
def test_a_step_of_ones_own_is_not_recorded() -> None:
    class Slow(xbp.Trainer):
        def step(self, x: Any, y: Any) -> Any:
            self.made = getattr(self, "made", 0) + 1
            return super().step(x, y)

    model = network()
    trainer = Slow(model, nn.CrossEntropyLoss(), adam(model))
    with pytest.warns(RuntimeWarning, match="Slow has a step of its own"):
        fit(trainer)
    assert trainer.made == 16


def test_a_rate_that_is_an_array_is_a_number() -> None:
    results = []
    for rate in (0.125, xbp.asarray(0.125, dtype="float32")):
        trainer = trainer_of(True, optimizer=lambda m: optim.SGD(m.parameters(), lr=0.1))
        trainer.optimizer.lr = lambda step, rate=rate: rate
        fit(trainer)
        assert set(trainer.history["lr"]) == {0.125}
        results.append(result(trainer))
    assert results[0] == results[1]


@pytest.mark.usefixtures("device")
def test_options_that_change_in_each_step_are_given_up() -> None:
    def run(trainer: xbp.Trainer) -> Any:
        def change(trainer: xbp.Trainer, step: int) -> None:
            trainer.model[2].p = step / 100  # type: ignore[index]

        return fit(trainer, callbacks=[LambdaCallback(on_step_end=change)])

    eager, fallen = trainer_of(False), trainer_of(None)
    with pytest.warns(RuntimeWarning, match="something that Dropout keeps changes"):
        assert run(fallen) == run(eager)
    assert result(fallen) == result(eager)


def test_a_failed_recording_changes_nothing() -> None:
    trainer = trainer_of(None)
    fit(trainer, 1)
    steps, before = recorded_by(trainer), result(trainer)
    assert steps is not None
    slot = xbp.to_numpy(steps.rows.slot).tolist()

    def fail() -> None:
        trainer.optimizer.steps += 7
        for parameter in trainer.model.parameters():
            parameter.add_grad(parameter.data)
        trainer.optimizer.step()
        steps.rows.slot += 3
        parameter.data = 2 * parameter.data
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), steps.frozen.undone_on_error(steps.rows.slot):
        fail()
    assert result(trainer) == before
    assert xbp.to_numpy(steps.rows.slot).tolist() == slot
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
