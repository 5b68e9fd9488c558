"""Steps of numpy that are recorded and replayed equal eager steps, bit for bit, or are refused."""

from __future__ import annotations

import gc
import importlib.util
import math
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training.epochs import BATCH, EPOCHS, NEEDS, Epoch, trained

import xbp
import xbp.accelerators
from xbp import nn, optim
from xbp.accelerators.cpu import native
from xbp.backend import LIBRARIES, ReplayError
from xbp.errors import BackendError, InputError, NonFiniteError, OutOfMemoryError
from xbp.testing.helpers import replaced
from xbp.training import Callback, LambdaCallback, Metric
from xbp.training.capture import Phase, Recordings, recordings_of


@pytest.fixture(autouse=True)
def _on_numpy() -> Any:
    with xbp.use_backend("numpy"):
        yield


# --- everything that trains ---

NOT_RECORDED = ("weight=[",)
"""Weights of classes are no buffers."""


def test_an_epoch_with_recorded_steps_is_an_epoch(epoch: Epoch, tmp_path: Path) -> None:
    if epoch.callback in NEEDS and not importlib.util.find_spec(NEEDS[epoch.callback]):
        pytest.skip(f"needs {NEEDS[epoch.callback]}")
    without, _ = trained(epoch, False, tmp_path)
    path = tmp_path / "again"
    path.mkdir()
    try:
        captured, trainer = trained(epoch, True, path)
    except (InputError, BackendError):
        assert any(part in str(epoch) for part in NOT_RECORDED)
        captured, trainer = trained(epoch, None, path)
        assert recording_of(trainer) is None
    else:
        recordings = recording_of(trainer)
        assert recordings is not None
        assert recordings.by_size[BATCH].phase is Phase.REPLAY
    assert captured == without


def pytest_generate_tests(metafunc: Any) -> None:
    if "epoch" in metafunc.fixturenames:
        metafunc.parametrize("epoch", EPOCHS.values(), ids=str)


def recording_of(trainer: xbp.Trainer) -> Recordings | None:
    return recordings_of(trainer._stepper)


# --- a hundred steps of kernels ---

NETWORKS: dict[str, tuple[Callable[[str], nn.Layer], tuple[int, ...]]] = {
    "tanh": (lambda dtype: dense((4, 32, 16, 4), nn.Tanh, dtype), (4,)),
    "relu": (lambda dtype: dense((5, 7, 4), nn.ReLU, dtype), (5,)),
    "sigmoid": (lambda dtype: dense((3, 40, 4), nn.Sigmoid, dtype), (3,)),
    "wide": (lambda dtype: dense((300, 70, 4), nn.ReLU, dtype), (300,)),
    "images": (lambda dtype: images(dtype), (1, 8, 8)),
    # gradients of weights step by step, and by products of all steps
    "LSTM": (lambda dtype: recurrent(nn.LSTM, 17, 18, dtype), (6, 17)),
    "GRU": (lambda dtype: recurrent(nn.GRU, 3, 7, dtype), (5, 3)),
}
RULES: dict[str, Callable[[Any], optim.Optimizer]] = {
    "Adam": lambda p: optim.Adam(p, optim.OneCycleLR(0.01, 100)),
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "AdamW": lambda p: optim.AdamW(p, 0.003),
    "RMSprop": lambda p: optim.RMSprop(p, 0.002, centered=True),
}


def dense(sizes: tuple[int, ...], activation: Any, dtype: str) -> nn.Layer:
    layers: list[nn.Layer] = []
    for seed, (into, out) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(into, out, dtype=dtype, rng=seed), activation()]
    return nn.Sequential(*layers[:-1])


def recurrent(cell: Any, features: int, hidden: int, dtype: str) -> nn.Layer:
    options: dict[str, Any] = {"dtype": dtype, "rng": 0}
    layer = cell(features, hidden, **options)
    return nn.Sequential(layer, nn.LastTimeStep(), nn.Linear(hidden, 4, **options))


