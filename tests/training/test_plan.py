"""The plan of a `fit`, and what must be the same for all processes that train together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.door import inputs, make

from xbp import nn
from xbp.data import Arrays
from xbp.errors import InputError
from xbp.training import Callback, EarlyStopping
from xbp.training.plan import Plan, facts, make_plan

N = 12
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 4, "accumulate": 1, "drop_last": False}
MORE: dict[str, Any] = {"accumulate": 1, "drop_last": False, "resume": None}


def data(n: int = N) -> tuple[Any, Any]:
    return inputs(n), np.arange(n) % 3


def plan_of(pair: Any = None, validation: Any = None, callbacks: Any = (), **options: Any) -> Plan:
    x, y = pair or data()
    arguments = {"validation_data": validation, "callbacks": callbacks, "resume": None}
    return make_plan(make(metrics=["accuracy"]), x, y, **{**OPTIONS, **arguments, **options})


@pytest.mark.parametrize("source", [False, True])
def test_a_plan_holds_the_arguments(source: bool) -> None:
    pair = (Arrays(*data()), None) if source else data()
    held = data(600)
    plan = plan_of(pair, Arrays(*held) if source else held, [EarlyStopping("val_loss")])
    feed, validation = plan.feed, plan.validation
    assert (feed.samples, feed.batch_size, feed.steps, feed.drop_last) == (N, 4, 3, False)
    assert validation is not None and validation.samples == 600
    assert validation.batch_size == 512
    assert (plan.epochs, plan.part, plan.may_have_more, plan.resumed) == (3, 0, False, None)
    assert plan.expected == ["epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [type(callback) for callback in plan.callbacks] == [EarlyStopping]


def test_without_validation_none_is_expected() -> None:
    plan = plan_of(callbacks=[Callback()])
    assert plan.validation is None
    assert plan.expected == ["epoch", "lr", "loss", "accuracy"]


@pytest.mark.parametrize(("times", "part"), [(1, 0), (2, 4), (3, 4)])
def test_the_parts_of_an_accumulated_step(times: int, part: int) -> None:
    plan = plan_of(accumulate=times)
    assert (plan.feed.batch_size, plan.part) == (4 * times, part)


def changed(index: int, row: int) -> Any:
    pair = data()
    pair[index][row] = pair[index][row - 1]
    return pair


CALLBACKS = [EarlyStopping("loss"), Callback()]
AGREED = {
    "the first sample": {"pair": changed(0, 0)},
    "the first sample, its target": {"pair": changed(1, 0)},
    "the last sample, of the data or of the first batch,": {"pair": changed(0, -1)},
    "the last sample, of the data or of the first batch,, its target": {"pair": changed(1, -1)},
    "batch_size": {"batch_size": 5},
    "batch_size, accumulated": {"batch_size": 2, "accumulate": 2},
    "batch_size, the last one": {"drop_last": True},
    "epochs": {"epochs": 4},
    "the validation": {"validation": changed(0, 0)},
    "the validation, fewer": {"validation": data(5)},
    "the list of callbacks": {"callbacks": CALLBACKS},
    "the list of callbacks, in order": {"callbacks": CALLBACKS[::-1]},
}


@pytest.mark.parametrize("case", AGREED)
def test_each_fact_is_of_its_own_argument(case: str) -> None:
    """Plans that differ in one argument differ in one fact; equal ones in none."""
    options = AGREED[case]
    usual = {"validation": data(), "callbacks": [EarlyStopping("loss"), EarlyStopping("loss")]}
    one, other, third = (facts(plan_of(**{**usual, **more})) for more in ({}, {}, options))
    assert one == other
    differing = [name for name in one if one[name] != third[name]]
    assert differing == [next(name for name in one if case.startswith(name))]
    assert one.keys() == third.keys()


def test_facts_are_of_the_first_sample_and_of_the_last_alone() -> None:
    one, other = (facts(plan_of(pair, pair)) for pair in (data(), changed(0, 1)))
    assert one == other


def test_facts_about_the_number_of_samples_and_a_checkpoint() -> None:
    plan = plan_of()
    assert facts(plan)["the number of samples"] == N
    assert (facts(plan)["the validation"], facts(plan)["the checkpoint"]) == (None, None)
    resumed: Any = SimpleNamespace(steps=7, position={"steps_done": 2})
    assert facts(plan._replace(resumed=resumed))["the checkpoint"] == (7, {"steps_done": 2})


def test_the_last_batch_of_one_sample_is_that_of_the_parts() -> None:
    """Batch norm refuses to train on one sample: nine samples in parts of two or four end so."""

    def planned(n: int, batch_size: int, **options: Any) -> Plan:
        trainer = make()
        trainer.model = nn.Sequential(trainer.model, nn.BatchNorm1d(3, dtype="float64"))
        options = {"validation_data": None, "callbacks": (), "resume": None, **options}
        return make_plan(trainer, *data(n), **{**OPTIONS, **options, "batch_size": batch_size})

    for batch_size, options in ((4, {}), (4, {"accumulate": 2}), (2, {"accumulate": 2})):
        sentence = rf"one sample, the rest of 9 in batches of {batch_size}, with"
        with pytest.raises(InputError, match=sentence):
            planned(9, batch_size, **options)
    planned(9, 4, drop_last=True)
    for n, batch_size in ((9, 3), (8, 3), (9, 9), (9, 10)):
        planned(n, batch_size)
    planned(1, 4)  # no other batch comes before it: leaving it out is no way


def test_each_check_is_given_what_it_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "check_augmentation",
        "check_forward",
        "check_alike",
        "check_schedule",
        "check_last_batch",
    )
    seen: dict[str, tuple[Any, ...]] = {}
    for name in names:
        note = lambda *given, name=name, **more: seen.update({name: (*given, more)})  # noqa: E731
        monkeypatch.setattr(f"xbp.training.plan.{name}", note)
    trainer, callbacks = make(), [Callback()]
    trainer.optimizer.steps = 7
    plan = make_plan(trainer, *data(), 3, 4, data(5), callbacks, **MORE)
    validation = plan.validation
    assert validation is not None
    assert seen == {
        "check_augmentation": (trainer, plan.feed.example, {}),
        "check_forward": (trainer.model, plan.feed.example[0], {}),
        "check_alike": (validation.example, plan.feed.example, {}),
        "check_schedule": (trainer.optimizer, callbacks, range(7, 7 + 9), {"open_end": False}),
    }
    plan = make_plan(trainer, *data(), 1, N - 1, None, callbacks, **MORE)
    assert seen["check_last_batch"] == (trainer.model, plan.feed.example[0], N, N - 1, {})
    batches = [tuple(array[:4] for array in data())] * 3
    make_plan(trainer, (batch for batch in batches), None, 1, 4, None, callbacks, **MORE)
    assert seen["check_schedule"][-1] == {"open_end": True}


def test_a_checkpoint_says_where_its_data_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = SimpleNamespace(steps_done=2, steps=5, epochs_done=1, first_epoch=0)
    monkeypatch.setattr("xbp.training.plan.open_checkpoint", {"a folder": resumed}.get)
    entries: list[int] = []
    monkeypatch.setattr("xbp.training.feeds.Resident.check_entry", lambda _, k: entries.append(k))
    plan = plan_of(resume="a folder")
    assert plan.resumed is resumed and entries == [2]
