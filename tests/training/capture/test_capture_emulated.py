"""Training without recordings, and the emulation of them."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
from training.capture.trainers import (
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
from xbp.errors import NonFiniteError
from xbp.testing import emulated_graphs
from xbp.training import LambdaCallback


def test_recording_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(None)
    monkeypatch.setenv("XBP_CAPTURE", "0")
    fit(trainer)
    assert recorded_by(trainer) is None
    monkeypatch.delenv("XBP_CAPTURE")
    fit(trainer)
    assert recorded_by(trainer) is not None
    assert replayed(trainer)


@pytest.mark.usefixtures("device")
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
    # Read after 50 steps; found then, or 50 steps later if the transfer is slow.
    assert trainer.optimizer.steps in (50, 100)


# --- the emulation ---


class Baked(optim.SGD):
    """An unexpected value that changes in each step."""

    def update(self, xp: Any, p: Any, g: Any, state: Any, *numbers: Any) -> None:
        p -= 0.1 / (1 + self.steps) * g


@pytest.mark.usefixtures("device")
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
        to, source = graph.lend(y), graph.lend(x)
        to[...] = 2 * source
        source[:1] += 1

    def values() -> Any:
        return [xbp.to_numpy(array).tolist() for array in (x, y)]

    graph.record(function)
    assert values() == [[1, 2], [0, 0]]
    graph.replay()
    assert values() == [[2, 2], [2, 4]]
    x[...] = 5.0
    graph.replay()
    assert values() == [[6, 5], [10, 10]]


@pytest.mark.usefixtures("device")
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
    gc.disable()  # otherwise it would find reference cycles later
    try:
        del trainer
        assert [reference() for reference in kept] == [None] * 3
    finally:
        gc.enable()