def images(dtype: str) -> nn.Layer:
    options: dict[str, Any] = {"dtype": dtype, "rng": 0}
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, **options), nn.BatchNorm2d(4, dtype=dtype), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, **options), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(5, 4, **options),
    )  # fmt: skip


def data(shape: tuple[int, ...], dtype: str, n: int = 330) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, *shape)).astype(dtype), rng.integers(0, 4, n)


def bits(trainer: xbp.Trainer) -> Any:
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    records = [{k: str(v) for k, v in record.items()} for record in trainer.history.records]
    return {name: np.asarray(value).tobytes() for name, value in state.items()}, records


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_hundred_steps(
    network: str, rule: str, dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "threads", lambda: threads)
    make, shape = NETWORKS[network]
    found = []
    for capture in (False, True):
        model = make(dtype)
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), RULES[rule](model.parameters()), ["accuracy"], rng=5,
            capture=capture,
        )  # fmt: skip
        trainer.fit(*data(shape, dtype), epochs=10, batch_size=32)  # 10 steps and one of 10 rows
        found.append(bits(trainer))
    assert found[0] == found[1]
    recordings = recording_of(trainer)
    assert recordings is not None
    assert {size: one.phase for size, one in recordings.by_size.items()} == {
        32: Phase.REPLAY,
        10: Phase.REPLAY,
    }


def trainer_of(capture: bool | None = None, **options: Any) -> xbp.Trainer:
    model = options.get("model") or dense((4, 8, 4), nn.Tanh, "float32")
    loss = options.get("loss") or nn.CrossEntropyLoss()
    rule = options.get("rule") or optim.Adam
    metrics = options.get("metrics", ["accuracy"])
    return xbp.Trainer(model, loss, rule(model.parameters()), metrics, rng=0, capture=capture)


def test_a_step_of_kernels_is_one_call() -> None:
    if native.library() is None:
        pytest.skip("no kernels")
    trainer = trainer_of(metrics=[])
    trainer.fit(*data((4,), "float32"), batch_size=30)
    recordings = recording_of(trainer)
    assert recordings is not None
    assert len(recordings.by_size[30].graph.calls) == 1  # type: ignore[attr-defined]


def test_without_kernels_the_calls_are_numpys() -> None:
    found = []
    for capture in (False, True):
        trainer = trainer_of(capture)
        with xbp.accelerators.disabled():
            trainer.fit(*data((4,), "float32"), epochs=2, batch_size=32)
            found.append(bits(trainer))
            assert (recording_of(trainer) is not None) == capture
    assert found[0] == found[1]


def test_kernels_switched_off_between_steps_are_noticed() -> None:
    """The next step is recorded anew."""
    found = []
    for capture in (False, True):
        trainer, blocks = trainer_of(capture), []

        def switch(trainer: xbp.Trainer, step: int, blocks: list[Any] = blocks) -> None:
            if step == 5:
                blocks.append(xbp.accelerators.disabled())
                blocks[0].__enter__()

        try:
            trainer.fit(*data((4,), "float32"), callbacks=[LambdaCallback(on_step_end=switch)])
        finally:
            blocks[0].__exit__(None, None, None)
        found.append(bits(trainer))
    assert found[0] == found[1]


# --- what is looked at ---


class Kept(Metric):
    """A user's metric, which keeps its arguments."""

    name = "kept"

    def reset(self) -> None:
        self.kept: list[Any] = []

    def update(self, prediction: Any, target: Any) -> None:
        assert type(prediction) is type(target) is np.ndarray
        self.kept.append(prediction)

    def compute(self) -> float:
        return float(np.concatenate(self.kept).sum())


