"""Captured steps equal eager steps, bit for bit, whatever happens between them."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import why_unavailable
from xbp.errors import InputError, NonFiniteError
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.testing.cases import RULES, Rule
from xbp.training import Callback, Checkpoints, EarlyStopping, LambdaCallback, Metric, rows
from xbp.training.capture import Phase, Recordings, recordings_of

SAMPLES, BATCH = 30, 4  # seven steps, and one with the last two samples


@pytest.fixture(autouse=True, params=["array_api_strict", "torch", "cupy"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where steps are recorded: by CuPy, or as it would."""
    if reason := why_unavailable(request.param):
        pytest.skip(reason)
    with xbp.use_backend(request.param), emulated_graphs():
        yield request.param


def data(n: int = SAMPLES, features: int = 5) -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return (rng.normal(size=(n, features)) + y[:, None]).astype("float32"), y


def network(*more: nn.Layer, dropout: float = 0.3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8, rng=0), nn.ReLU(), nn.Dropout(dropout), *more, nn.Linear(8, 3, rng=1)
    )


def adam(model: nn.Layer) -> optim.Optimizer:
    return optim.Adam(model.parameters(), lr=optim.OneCycleLR(0.02, 30))


def trainer_of(
    capture: bool | None,
    model: nn.Layer | None = None,
    optimizer: Callable[[nn.Layer], optim.Optimizer] = adam,
    metrics: Any = ("accuracy",),
) -> xbp.Trainer:
    model = model or network()
    loss = nn.CrossEntropyLoss()
    return xbp.Trainer(model, loss, optimizer(model), metrics, rng=7, capture=capture)


def result(trainer: xbp.Trainer) -> dict[str, Any]:
    """All that training has changed, in bits."""
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    return {name: (np.shape(a), np.asarray(a).tobytes()) for name, a in state.items()}


def replayed(trainer: xbp.Trainer) -> bool:
    recordings = recorded_by(trainer)
    return recordings is not None and recordings.by_size[BATCH].phase is Phase.REPLAY


def recorded_by(trainer: xbp.Trainer) -> Recordings | None:
    return recordings_of(trainer._stepper)


def check_same(run: Callable[[xbp.Trainer], Any], **options: Any) -> xbp.Trainer:
    """What `run` does with a trainer comes out the same, recorded and not."""
    eager, fast = (trainer_of(capture, **options) for capture in (False, True))
    for trainer in (eager, fast):
        trainer.done = run(trainer)  # type: ignore[attr-defined]
    assert recorded_by(eager) is None
    assert fast.history.records == eager.history.records
    assert fast.history.stopped == eager.history.stopped
    assert result(fast) == result(eager)
    assert fast.done == eager.done  # type: ignore[attr-defined]
    return fast


def fit(trainer: xbp.Trainer, epochs: int = 2, **options: Any) -> Any:
    return trainer.fit(*data(), epochs=epochs, batch_size=BATCH, **options).records


# --- what they compute ---


@pytest.mark.parametrize("place", ["torch"], indirect=True)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_optimizer(rule: Rule) -> None:
    assert replayed(check_same(fit, optimizer=lambda model: rule(model.parameters())))


def convolutional() -> nn.Layer:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, rng=1),
        nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3, rng=2),
    )  # fmt: skip


def recurrent() -> nn.Layer:
    return nn.Sequential(
        nn.RNN(4, 6, rng=0), nn.LastTimeStep(), nn.Dropout(0.2), nn.Linear(6, 3, rng=1)
    )


def lstm() -> nn.Layer:
    return nn.Sequential(nn.LSTM(4, 6, rng=0), nn.LastTimeStep(), nn.Linear(6, 3, rng=1))


MODELS = [(convolutional, (1, 8, 8)), (recurrent, (5, 4)), (lstm, (5, 4))]


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_every_kind_of_network(make: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(14, *shape)).astype("float32")
    results = []
    for capture in (False, True):
        trainer = trainer_of(capture, make())
        trainer.fit(x, np.arange(14) % 3, epochs=3, batch_size=4)
        results.append((result(trainer), trainer.history.records))
    assert results[0] == results[1]
    assert replayed(trainer)


