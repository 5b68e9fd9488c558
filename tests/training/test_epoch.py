"""An epoch in its order: what is asked of feed, stepper, share and callbacks, and its record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.errors import NonFiniteError
from xbp.training import Callback, epoch
from xbp.training.share import Whole

SIZES = (4, 4, 4, 2)
X, Y = np.ones((14, 3)), np.zeros((14, 2))


class Noting(Callback):
    def __init__(self, log: list[Any], stop_at: int = 0, saved: bool = False) -> None:
        self.log, self.stop_at, self.saved = log, stop_at, saved

    def on_fit_begin(self, trainer: Any) -> None:
        self.log.append("fit")

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        self.log.append(("epoch", epoch))

    def on_step_end(self, trainer: Any, step: int) -> None:
        assert trainer.steps_done == step
        self.log.append(("stepped", step))
        if step == self.stop_at:
            trainer.stop("enough")

    def on_epoch_end(self, trainer: Any, epoch: int, record: Any) -> None:
        assert trainer.history.records[-1] is record
        self.log.append(("record", epoch, dict(record)))
        record["seen"] = np.float32(epoch)  # becomes a number

    @contextlib.contextmanager
    def around_validation(self, trainer: Any) -> Iterator[None]:
        self.log.append("validating")
        yield
        self.log.append("validated")

    def on_not_finite(self, trainer: Any, error: Any) -> bool:
        return self.saved


class Pieces:
    """A trainer whose feed, stepper and share note what they are asked for."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        free: bool = True,
        ranks: int = 1,
        bad: int | None = None,
        **options: Any,
    ) -> None:
        self.log: list[Any] = []
        model = nn.Linear(3, 2, dtype="float64", rng=0)
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.3}]
        trainer = self.trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(groups, lr=0.1), rng=5)
        trainer.callbacks = [Noting(self.log, **options)]
        trainer.last_epoch = 1
        trainer.share = self.share(ranks)
        self.losses = SimpleNamespace(values=[0.5, np.nan], first_not_finite=self.look)
        self.bad = bad
        averages = SimpleNamespace(loss=self.losses, result=lambda: {"loss": 0.5})
        monkeypatch.setattr(epoch, "Averages", lambda *given: self.averages(given, averages))
        monkeypatch.setattr(epoch, "LOOK_EVERY", 2)
        trainer.state.averages = averages  # type: ignore[assignment]
        self.stepper: Any = SimpleNamespace(
            begin=lambda order: self.note(("begin", order)),
            step=lambda k, size, batch: self.note(("step", k, size, batch)),
            rates=[0.1, 0.3],
            finite=False,
        )
        self.feed: Any = SimpleNamespace(
            begin=lambda seed, epoch, done: self.note(("order", seed, epoch, done), "order"),
            receive=lambda k: (*SIZES, 0)[k - 1],
            release=lambda: self.note("release"),
            place=lambda order, k, size: self.note(
                ("place", order, k, size), (X, Y, np.arange(size))
            ),
            ended=lambda k: self.note(("ended", k), k == len(SIZES)),
            finish=lambda: self.note("finish"),
            batch="batch",
            free=free,
            where=" of this batch",
        )

    def note(self, what: Any, value: Any = None) -> Any:
        self.log.append(what)
        return value

    def averages(self, given: tuple[Any, ...], averages: Any) -> Any:
        trainer = self.trainer
        assert given == (trainer.loss, trainer.metrics, trainer.share)
        return self.note("averages", averages)

    def look(self, wait: bool) -> int | None:
        self.log.append(("look", wait))
        return self.bad

    def share(self, ranks: int) -> Whole:
        pieces = self

        class Noted(Whole):
            size = ranks

            def hear(self, stop: Any, *, ask: bool) -> None:
                pieces.note(("hear", stop.__name__, ask))

            def check_equal(self, model: Any) -> None:
                pieces.note("equal")

        return Noted()

    def run(self, validation: Any = None) -> list[Any]:
        epoch.train_epoch(self.trainer, self.stepper, self.feed, validation)
        return self.log


RECORD = {"epoch": 1, "lr": 0.1, "lr_1": 0.3, "loss": 0.5}


def step(k: int, *looked: Any) -> list[Any]:
    return [("step", k, SIZES[k - 1], "batch"), "release", *looked, ("stepped", k)]


def test_on_the_host_each_loss_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces(monkeypatch)
    looked = ("look", True), ("hear", "stop", False)
    steps = [part for k in range(1, 5) for part in step(k, *looked)]
    begun = ["averages", ("epoch", 1), ("order", 5, 0, 0), ("begin", "order")]
    end = [("look", True), ("ended", 4), "finish", "equal", ("record", 1, RECORD)]
    assert pieces.run() == [*begun, *steps, *end]
    state = pieces.trainer.state
    assert (state.epochs_done, state.steps_done) == (1, 0)
    assert state.history.records == [RECORD | {"seen": 1.0}]
    assert type(state.history.records[0]["seen"]) is float
    assert len(state.history.seconds) == 1 and 0 < state.history.seconds[0] < 60