def test_metrics_of_a_user_are_called_in_each_step() -> None:
    calls: list[int] = []

    def counted(prediction: Any, target: Any) -> float:
        calls.append(len(target))
        return random.Random(len(calls)).random()

    found = []
    for capture in (False, True):
        calls.clear()
        trainer = trainer_of(capture, metrics=[Kept(), counted, "f1"])
        trainer.fit(*data((4,), "float32"), epochs=2, batch_size=32)
        found.append((bits(trainer), list(calls)))
    assert found[0] == found[1]
    assert recording_of(trainer) is not None


def test_the_loss_of_each_step_can_be_looked_at() -> None:
    found: list[list[float]] = []
    for capture in (False, True):
        losses: list[float] = []
        look = LambdaCallback(on_step_end=lambda t, s, to=losses: to.append(float(t.current_loss)))
        trainer_of(capture).fit(*data((4,), "float32"), epochs=2, callbacks=[look])
        found.append(losses)
    assert found[0] == found[1]


def test_a_loss_that_is_not_finite_ends_training_before_the_update() -> None:
    messages, found = [], []
    for capture in (False, True):
        trainer = trainer_of(capture)

        def spoil(trainer: xbp.Trainer, step: int) -> None:
            if step == 6:
                next(iter(trainer.model.parameters())).data[0, 0] = math.nan

        x, y = data((4,), "float32")
        with pytest.raises(NonFiniteError) as error:
            trainer.fit(x, y, batch_size=8, callbacks=[LambdaCallback(on_step_end=spoil)])
        assert trainer.optimizer.steps == 6
        messages.append(str(error.value))
        found.append(bits(trainer)[0])
    assert "step 7" in messages[0]
    assert messages[0] == messages[1]
    assert found[0] == found[1]


def test_a_label_that_is_no_class_is_named() -> None:
    messages = []
    for capture in (False, True):
        x, y = data((4,), "float32")

        def spoil(trainer: xbp.Trainer, step: int, y: Any = y) -> None:
            if step == 6:
                y[:] = 9

        callbacks = [LambdaCallback(on_step_end=spoil)]
        with pytest.raises(InputError, match="labels from 0 to 3") as error:
            trainer_of(capture).fit(x, y, batch_size=8, callbacks=callbacks)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_only_the_same_data_are_replayed_in_the_next_fit() -> None:
    x, y = data((4,), "float32")
    trainer, eager = trainer_of(), trainer_of(False)
    trainer.fit(x, y)
    before = recording_of(trainer)
    trainer.fit(x, y)
    assert recording_of(trainer) is before
    mine = x.copy()
    trainer.fit(2 * x, y)  # not copied into the first data, which are the user's own
    assert recording_of(trainer) is not before
    assert np.array_equal(x, mine)
    for scale in (1, 1, 2):
        eager.fit((scale * x).astype("float32"), y)
    assert bits(trainer)[0] == bits(eager)[0]


# --- memory ---


def test_a_recording_keeps_its_memory_and_takes_no_more() -> None:
    trainer = trainer_of(metrics=[])
    x, y = data((4,), "float32", 3200)
    taken: list[int] = []

    def look(trainer: xbp.Trainer, step: int) -> None:
        if step % 400 == 399:  # seldom, as a collection takes long in a process of many tests
            gc.collect()
            taken.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        trainer.fit(x, y, epochs=4, batch_size=4, callbacks=[LambdaCallback(on_step_end=look)])
    finally:
        tracemalloc.stop()
    assert len(taken) == 4 * 2
    assert max(taken[2:]) - taken[1] < 100_000  # numbers of losses, 40 bytes each
    trainer._stepper = None


def test_no_recorded_array_is_left() -> None:
    trainer = trainer_of()
    trainer.fit(*data((4,), "float32"))
    optimizer = trainer.optimizer
    arrays = [p.data for p in optimizer.parameters]
    arrays += [array for state in optimizer.state for array in state.values()]
    recordings = recording_of(trainer)
    assert recordings is not None
    rows = recordings.rows
    arrays += [rows.order, rows.slot, rows.places, *rows.coefficients.values(), *recordings.data]
    for recording in recordings.by_size.values():
        arrays += recording.rows.values()
    assert {type(array) for array in arrays} == {np.ndarray}
    assert all(p.grad is None for p in optimizer.parameters)