def test_more_steps_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS", 5)
    check_same(fit)


def test_random_words_of_a_late_step() -> None:
    """The counter's high word is not 0 there."""

    def late(trainer: xbp.Trainer) -> Any:
        trainer.optimizer.steps = 2**32 - 5
        return fit(trainer)

    check_same(late, optimizer=lambda model: optim.SGD(model.parameters(), 0.1, momentum=0.9))


@pytest.mark.parametrize("metrics", [["f1", "accuracy"], [xbp.training.accuracy], []])
def test_metrics(metrics: Any) -> None:
    fast = check_same(fit, metrics=metrics)
    for metric in fast.metrics.values():
        assert metric.compute() == fast.history[metric.name][-1]


class Kept(Metric):
    """Keeps what it is given, as a metric may."""

    name = "spread"

    def reset(self) -> None:
        self.kept: list[Any] = []

    def update(self, prediction: Any, target: Any) -> None:
        self.kept.append((prediction, target))

    def compute(self) -> float:
        rows = [xbp.to_numpy(p)[:, 0] * xbp.to_numpy(t) for p, t in self.kept]
        return float(np.concatenate(rows).sum())


def test_a_metric_that_keeps_predictions_keeps_those_of_its_step() -> None:
    check_same(fit, metrics=[Kept()])


# --- what happens between them ---


def test_no_step_of_an_epoch_waits_for_the_device(place: str) -> None:
    """Inside are all steps of two epochs and what is between them: batches, masks, rates, metrics,
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

    x, y = data(n=2 * 52)  # a look at the losses in each epoch
    for capture in (False, True):
        trainer = trainer_of(capture, metrics=["accuracy", "f1"])
        trainer.fit(x, y, epochs=2, batch_size=2, validation_data=(x, y), callbacks=[Guard()])
        momentum = lambda model: optim.SGD(model.parameters(), 0.1, momentum=0.9)  # noqa: E731
        trainer_of(capture, optimizer=momentum).fit(x, y, batch_size=2, callbacks=[Guard()])
    assert steps == [*range(1, 53)] * 6


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
    """Other numbers, then another shape, dtype, batch size; from the host or from the device."""

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
    """Training with `change` after some step, unknown to recordings."""

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
    """In place of the first one, which is looked at from then on."""
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
    """Its bias corrections are those of its first updates, where the others' are of later ones."""

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
        again = trainer_of(not trainer.capture)  # a checkpoint does not know how it was made
        fit(again, 3, resume=folder / "step-00000005.safetensors")
        assert result(again) == result(later)
        assert again.history.records == later.history.records
        return later.history.records, result(later)

    check_same(run)


# --- the states of a recording ---


def test_a_recording_warms_up_records_and_replays_until_it_is_stale() -> None:
    """What the next step does, seen after each step of batches of one size."""
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
    """A rule that is given the rate and the step."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        lr, t = numbers
        p -= lr / t * g


class OwnStep(optim.SGD):
    def step(self, numbers: Any = None) -> None:
        super().step()


class Reading(nn.Layer):
    """Reads a value, as a layer should not."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        if training and float(x[0, 0]) > 1e9:
            raise AssertionError
        return x, lambda dy: dy


class Placing(nn.Layer):
    """Draws numbers on the host."""

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        noise = np.random.default_rng(0).normal(size=tuple(x.shape)).astype(np.float32)
        return x + xbp.asarray(noise), lambda dy: dy


class Counting(nn.Layer):
    """Another function in each step."""

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
    fit(fallen)  # without another warning, which would be an error
    assert "\n" not in str(caught[0].message)
    fit(eager)
    assert fallen.history.records == eager.history.records
    assert result(fallen) == result(eager)
    with pytest.raises((InputError, RuntimeError), match=reason):  # a RecordingError is one, too
        fit(strict)


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
    class Late(nn.Layer):
        """Refuses to be recorded after the others, and after the optimizer's first updates."""

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


# --- when there are none ---


