"""Steps in reduced precision: recorded ones equal eager ones, also where a step is left out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from training.capture.trainers import BATCH, data, trainer_of

import xbp
from xbp.primitives.reduced import PRECISIONS
from xbp.testing import assert_no_host_sync
from xbp.training import LambdaCallback, scaling


def fitted(capture: bool, name: str, start: tuple[float, int] | None = None) -> tuple[Any, ...]:
    """History, parameters, state and scale after two epochs; and the scale after each step."""
    trainer = trainer_of(capture)
    trainer.precision = name
    if start is not None:
        trainer.scaling.load_state_dict(dict(zip(("scale", "good_steps"), start, strict=True)))
    seen: list[float] = []
    watch = LambdaCallback(on_step_end=lambda trainer, _: seen.append(trainer.loss_scale))
    x, y = data()
    trainer.fit(x, y, epochs=2, batch_size=BATCH, callbacks=[watch], verbose=False)
    arrays = trainer.model.state_dict() | trainer.optimizer.state_dict()
    return trainer.history["loss"], arrays, seen


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)


@pytest.mark.parametrize("name", PRECISIONS)
def test_recorded_steps_are_eager_ones(name: str) -> None:
    losses, arrays, _ = fitted(True, name)
    expected, others, _ = fitted(False, name)
    assert losses == expected
    assert_same(arrays, others)


def test_each_precision_has_numbers_of_its_own() -> None:
    """But float16, whose digits are those of tf32 as long as the exponent is in its range."""
    names = [name for name in PRECISIONS if name != "float16"]
    assert len({tuple(fitted(True, name)[0]) for name in names}) == len(names)


@pytest.mark.parametrize("start", [(2.0**27, 0), (2.0**16, 1995)])
def test_the_scale_of_recorded_steps(start: Any) -> None:
    """It falls until no gradient overflows, or rises after 2,000 steps."""
    losses, arrays, scales = fitted(True, "float16", start)
    expected, others, wanted = fitted(False, "float16", start)
    assert scales == wanted
    assert losses == expected
    assert_same(arrays, others)
    assert scales[0] == start[0] / 2 if start[1] == 0 else scales[3:5] == [2.0**16, 2.0**17]


def test_a_step_that_overflows_changes_nothing_but_the_scale(place: str) -> None:
    trainer = trainer_of(False)
    trainer.precision = "float16"
    there = xbp.get_backend()
    x, y = (there.asarray(array) for array in data(4))
    trainer.step(x, y)  # one that does not overflow
    model, state = trainer.model.state_dict(), trainer.optimizer.state_dict()
    trainer.scaling.load_state_dict({"scale": 2.0**60, "good_steps": 7})
    trainer.step(x, y)
    assert_same(trainer.model.state_dict(), model)
    after = trainer.optimizer.state_dict()
    counts = {key for key in state if key == "steps" or key.endswith(".count")}
    assert {key: after.pop(key) for key in counts} == {key: state.pop(key) + 1 for key in counts}
    assert_same(after, state)
    assert trainer.scaling.state_dict() == {"scale": 2.0**59, "good_steps": 0}


def test_the_first_step_may_overflow() -> None:
    """Then the optimizer's arrays are those before a first step."""
    trainer = trainer_of(False)
    trainer.precision = "float16"
    trainer.scaling.load_state_dict({"scale": 2.0**60, "good_steps": 0})
    before = trainer.model.state_dict()
    x, y = (xbp.asarray(array) for array in data(4))
    trainer.step(x, y)
    assert_same(trainer.model.state_dict(), before)
    state = trainer.optimizer.state_dict()
    assert all(np.all(value == 0) for key, value in state.items() if "count" not in key != "steps")


@pytest.mark.parametrize("finite", [True, False])
def test_no_step_waits_for_the_host(finite: bool) -> None:
    trainer = trainer_of(False)
    trainer.precision = "float16"
    trainer.scaling.load_state_dict({"scale": 1.0 if finite else 2.0**60, "good_steps": 0})
    x, y = (xbp.asarray(array) for array in data(4))
    trainer.step(x, y)
    if xbp.get_backend().name == "numpy":
        pytest.skip("the host waits for nothing")
    with assert_no_host_sync():
        trainer.step(x, y)


def test_a_new_precision_is_a_new_recording() -> None:
    x, y = data()
    both = [trainer_of(capture) for capture in (True, False)]
    for name in ("float32", "bfloat16", "float16", "bfloat16"):
        for trainer in both:
            trainer.precision = name
            trainer.fit(x, y, batch_size=BATCH, verbose=False)
        assert_same(*(trainer.model.state_dict() for trainer in both))


def test_a_precision_that_a_callback_sets() -> None:
    """In the middle of an epoch; and the same name again is a search that begins anew."""

    def run(capture: bool) -> tuple[dict[str, Any], list[float]]:
        trainer, seen = trainer_of(capture), []

        def change(trainer: Any, step: int) -> None:
            if trainer.optimizer.steps in (3, 6):
                trainer.precision = "float16"
                trainer.scaling.load_state_dict({"scale": 2.0**30, "good_steps": 0})
            seen.append(trainer.loss_scale)

        x, y = data()
        watch = LambdaCallback(on_step_end=change)
        trainer.fit(x, y, epochs=2, batch_size=BATCH, callbacks=[watch], verbose=False)
        return trainer.model.state_dict(), seen

    (one, scales), (other, wanted) = run(True), run(False)
    assert scales == wanted
    assert scales[2:6] == [2.0**30, 2.0**29, 2.0**28, 2.0**30]
    assert_same(one, other)


def test_the_scale_grows_no_further_than_the_gradients_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "PATIENCE", 2)
    _, _, scales = fitted(True, "float16", (2.0**20, 0))
    ratios = {b / a for a, b in pairwise(scales)}
    assert ratios == {0.5, 1.0, 2.0}
