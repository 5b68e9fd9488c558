"""Captured steps and their recordings, piece by piece, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import LIBRARIES
from xbp.errors import InputError
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.testing.helpers import replaced
from xbp.training.capture import (
    CapturedSteps,
    Recordings,
    check,
    recordings_of,
    stepper_for,
)
from xbp.training.share import Whole
from xbp.training.steps import EagerSteps


@pytest.fixture(autouse=True)
def place() -> Iterator[str]:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"), emulated_graphs():
        yield "array_api_strict"


class Noted(Whole):
    """The share of all rows, which keeps the sizes of the batches under way."""

    def __init__(self, recordable: bool = True) -> None:
        self.recordable, self.totals = recordable, []

    def batch(self, total: int) -> Any:
        self.totals.append(total)
        return super().batch(total)


def trainer_of(**options: Any) -> Any:
    model = nn.Linear(3, 2, rng=0)
    optimizer = optim.SGD(model.parameters(), lr=optim.StepLR(0.1, 1, gamma=0.5))
    trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0, **options)
    trainer.share = Noted()
    trainer.batch_size, trainer.steps_per_epoch = 4, 2
    return trainer


def data() -> Any:
    rng = np.random.default_rng(0)
    return tuple(xbp.asarray(rng.normal(size=s).astype("float32")) for s in ((8, 3), (8, 2)))


def stepper_of(trainer: Any, capture: bool | None = True, **options: Any) -> Any:
    given = {"given": data(), "data": data(), "before": None, "own_step": False, **options}
    return stepper_for(trainer, capture=capture, **given)


@pytest.mark.parametrize(("variable", "wanted"), [(None, True), ("1", True), ("0", False)])
@pytest.mark.parametrize("capture", [None, False, True])
def test_who_decides_whether_steps_are_captured(
    capture: bool | None, variable: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument, and without one the environment."""
    monkeypatch.delenv("XBP_CAPTURE", raising=False)
    if variable is not None:
        monkeypatch.setenv("XBP_CAPTURE", variable)
    stepper = stepper_of(trainer_of(), capture)
    captured = wanted if capture is None else capture
    assert type(stepper) is (CapturedSteps if captured else EagerSteps)
    assert (recordings_of(stepper) is not None) == captured
    assert not captured or stepper.required == (capture is True)


def test_where_a_device_or_a_group_records_nothing_eager_steps_are_made() -> None:
    trainer = trainer_of()
    trainer.share = Noted(recordable=False)
    assert type(stepper_of(trainer, None)) is EagerSteps
    with pytest.raises(InputError, match=r"^capture=True needs processes whose sums a GPU records"):
        stepper_of(trainer)
    arrays = tuple(xbp.asarray(a) for a in map(xbp.to_numpy, data()))
    with replaced(LIBRARIES["array_api_strict"], graph=lambda device: None):
        assert type(stepper_of(trainer_of(), None, data=arrays)) is EagerSteps
        with pytest.raises(InputError, match=r"^capture=True needs numpy or a GPU, where "):
            stepper_of(trainer_of(), data=arrays)


def test_a_step_of_ones_own_is_said_or_refused() -> None:
    trainer = trainer_of()
    with pytest.raises(InputError, match=r"^Trainer has a step of its own$"):
        stepper_of(trainer, own_step=True)
    with pytest.warns(
        RuntimeWarning, match=r"\(InputError: Trainer has a step of its own\)"
    ) as warned:
        stepper = stepper_of(trainer, None, own_step=True)
    assert len(warned) == 1
    assert stepper.refused and stepper.recordings is None


def test_the_recordings_of_the_last_fit_are_used_again_if_they_serve() -> None:
    trainer, moved = trainer_of(), data()
    host = tuple(map(xbp.to_numpy, data()))
    first = stepper_of(trainer, given=host, data=moved)
    assert (first.recordings.given, first.recordings.data) == (host, moved)
    again = stepper_of(trainer, given=host, data=data(), before=first)
    assert again.recordings is first.recordings and again is not first
    trainer.batch_size = 2
    other = stepper_of(trainer, given=host, data=moved, before=first).recordings
    assert other is not None and other is not first.recordings
    given = moved
    assert recordings_of(None) is None and recordings_of(EagerSteps(trainer, given)) is None