def test_recording_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(None)
    monkeypatch.setenv("XBP_CAPTURE", "0")
    fit(trainer)
    assert recorded_by(trainer) is None
    monkeypatch.delenv("XBP_CAPTURE")
    fit(trainer)
    assert recorded_by(trainer) is not None
    assert replayed(trainer)


def test_numpy_has_no_graphs() -> None:
    with xbp.use_backend("numpy"):
        trainer = trainer_of(None)
        fit(trainer)
        assert recorded_by(trainer) is None
        with pytest.raises(InputError, match=r"capture=True needs a GPU.*numpy \(cpu\)"):
            fit(trainer_of(True))


def test_a_loss_that_is_not_finite_is_found_within_the_epoch() -> None:
    class Poison(nn.Layer):
        def __init__(self) -> None:
            self.factor = 1.0

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            factor = self.factor
            return factor * x, lambda dy: factor * dy

    poison = Poison()
    trainer = trainer_of(True, network(poison))

    def act(trainer: xbp.Trainer, step: int) -> None:
        if step == 20:
            poison.factor = math.nan

    x, y = data(1000)
    spoil = LambdaCallback(on_step_end=act)
    with pytest.raises(NonFiniteError, match="nan in epoch 1, step 21") as error:
        trainer.fit(x, y, batch_size=4, callbacks=[spoil])
    assert "\n" not in str(error.value)
    # Looked for after 50 steps; found then, or where it takes its time, after 50 more.
    assert trainer.optimizer.steps in (50, 100)


# --- the emulation ---


class Baked(optim.SGD):
    """A number that changes from step to step, where none is expected."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        p -= 0.1 / (1 + self.steps) * g


def test_a_frozen_number_is_noticed() -> None:
    baked = lambda model: Baked(model.parameters(), lr=0.1)  # noqa: E731
    eager, fast = (trainer_of(capture, optimizer=baked) for capture in (False, True))
    assert fit(eager) != fit(fast)
    assert result(eager) != result(fast)


def test_recording_computes_nothing_for_good() -> None:
    graph = xbp.backend.graph_for(xbp.asarray([0.0]))
    assert graph is not None
    x, y = xbp.asarray([1.0, 2.0]), xbp.asarray([0.0, 0.0])

    def function() -> None:
        y[...] = 2 * x
        x[:1] += 1

    def values() -> Any:
        return [xbp.to_numpy(array).tolist() for array in (x, y)]

    graph.record(function)
    assert values() == [[1, 2], [0, 0]]
    graph.replay()
    assert values() == [[2, 2], [2, 4]]
    x[...] = 5.0
    graph.replay()
    assert values() == [[6, 5], [10, 10]]


def test_what_is_emulated_ends_with_the_block(place: str) -> None:
    if place == "cupy":
        pytest.skip("nothing is emulated there")
    library = xbp.backend.LIBRARIES[place]
    assert "graph" in vars(library)
    with emulated_graphs():
        pass
    assert "graph" in vars(library)


def test_another_loss_takes_other_steps() -> None:
    def fits(trainer: xbp.Trainer) -> Any:
        fit(trainer)
        before, read = recorded_by(trainer), []
        trainer.loss = nn.CrossEntropyLoss("sum")
        look = LambdaCallback(on_fit_begin=lambda t: read.append(xbp.to_numpy(t.current_loss)))
        fit(trainer, callbacks=[look])
        assert before is None or recorded_by(trainer) is not before
        return float(read[0])

    check_same(fits)


def test_what_a_trainer_had_on_the_device_is_free_when_it_goes() -> None:
    trainer = trainer_of(True)
    assert trainer.current_loss is None
    fit(trainer, callbacks=[LambdaCallback(on_fit_begin=lambda t: t.current_loss)])
    recordings = recorded_by(trainer)
    assert recordings is not None
    kept: list[Any] = [weakref.ref(recordings)]
    kept += [weakref.ref(recording.graph) for recording in recordings.by_size.values()]
    del recordings
    gc.disable()  # which would find circles of references, but not in time
    try:
        del trainer
        assert [reference() for reference in kept] == [None] * 3
    finally:
        gc.enable()