def test_losses_that_are_known_to_be_finite_are_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = Pieces(monkeypatch)
    pieces.stepper.finite = True
    looked = ("look", True), ("hear", "stop", False)
    steps = [part for k in range(1, 5) for part in step(k, *(() if k % 2 else looked))]
    assert pieces.run()[4:-5] == steps
    assert pieces.log[-5] == ("look", True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_on_a_device_they_are_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Several ranks wait for them, so that all look at the same ones."""
    pieces = Pieces(monkeypatch, free=False, ranks=ranks)
    looked = ("look", ranks > 1), ("hear", "stop", True)
    steps = [part for k in range(1, 5) for part in step(k, *(() if k % 2 else looked))]
    assert pieces.run()[4:-5] == steps
    assert pieces.log[-5] == ("look", True)


def test_an_epoch_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces(monkeypatch, free=False)
    state = pieces.trainer.state
    state.epochs_done, state.steps_done, state.seconds = 3, 2, 1000.0
    log = pieces.run()
    assert log[:3] == [("order", 5, 3, 2), ("begin", "order"), ("step", 3, 4, "batch")]
    assert log[-1] == ("record", 4, RECORD | {"epoch": 4})
    assert state.epochs_done == 4 and state.history.seconds[0] > 1000


@pytest.mark.parametrize("at", [1, 4])
def test_a_stopped_epoch_counts_if_it_is_whole(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    pieces = Pieces(monkeypatch, stop_at=at)
    monkeypatch.setattr(epoch, "evaluate", lambda *args, **options: {"loss": 0.7})
    log = pieces.run(validation="held out")
    validated = {"val_loss": 0.7} if at == 4 else {}
    assert [what for what in log if what[0] == "stepped"] == [("stepped", k + 1) for k in range(at)]
    validating = ["validating", "validated"] if validated else []
    end = ("record", 1, RECORD | validated)
    assert log[log.index(("ended", at)) :] == [("ended", at), "finish", "equal", *validating, end]
    assert pieces.trainer.epochs_done == (at == 4) and pieces.trainer.steps_done == 0


def test_the_validation_is_asked_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, asked = Pieces(monkeypatch), []

    def evaluate(*given: Any, batch_size: int) -> dict[str, float]:
        asked.append((*given, batch_size))
        return {"loss": 0.7, "accuracy": 0.9}

    monkeypatch.setattr(epoch, "evaluate", evaluate)
    record = pieces.run(validation="held out")[-1][2]
    assert asked == [(pieces.trainer, "held out", 512)]
    assert record == RECORD | {"val_loss": 0.7, "val_accuracy": 0.9}


@pytest.mark.parametrize("compared", [False, True])
def test_ranks_are_compared_after_the_epoch(
    monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    pieces = Pieces(monkeypatch)
    pieces.trainer.compare_ranks = compared
    assert ("equal" in pieces.run()) == compared
    assert not compared or pieces.log[-2] == "equal"


def test_a_loss_that_is_not_finite_ends_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces(monkeypatch, bad=1)
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 1, step 2\b") as error:
        pieces.run()
    assert pieces.log[4:] == [
        ("step", 1, 4, "batch"), "release", ("look", True), ("place", "order", 1, 4), "finish",
    ]  # fmt: skip
    assert pieces.trainer.history.stopped == str(error.value)


@pytest.mark.parametrize("saved", [False, True])
def test_a_callback_may_end_training_in_place_of_the_error(
    monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    pieces = Pieces(monkeypatch, bad=1, saved=saved)
    with contextlib.nullcontext() if saved else pytest.raises(NonFiniteError):
        epoch.train(pieces.trainer, pieces.stepper, pieces.feed, None)
    assert pieces.trainer.stop_reason.startswith("the loss is nan") == saved


@pytest.mark.parametrize("validation", [None, "held out"])
@pytest.mark.parametrize("last", [False, True])
def test_parameters_are_looked_at_after_the_last_step_that_no_loss_shows(
    monkeypatch: pytest.MonkeyPatch, last: bool, validation: Any
) -> None:
    pieces = Pieces(monkeypatch)
    monkeypatch.setattr(epoch, "evaluate", lambda *args, **options: {"loss": 0.7})
    trainer = pieces.trainer
    trainer.last_epoch = 1 if last else 2
    trainer.model.weight.data[0, 0] = np.inf
    expected = pytest.raises(NonFiniteError, match=r"epoch (1|2)\b")
    with expected if validation is None else contextlib.nullcontext():
        epoch.train(trainer, pieces.stepper, pieces.feed, validation)
    assert trainer.epochs_done == trainer.last_epoch
    heard = pieces.log.count(("hear", "stop", True))
    assert heard == trainer.last_epoch - (validation is None)
    assert (trainer.history.stopped != "") == (validation is None)


@pytest.mark.parametrize("resumed", [None, "a checkpoint"])
def test_training_is_resumed_after_its_callbacks_have_begun(
    monkeypatch: pytest.MonkeyPatch, resumed: Any
) -> None:
    pieces = Pieces(monkeypatch)
    pieces.trainer.resumed = resumed
    restore = lambda trainer, checkpoint: pieces.note((trainer, checkpoint))  # noqa: E731
    monkeypatch.setattr(epoch, "restore", restore)
    epoch.train(pieces.trainer, pieces.stepper, pieces.feed, None)
    begun = ["fit", *([(pieces.trainer, resumed)] if resumed else [])]
    assert pieces.log[: len(begun) + 1] == [*begun, "averages"]


def test_a_training_that_was_stopped_before_makes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces(monkeypatch)
    pieces.trainer.stop("enough")
    epoch.train(pieces.trainer, pieces.stepper, pieces.feed, None)
    assert pieces.log == ["fit"]