class OwnStep(optim.SGD):
    def step(self, coefficients: Any = None) -> None:
        super().step(coefficients)


class OwnClearing(optim.SGD):
    def zero_grad(self) -> None:
        super().zero_grad()


class Unsaid(optim.Optimizer):
    """A rule that does not define its coefficients."""


class Said(optim.Optimizer):
    def coefficients(self, lr: float, t: int) -> tuple[float, ...]:
        return (lr,)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (OwnStep, r"^OwnStep has a step of its own, where it could have an update$"),
        (OwnClearing, r"^OwnClearing has a step of its own, where it could have an update$"),
        (Unsaid, r"^Unsaid does not say which coefficients its rule takes; define coefficients\("),
        (Said, ""),
        (optim.SGD, ""),
    ],
)
def test_rules_that_a_replay_would_not_call_are_refused(kind: Any, sentence: str) -> None:
    trainer = trainer_of()
    trainer.optimizer = kind(trainer.model.parameters(), lr=0.1)
    if not sentence:
        check(trainer, False)
        return
    with pytest.raises(InputError, match=sentence):
        check(trainer, False)


class Steps:
    """Eager steps, or recordings, that note what they are asked for."""

    def __init__(self, made: bool = True, error: Exception | None = None) -> None:
        self.log: list[Any] = []
        self.made, self.error = made, error
        self.rates = [0.7]
        self.value = xbp.asarray(np.asarray(0.5))

    def begin(self, order: Any) -> None:
        self.log.append(("begin", order))

    def step(self, *given: Any) -> bool:
        self.log.append(("step", *given))
        if self.error is not None:
            raise self.error
        return self.made

    def flush(self) -> None:
        self.log.append("flush")

    def last_loss(self) -> Any:
        return self.value

    def end(self) -> None:
        self.log.append("end")


def captured(*given: Any, required: bool = False) -> tuple[Any, Any, Any, Any]:
    trainer, eager, recordings = trainer_of(), Steps(), Steps(*given)
    steps = CapturedSteps(trainer, eager, required)  # type: ignore[arg-type]
    steps.recordings = recordings  # type: ignore[assignment]
    return trainer, steps, eager, recordings


def test_a_step_is_replayed_or_made() -> None:
    trainer, steps, eager, recordings = captured()
    trainer.optimizer.steps = 1
    steps.begin("order")
    steps.step(3, 4)
    assert eager.log == [("begin", "order")]
    assert recordings.log == [("begin", "order"), ("step", 3, 4, [0.05])]
    assert (steps.rates, trainer.share.totals) == ([0.05], [4])
    steps.step(3, 4, "batch")  # which is not in the data
    assert eager.log[1:] == [("step", 3, 4, "batch")] and len(recordings.log) == 2
    assert steps.rates == [0.7]
    recordings.made = False
    steps.step(5, 2)
    assert eager.log[2:] == [("step", 5, 2, None)] and len(recordings.log) == 3
    steps.end()
    assert eager.log[3:] == ["end"]


def test_the_loss_is_that_of_the_state_or_in_its_row() -> None:
    trainer, steps, _, recordings = captured()
    with assert_no_host_sync():
        trainer.state.loss = None
        assert steps.loss() is recordings.value
        trainer.state.loss = kept = xbp.asarray(np.asarray(1 / 3))
        assert steps.loss() is kept
    steps.recordings, trainer.state.loss = None, None
    assert steps.loss() is None
    steps.flush()
    steps.begin("order")


def failure() -> Exception:
    """An error, while another one was being handled."""
    error = RuntimeError("a consequence")
    error.__context__ = ValueError("the cause")
    return error