# --- what is refused ---


class Clock(nn.Layer):
    """A user's layer, which may do anything."""

    calls = 0

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        Clock.calls += 1
        factor = 1 + 1 / Clock.calls
        return factor * x, lambda dy: factor * dy


class Mine(optim.SGD):
    def update(self, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        p -= 0.1 / (1 + self.steps) * g


def with_a_hook() -> nn.Layer:
    model = dense((4, 8, 4), nn.Tanh, "float32")
    last = model.layers[-1]  # type: ignore[attr-defined]
    forward = last.forward
    last.forward = lambda x, **options: forward(x, **options)
    return model


def with_a_step_around(p: Any) -> optim.Optimizer:
    optimizer = optim.SGD(p, 0.1)
    step = optimizer.step
    optimizer.step = lambda *given: step(*given)  # type: ignore[method-assign]
    return optimizer


def large() -> nn.Layer:
    return dense((4, 2000, 1000, 4), nn.ReLU, "float32")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a layer": ({"model": lambda: nn.Sequential(nn.Linear(4, 4, rng=0), Clock())}, "^Clock may"),
    "a loss": ({"loss": lambda: lambda y, t: nn.CrossEntropyLoss()(y, t)}, "^<lambda> may compute"),
    "an optimizer": ({"rule": lambda: lambda p: Mine(p, 0.1)}, "^Mine may compute"),
    "a forward of one's own": ({"model": with_a_hook}, "^Linear may compute"),
    "a step around another": ({"rule": lambda: with_a_step_around}, "^SGD may compute something"),
    "a large model": ({"model": large}, "more than 4 MiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_code_that_is_not_xbps_runs_as_ever_and_without_a_word(name: str) -> None:
    options, reason = REFUSED[name]
    found = []
    for capture in (False, None):
        Clock.calls = 0
        trainer = trainer_of(capture, **{key: make() for key, make in options.items()})
        trainer.fit(*data((4,), "float32"), epochs=2)  # a warning would be an error
        found.append(bits(trainer))
        assert recording_of(trainer) is None
    assert found[0] == found[1]
    trainer = trainer_of(True, **{key: make() for key, make in options.items()})
    with pytest.raises(InputError, match=reason) as error:
        trainer.fit(*data((4,), "float32"))
    assert "\n" not in str(error.value)


def test_an_augmentation_of_a_user_is_called_in_each_step() -> None:
    calls: list[int] = []

    def noisy(x: Any, y: Any, *, rng: Any) -> Any:
        calls.append(len(x))
        return x + np.float32(len(calls)), y

    trainer_of().fit(*data((4,), "float32"), epochs=2, batch_size=33, augment=noisy)
    assert calls[1:] == [33] * 20  # the first call is a trial
    with pytest.raises(InputError, match=r"^noisy may compute something else in each step"):
        trainer_of(True).fit(*data((4,), "float32"), augment=noisy)
    both = xbp.data.Compose(xbp.data.Compose(noisy))
    with pytest.raises(InputError, match=r"^noisy may compute something else in each step"):
        trainer_of(True).fit(*data((4,), "float32"), augment=both)


def test_a_step_or_a_method_that_is_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, calls = trainer_of(), []
    step = trainer.step
    trainer.step = lambda x, y: (calls.append(len(x)), step(x, y))[1]  # type: ignore[method-assign]
    trainer.fit(*data((4,), "float32"), batch_size=33)
    assert calls == [33] * 10
    plain, seen = nn.Sequential.forward, []

    def forward(self: Any, x: Any, **options: Any) -> Any:
        seen.append(len(x))
        return plain(self, x, **options)

    monkeypatch.setattr(nn.Sequential, "forward", forward)
    trainer = trainer_of()
    trainer.fit(*data((4,), "float32"), batch_size=33)
    assert seen[-10:] == [33] * 10
    assert recording_of(trainer) is None


def test_a_library_without_a_graph_makes_eager_steps() -> None:
    with replaced(LIBRARIES["numpy"], graph=lambda device: None):
        trainer = trainer_of()
        trainer.fit(*data((4,), "float32"))
        assert recording_of(trainer) is None
        with pytest.raises(InputError, match=r"capture=True needs numpy or a GPU.*numpy \(cpu\)"):
            trainer_of(True).fit(*data((4,), "float32"))


def test_gradients_that_are_left_are_added_in_an_eager_step() -> None:
    found = []
    for capture in (False, True):
        trainer = trainer_of(capture)

        def add(trainer: xbp.Trainer, step: int) -> None:
            if step in (4, 7):
                for p in trainer.model.parameters():
                    p.add_grad(0.1 * p.data)

        trainer.fit(*data((4,), "float32"), callbacks=[LambdaCallback(on_step_end=add)])
        found.append(bits(trainer))
    assert found[0] == found[1]


class Replacing(Callback):
    """New arrays in the place of old ones, and other options, between steps."""

    def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
        parameters = list(trainer.model.parameters())
        if step == 3:
            parameters[0].data = 2 * parameters[0].data
        if step == 5:
            state = trainer.optimizer.state[1]
            state["m"] = 3 * state["m"]
        if step == 7:
            trainer.optimizer.betas = (0.5, 0.9)  # type: ignore[attr-defined]
        if step == 9:
            parameters[1].data += 1.0


def test_what_is_replaced_between_steps_is_noticed() -> None:
    found = []
    for capture in (False, True):
        trainer = trainer_of(capture)
        trainer.fit(*data((4,), "float32"), epochs=2, batch_size=16, callbacks=[Replacing()])
        found.append(bits(trainer))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("cause", "raised", "said"),
    [
        (IndexError("no row"), ReplayError, r"^a recorded step has failed \(IndexError"),
        (MemoryError("no room"), OutOfMemoryError, "^a step with batch size 32 needs too much"),
    ],
)
def test_a_replay_that_fails_is_no_reason_for_another_step(
    cause: Exception, raised: type[Exception], said: str
) -> None:
    """Its changes may be half made."""

    def fail() -> None:
        raise cause

    def spoil(trainer: xbp.Trainer, step: int) -> None:
        recordings = recording_of(trainer)
        assert recordings is not None
        assert trainer._stepper.finite  # type: ignore[union-attr]
        if step == 6:
            recordings.by_size[32].graph.calls.append(fail)  # type: ignore[attr-defined]

    callbacks = [LambdaCallback(on_step_end=spoil)]
    with pytest.raises(raised, match=said):
        trainer_of().fit(*data((4,), "float32"), callbacks=callbacks)


def test_large_data_are_let_go_of_after_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xbp.training.capture.KEPT", 100)
    trainer, eager = trainer_of(), trainer_of(False)
    for each in (trainer, eager):
        each.fit(*data((4,), "float32"))
    assert recording_of(trainer) is None
    assert float(trainer.current_loss) == float(eager.current_loss)
    assert trainer.fit(*data((4,), "float32")).records == eager.fit(*data((4,), "float32")).records


def test_gradients_outside_of_the_optimizer_are_arrays_of_numpy() -> None:
    found = []
    for wanted in (False, None):
        model = dense((4, 8, 4), nn.Tanh, "float32")
        first, *others = model.parameters()
        with pytest.warns(UserWarning, match="optimizer"):
            trainer = xbp.Trainer(
                model, nn.CrossEntropyLoss(), optim.SGD(others, 0.1), rng=0, capture=wanted
            )
        trainer.fit(*data((4,), "float32"))
        assert type(first.grad) is np.ndarray
        found.append((bits(trainer), first.grad.tobytes()))
    assert found[0] == found[1]
