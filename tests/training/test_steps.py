"""The two kinds of steppers, and the state that they share with checkpoints and callbacks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import why_unavailable
from xbp.errors import NonFiniteError
from xbp.random import permutation
from xbp.testing import emulated_graphs
from xbp.training import Callback, LambdaCallback, Training
from xbp.training.capture import CapturedSteps, recordings_of, stepper_for
from xbp.training.metrics.averages import Averages
from xbp.training.state import Stateful, TrainingState
from xbp.training.steps import EagerSteps, Stepper

BATCH = 4
PROPERTIES = sorted(
    name
    for owner in xbp.Trainer.__mro__[:-1]
    for name, kind in vars(owner).items()
    if not name.startswith("_") and hasattr(kind, "__get__") and not callable(kind)
)


@pytest.fixture(params=["eager", "numpy", "array_api_strict", "torch"])
def capture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether steps are captured here."""
    eager = request.param == "eager"
    name = "numpy" if eager else request.param
    if reason := why_unavailable(name):
        pytest.skip(reason)
    monkeypatch.setenv("XBP_CAPTURE", "0" if eager else "1")
    with xbp.use_backend(name), nullcontext() if name == "numpy" else emulated_graphs():
        yield not eager


def data() -> Any:
    rng = np.random.default_rng(0)
    return rng.normal(size=(22, 3)).astype("float32"), np.arange(22) % 2


def trainer_of(capture: bool | None = None) -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.2), nn.Linear(4, 2, rng=1))
    optimizer = optim.Adam(model.parameters(), lr=optim.StepLR(0.1, 3, gamma=0.5))
    return xbp.Trainer(
        model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0, capture=capture
    )


def seen_from_outside(trainer: Any) -> list[Any]:
    """The objects that a trainer, its state, its stepper and its averages hold."""
    recordings = recordings_of(trainer._stepper)
    owners = [trainer, trainer.state, trainer._stepper, trainer.state.averages.loss]
    owners += [] if recordings is None else [recordings, recordings.rows]
    held = [value for owner in owners for value in vars(owner).values()]
    return [*map(id, held), *(len(value) for value in held if isinstance(value, list | dict))]


def test_the_properties_are_those_of_a_state_and_the_loss() -> None:
    assert {"current_loss", "epochs_done", "history", "seed", "stop_reason"} <= {*PROPERTIES}


@pytest.mark.parametrize("name", PROPERTIES)
def test_reading_a_property_changes_nothing(capture: bool, name: str) -> None:
    trainer, steps = trainer_of(), []

    def look(trainer: Any, step: int) -> None:
        before = seen_from_outside(trainer)
        getattr(trainer, name)
        assert seen_from_outside(trainer) == before
        steps.append(step)

    trainer.fit(*data(), batch_size=BATCH, callbacks=[LambdaCallback(on_step_end=look)])
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (recordings_of(trainer._stepper) is not None) == capture


def by_hand(trainer: Any, stepper: Stepper) -> dict[str, float]:
    """The steps of an epoch as in `fit`, without its checks and callbacks."""
    order = permutation(trainer.seed, 0, 22)
    trainer.state.averages = Averages(trainer.loss, trainer.metrics)
    stepper.begin(xbp.asarray(order))
    for k in range(1, 7):
        stepper.step(k, min(BATCH, 22 - (k - 1) * BATCH))
    stepper.flush()
    return trainer.state.averages.result()


def test_both_kinds_of_steps_are_driven_alike_and_make_what_fit_makes(capture: bool) -> None:
    fitted = trainer_of(False)
    record = fitted.fit(*data(), batch_size=BATCH).records[0]
    results, kinds = [], set()
    for wanted in {False, capture}:
        trainer = trainer_of()
        trainer.batch_size, trainer.steps_per_epoch = BATCH, 6
        moved = tuple(xbp.asarray(array) for array in data())
        stepper = trainer._stepper = stepper_for(
            trainer, data(), moved, capture=wanted, before=None, own_step=False
        )
        kinds.add(type(stepper))
        said = by_hand(trainer, stepper)
        assert float(xbp.to_numpy(stepper.loss())) == trainer.state.averages.loss.values[-1]
        assert stepper.rates == [record["lr"]]
        state = trainer.model.state_dict()
        results.append((said, {name: value.tobytes() for name, value in state.items()}))
    state = fitted.model.state_dict()
    expected = {name: record[name] for name in ("loss", "accuracy")}
    bits = {name: value.tobytes() for name, value in state.items()}
    assert results == [(expected, bits)] * len(results)
    assert kinds == {EagerSteps, CapturedSteps} if capture else kinds == {EagerSteps}