def test_a_failure_is_said_with_its_cause_and_the_step_made_eagerly() -> None:
    _, steps, eager, recordings = captured(True, failure())
    sentence = r"^training goes on with ordinary steps, .*the cause"
    with pytest.warns(RuntimeWarning, match=sentence) as warned:
        steps.step(3, 4)
    assert len(warned) == 1 and "a consequence" not in str(warned[0].message)
    assert recordings.log[-1] == "flush" and eager.log == [("step", 3, 4, None)]
    assert steps.refused and steps.recordings is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps.step(4, 4)  # not tried again
    assert steps.rates == [0.7]


def test_a_failure_is_an_error_where_capturing_is_required() -> None:
    trainer, steps, eager, _ = captured(True, failure(), required=True)
    with pytest.raises(RuntimeError, match="a consequence"):
        steps.step(3, 4)
    assert eager.log == [] and not steps.refused and trainer.share.totals == [4]


# --- recordings ---


def test_recordings_serve_another_fit_with_their_pieces_and_like_data() -> None:
    trainer, moved = trainer_of(), data()
    host = tuple(xbp.to_numpy(array).copy() for array in moved)
    recordings = Recordings(trainer, host, moved)
    new = tuple(xbp.asarray(2 * array) for array in host)
    assert recordings.fit_again(trainer, tuple(2 * array for array in host), new)
    for old, array in zip(moved, host, strict=True):
        assert np.array_equal(xbp.to_numpy(old), 2 * array)  # copied into the recorded arrays
    shorter = xbp.asarray(host[0][:6]), new[1]
    wider = xbp.asarray(host[0].astype("float64")), new[1]
    assert not recordings.fit_again(trainer, host, shorter)
    assert not recordings.fit_again(trainer, host, wider)
    assert not recordings.fit_again(trainer, new, new)  # the user's own, on the device
    for name in ("batch_size", "part", "augment", "loss", "optimizer"):
        before = getattr(trainer, name)
        setattr(trainer, name, SimpleNamespace())
        assert not recordings.fit_again(trainer, host, new)
        setattr(trainer, name, before)
    assert recordings.fit_again(trainer, host, new)


def test_the_users_own_arrays_on_the_device_serve_if_they_are_the_same() -> None:
    trainer, own = trainer_of(), data()
    recordings = Recordings(trainer, own, own)
    assert recordings.fit_again(trainer, own, own)
    assert not recordings.fit_again(trainer, (own[0], data()[1]), (own[0], data()[1]))


def test_the_users_own_arrays_are_not_written_to() -> None:
    trainer, own = trainer_of(), data()
    kept = [xbp.to_numpy(array).copy() for array in own]
    recordings = Recordings(trainer, own, own)
    host = tuple(2 * array for array in kept)
    assert not recordings.fit_again(trainer, host, tuple(map(xbp.asarray, host)))
    for array, before in zip(own, kept, strict=True):
        assert np.array_equal(xbp.to_numpy(array), before)


def test_a_model_that_has_moved_to_another_device_is_recorded_anew() -> None:
    trainer, moved = trainer_of(), data()
    host = tuple(xbp.to_numpy(array).copy() for array in moved)
    recordings = Recordings(trainer, host, moved)
    with xbp.use_backend("array_api_strict", device="device2"):
        elsewhere = tuple(xbp.asarray(2 * array) for array in host)
    assert not recordings.fit_again(trainer, tuple(2 * array for array in host), elsewhere)
    for array, before in zip(moved, host, strict=True):
        assert np.array_equal(xbp.to_numpy(array), before)


def test_an_array_that_was_converted_may_have_changed_since() -> None:
    trainer, moved = trainer_of(), data()
    own = tuple(xbp.asarray(xbp.to_numpy(array).astype("float64")) for array in moved)
    recordings = Recordings(trainer, own, moved)
    assert not recordings.fit_again(trainer, own, data())


def test_gradients_of_the_user_are_left_to_eager_steps() -> None:
    trainer = trainer_of()
    recordings = Recordings(trainer, data(), data())
    trainer.model.bias.grad = trainer.model.bias.data
    assert recordings.step(1, 4, [0.1]) is False
    assert not recordings.by_size


def test_there_is_no_loss_before_the_first_step() -> None:
    recordings = Recordings(trainer_of(), data(), data())
    assert recordings.last_loss() is None
    recordings.flush()