def test_what_a_fit_leaves_is_in_the_state() -> None:
    trainer = trainer_of()
    trainer.fit(*data(), epochs=2, batch_size=BATCH)
    state = trainer.state
    assert (state.epochs_done, state.steps_done, state.first_epoch) == (2, 0, 0)
    assert state.history is trainer.history
    state.begin_fit(2)
    assert (trainer.epochs_done, len(trainer.history), trainer.stop_reason) == (2, 0, "")
    trainer.stop("enough")
    trainer.stop("later")
    assert (state.stop_reason, trainer.stop_reason) == ("enough", "enough")
    trainer.seed = 7  # assignments go to the state
    assert state.seed == 7
    assert xbp.Trainer.seed is vars(Stateful)["seed"]


@pytest.mark.parametrize("failing", [False, True])
def test_eager_steps_let_go_of_the_data_after_a_fit(failing: bool) -> None:
    trainer = trainer_of(capture=False)
    x, y = data()
    if failing:
        x[3, 0] = np.nan
        with pytest.raises(NonFiniteError):
            trainer.fit(x, y)
    else:
        trainer.fit(x, y)
    assert isinstance(trainer._stepper, EagerSteps)
    assert trainer._stepper.data == (None, None)
    assert trainer.current_loss is trainer.state.loss


def pickled(trainer: xbp.Trainer) -> xbp.Trainer:
    return pickle.loads(pickle.dumps(trainer))  # type: ignore[no-any-return]


@pytest.mark.parametrize("duplicate", [pickled, copy.deepcopy])
def test_a_copy_of_a_trainer_goes_on_as_it_does(capture: bool, duplicate: Any) -> None:
    trainer = trainer_of()
    trainer.fit(*data(), batch_size=BATCH)
    if capture and duplicate is pickled and xbp.get_backend().name == "array_api_strict":
        pytest.skip("its arrays cannot be pickled")
    other = duplicate(trainer)
    assert float(xbp.to_numpy(other.current_loss)) == float(xbp.to_numpy(trainer.current_loss))
    records = [each.fit(*data(), batch_size=BATCH).records for each in (other, trainer)]
    assert records[0] == records[1]
    assert (recordings_of(other._stepper) is not None) == capture
    assert recordings_of(other._stepper) is not recordings_of(trainer._stepper) or not capture
    assert other.epochs_done == trainer.epochs_done == 2


def test_callbacks_need_no_more_of_a_trainer_than_they_are_promised() -> None:
    """All attributes of `Training` exist from the beginning of a fit to its end."""
    names = {n for kind in Training.__mro__ for n in getattr(kind, "__annotations__", {})}
    names |= {name for name in vars(Training) if not name.startswith("_")}

    class Look(Callback):
        def on_fit_begin(self, trainer: Training) -> None:
            assert [name for name in sorted(names) if not hasattr(trainer, name)] == []

        on_fit_end = on_fit_begin

    assert {"model", "stop", "current_loss", "history", "state", "resumed"} <= names
    trainer_of().fit(*data(), callbacks=[Look()])


def test_a_new_state_stands_at_the_beginning() -> None:
    state = TrainingState(3)
    assert (state.epochs_done, state.steps_done, state.loss, state.stop_reason) == (0, 0, None, "")
    assert state.stream.key == xbp.random.RandomStream(3).key


def test_the_clock_of_an_epoch_goes_on_where_an_interrupted_one_stood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([100.0, 103.0, 107.0, 200.0, 205.0])
    monkeypatch.setattr("xbp.training.state.time.perf_counter", lambda: next(now))
    trainer = trainer_of()
    state = trainer.state
    state.begin_epoch()
    assert (trainer.elapsed(), state.elapsed()) == (3.0, 7.0)
    state.steps_done, state.seconds = 5, 7.0  # as a checkpoint says
    state.begin_epoch()
    assert state.elapsed() == 12.0


def test_a_new_fit_starts_the_clock_and_drops_an_unfinished_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([100.0, 103.0])
    monkeypatch.setattr("xbp.training.state.time.perf_counter", lambda: next(now))
    state = TrainingState(0)
    state.steps_done, state.seconds = 5, 7.0
    state.begin_fit(4)
    assert (state.first_epoch, state.steps_done, state.seconds) == (4, 0, 0.0)
    state.seconds = 7.0  # of an epoch that no longer counts
    state.begin_epoch()
    assert state.elapsed() == 3.0
