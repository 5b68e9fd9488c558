"""State between two calls of `fit`, after an error, in the terminal, in signal handlers."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import DataError, InputError, NonFiniteError
from xbp.training import (
    Callback,
    Checkpoints,
    Convergence,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    TerminateOnNaN,
    load_weights,
)


def data() -> tuple[NDArray[Any], NDArray[Any]]:
    x = np.random.default_rng(0).normal(size=(12, 2))
    return x, x[:, :1].copy()


def make() -> xbp.Trainer:
    model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0))
    return xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.01), rng=0)


class Told(Callback):
    """A callback that puts one value per epoch, over all calls, into the records."""

    call_order = -1

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def on_epoch_end(self, trainer: xbp.Trainer, epoch: int, record: dict[str, float]) -> None:
        record["val_loss"] = next(self.values)


# --- state between two calls ---


def test_the_best_file_outlives_a_second_fit(tmp_path: Path) -> None:
    trainer, path = make(), tmp_path / "best.safetensors"
    callbacks = [Told(0.5, 0.2, 0.9, 0.8, 0.1), ModelCheckpoint(path, "val_loss", "min", True)]
    trainer.fit(*data(), 2, callbacks=callbacks)
    best = path.read_bytes()
    trainer.fit(*data(), 2, callbacks=callbacks)
    make().fit(*data(), callbacks=[Told(0.3), callbacks[1]])  # nor does another trainer
    assert path.read_bytes() == best
    trainer.fit(*data(), callbacks=callbacks)
    assert path.read_bytes() != best
    make().fit(*data(), callbacks=[Told(7.0), ModelCheckpoint(path, save_best_only=True)])
    assert load_weights(path)  # a new object starts from the beginning


def test_the_best_checkpoint_outlives_a_second_fit(tmp_path: Path) -> None:
    trainer, best = make(), tmp_path / "best.safetensors"
    callbacks = [Told(0.5, 0.2, 0.9, 0.8), Checkpoints(tmp_path, monitor="val_loss")]
    trainer.fit(*data(), 2, callbacks=callbacks)
    content = best.read_bytes()
    trainer.fit(*data(), 2, callbacks=callbacks)
    assert best.read_bytes() == content


def test_early_stopping_begins_anew() -> None:
    trainer, stop = make(), EarlyStopping(patience=2)
    told = Told(0.1, 0.2, 0.3, 0.9, 0.8, 0.85, 0.86, 0.87)
    assert len(trainer.fit(*data(), 9, callbacks=[told, stop])) == 3
    assert len(trainer.fit(*data(), 9, callbacks=[told, stop])) == 4
    assert stop.best == 0.8


def test_convergence_begins_anew() -> None:
    trainer, stop = make(), Convergence(0.01, "val_loss")
    for _ in range(2):
        assert len(trainer.fit(*data(), 9, callbacks=[Told(0.5, 0.1, 0.1), stop])) == 3


def test_an_epoch_that_was_stopped_is_begun_anew() -> None:
    seen: list[int] = []
    halt = LambdaCallback(on_step_end=lambda trainer, step: trainer.stop("enough"))
    trainer, steps = make(), LambdaCallback(on_step_end=lambda trainer, step: seen.append(step))
    trainer.fit(*data(), 1, 4, callbacks=[halt, steps])
    assert (seen, trainer.epochs_done) == ([1], 0)
    trainer.fit(*data(), 1, 4, callbacks=[steps])
    assert (seen, trainer.epochs_done) == ([1, 1, 2, 3], 1)


def test_a_step_that_failed_leaves_no_gradients() -> None:
    class Fails(optim.SGD):
        def step(self, numbers: Any = None) -> None:
            if broken:
                raise RuntimeError("on purpose")
            super().step(numbers)

    broken = False
    trainers = [make(), make()]
    for trainer in trainers:
        trainer.optimizer = Fails(trainer.model.parameters(), 0.01)
    broken = True
    with pytest.raises(RuntimeError, match="on purpose"):
        trainers[0].fit(*data())
    broken = False
    first, second = (trainer.fit(*data()).records for trainer in trainers)
    assert first == second
    a, b = (trainer.model.state_dict()["0.weight"] for trainer in trainers)
    assert np.array_equal(a, b)


# --- nan neither improves nor resets patience ---

NAN = math.nan
CURVES = [
    ([NAN] * 9, 3),
    ([0.5, NAN, NAN, NAN, 0.1], 4),
    ([0.5, NAN, 0.4, NAN, NAN, 0.45, 0.1], 6),
    ([NAN, 0.5, NAN, NAN, NAN], 5),
    ([math.inf, math.inf, math.inf, 0.1], 3),
    ([-math.inf, 0.5, 0.4, 0.5, 0.5, 0.5], 6),
    ([NAN, NAN, 0.5, 0.4, 0.3], 5),
]


@pytest.mark.parametrize(("curve", "epochs"), CURVES)
@pytest.mark.parametrize("earlier", [0, 4])
def test_what_is_no_number_is_no_improvement(
    curve: list[float], epochs: int, earlier: int, tmp_path: Path
) -> None:
    trainer = make()
    if earlier:
        trainer.fit(*data(), earlier)
    best = ModelCheckpoint(tmp_path / "best", save_best_only=True)
    stop = EarlyStopping(patience=3, restore_best=False)
    callbacks = [Told(*curve), stop, best]
    finite = [value for value in curve[:epochs] if math.isfinite(value)]
    if finite:
        history = trainer.fit(*data(), len(curve), callbacks=callbacks)
        assert best.best == stop.best == min(finite)
    else:
        with pytest.warns(UserWarning, match="best.* was not written, as no val_loss was finite"):
            history = trainer.fit(*data(), len(curve), callbacks=callbacks)
        assert not (tmp_path / "best").exists()
    assert len(history) == epochs


# --- errors that hide errors ---


class Spy(Callback):
    """A callback that records its calls in a shared list, and fails on request."""

    def __init__(self, name: str, calls: list[str], *fails: str) -> None:
        self.name, self.calls, self.fails = name, calls, fails

    def _note(self, where: str) -> None:
        self.calls.append(f"{self.name} {where}")
        if where in self.fails:
            raise OSError(f"{self.name} {where}")

    def on_fit_begin(self, trainer: xbp.Trainer) -> None:
        self._note("begin")

    def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
        self._note("epoch")

    def on_fit_end(self, trainer: xbp.Trainer) -> None:
        self._note("end")


FAILURES: list[tuple[dict[str, list[str]], list[str], str, int]] = [
    ({"b": ["begin", "end"]}, ["a begin", "b begin", "a end"], "b begin", 0),
    ({"b": ["begin"], "a": ["end"]}, ["a begin", "b begin", "a end"], "b begin", 1),
    (
        {"c": ["epoch", "end"], "a": ["end"]},
        [*(f"{n} begin" for n in "abc"), *(f"{n} epoch" for n in "abc"), "c end", "b end", "a end"],
        "c epoch",
        2,
    ),
    (
        {"c": ["end"], "b": ["end"]},
        [*(f"{n} begin" for n in "abc"), *(f"{n} epoch" for n in "abc"), "c end", "b end", "a end"],
        "c end",
        1,
    ),
]


@pytest.mark.parametrize(("fails", "expected", "first", "notes"), FAILURES)
def test_the_first_error_is_seen_and_only_what_began_ends(
    fails: dict[str, list[str]], expected: list[str], first: str, notes: int
) -> None:
    calls: list[str] = []
    callbacks = [Spy(name, calls, *fails.get(name, [])) for name in "abc"]
    before, trainer = signal.getsignal(signal.SIGINT), make()
    with pytest.raises(OSError, match=first) as error:
        trainer.fit(*data(), callbacks=callbacks)
    assert str(error.value) == first
    assert calls == expected
    assert len(getattr(error.value, "__notes__", [])) == notes
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.fingerprint is None


@pytest.mark.parametrize("extra", [[], [LambdaCallback(on_epoch_end=lambda *_: None)]])
@pytest.mark.parametrize(
    "name",
    ["missing/m", "missing/m-{epoch}-{loss:.3f}", "{epoch}/m", "a{epoch", "m{loss:d}", "{loss.x}"],
)
def test_a_path_of_models_is_looked_at_before_the_first_step(
    name: str, extra: list[Callback], tmp_path: Path
) -> None:
    """Also if a user's callback may add to the records."""
    trainer = make()
    with pytest.raises(InputError, match=r"cannot be written|no pattern for a file"):
        trainer.fit(*data(), callbacks=[*extra, ModelCheckpoint(tmp_path / name)])
    assert trainer.optimizer.steps == 0


def test_a_path_of_models_may_name_what_others_record(tmp_path: Path) -> None:
    def put(trainer: xbp.Trainer, epoch: int, record: dict[str, float]) -> None:
        record |= {"twice": 2 * epoch, "half": epoch / 2}

    (tmp_path / "1").mkdir()
    for name in ("{twice:d}-{half:.1f}", "{epoch}/m"):
        callbacks = [LambdaCallback(on_epoch_end=put), ModelCheckpoint(tmp_path / name)]
        make().fit(*data(), callbacks=callbacks)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "1", "1/m", "2-0.5"
    ]  # fmt: skip


def test_a_folder_that_is_missing_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("typo/m", "file/m", "."):
        for pattern in ("", "-{epoch}", "-{loss:.2f}"):
            trainer, where = make(), f"{tmp_path}/{path}" + (pattern if path != "." else "")
            with pytest.raises(DataError, match=r"is a folder|cannot be written"):
                trainer.fit(*data(), callbacks=[ModelCheckpoint(where)])
            assert trainer.optimizer.steps == 0


def test_a_callback_that_fails_when_the_loss_is_nan_hides_nothing() -> None:
    class Failing(Callback):
        def on_not_finite(self, trainer: xbp.Trainer, error: NonFiniteError) -> bool:
            raise OSError("no mail was sent")

    x, y = data()
    with pytest.raises(NonFiniteError, match="the loss is nan") as error:
        make().fit(math.nan * x, y, callbacks=[Failing()])
    assert error.value.__notes__ == ["and " + Failing.__qualname__ + ".on_not_finite failed: "
                                     "OSError: no mail was sent"]  # fmt: skip


# --- a run that is spoiled by its last step, after which no loss is looked at ---


def spoiling(epochs: int) -> Callback:
    """A callback that makes a parameter infinite in the last step of a training of this length."""

    def spoil(trainer: xbp.Trainer, step: int) -> None:
        if trainer.epochs_done == epochs - 1 and step == trainer.steps_per_epoch:
            next(iter(trainer.model.parameters())).data[0, 0] = math.inf

    return LambdaCallback(on_step_end=spoil)


def test_a_last_step_that_spoils_the_parameters_is_told_of() -> None:
    trainer = make()
    with pytest.raises(NonFiniteError, match=r"the last step.* in epoch 2, .*'0\.weight'") as error:
        trainer.fit(*data(), 2, callbacks=[spoiling(2)])
    assert trainer.history.stopped == str(error.value)
    history = make().fit(*data(), 2, callbacks=[spoiling(2), TerminateOnNaN()])
    assert len(history) == 2 and "the last step" in history.stopped


def test_a_last_step_that_spoils_the_parameters_shows_in_the_validation() -> None:
    history = make().fit(*data(), 2, validation_data=data(), callbacks=[spoiling(2)])
    assert len(history) == 2 and not math.isfinite(history["val_loss"][-1])


def test_a_callback_that_ends_training_need_not_stop_it() -> None:
    class Ending(Callback):
        def on_not_finite(self, trainer: xbp.Trainer, error: NonFiniteError) -> bool:
            return True

    x, y = data()
    history = make().fit(math.nan * x, y, 3, callbacks=[Ending()])
    assert len(history) == 0 and history.stopped.startswith("the loss is nan")


@pytest.mark.parametrize("reason", ["", None])
def test_stop_without_a_reason_stops(reason: Any) -> None:
    stop = LambdaCallback(on_epoch_end=lambda trainer, epoch, record: trainer.stop(reason))
    history = make().fit(*data(), 3, callbacks=[stop])
    assert len(history) == 1 and history.stopped == "stopped for no reason given"


def test_a_fit_of_the_same_trainer_within_its_fit_is_refused() -> None:
    trainer = make()
    again = LambdaCallback(on_step_end=lambda trainer, step: trainer.fit(*data()))
    with pytest.raises(InputError, match="this trainer is in a fit already"):
        trainer.fit(*data(), callbacks=[again])
    trainer.capture, trainer.loss = True, lambda y, t: nn.MSELoss()(y, t)
    with pytest.raises(InputError, match="as code that is not xbp's"):
        trainer.fit(*data())
    trainer.capture = None
    assert len(trainer.fit(*data(), 2)) == 2  # after both errors it is in no fit


# --- the terminal ---


class Writer:
    """The smallest possible replacement of the standard output."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Closed(io.StringIO):
    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("verbose", [None, True, False])
@pytest.mark.parametrize("stdout", [Writer(), Closed(), io.StringIO(), None])
def test_any_object_with_write_is_a_standard_output(
    stdout: Any, verbose: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    history = make().fit(*data(), 2, 4, verbose=verbose)
    assert len(history) == 2
    if isinstance(stdout, Writer) and verbose:
        assert "epoch 2/2" in stdout.text
        assert sys.stdout is stdout


class Ascii(Writer):
    """A terminal without an encoding."""

    def write(self, text: str) -> None:
        text.encode("ascii")
        super().write(text)


class Failing(Writer):
    """A terminal, file or pipe that fails after some calls."""

    def __init__(self, error: BaseException, writes: int, flushes: int = 99) -> None:
        super().__init__()
        self.error, self.writes, self.flushes = error, writes, flushes

    def write(self, text: str) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise self.error
        super().write(text)

    def flush(self) -> None:
        self.flushes -= 1
        if self.flushes < 0:
            raise self.error


ERRORS = [
    OSError(5, "Input/output error"),  # the terminal was closed
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
    ValueError("I/O operation on closed file"),
    AttributeError("'Tee' object has no attribute 'flush'"),
]


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("calls", [(0, 99), (3, 99), (99, 0), (99, 2)])
@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_standard_output_that_fails_ends_no_training(
    error: Exception, calls: tuple[int, int], tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Failing(error, *calls)
    monkeypatch.setattr(out, "isatty", lambda: tty, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    history = make().fit(*data(), 2, 4, verbose=True)
    assert len(history) == 2 and history.stopped == "all 2 epochs done"
    assert sys.stdout is out


def test_what_an_encoding_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Ascii()
    monkeypatch.setattr(sys, "stdout", out)

    def lösung(prediction: Any, target: Any) -> float:
        return 1.0

    model = nn.Sequential(nn.Linear(2, 1, dtype="float64", rng=0))
    optimizer = optim.SGD(model.parameters(), 0.01)
    xbp.Trainer(model, nn.MSELoss(), optimizer, [lösung], rng=0).fit(*data(), verbose=True)
    assert "l?sung 1.0000" in out.text


# --- signals ---


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> Callback:
    return LambdaCallback(on_step_end=lambda *_: os.kill(os.getpid(), signal.SIGINT))


def test_sigint_that_is_ignored_stays_ignored(sigint: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert len(make().fit(*data(), 2, 4, callbacks=[interrupt()])) == 2
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("handler", [signal.SIG_DFL, lambda *_: None])
def test_any_handler_of_python_is_put_back(handler: Any, sigint: None) -> None:
    signal.signal(signal.SIGINT, handler)
    history = make().fit(*data(), 2, 4, callbacks=[interrupt()])
    assert history.stopped == "interrupted by Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_somebody_sets_meanwhile_stays(sigint: None) -> None:
    def own(*_: Any) -> None:
        pass

    change = LambdaCallback(on_fit_begin=lambda _: signal.signal(signal.SIGINT, own))
    make().fit(*data(), callbacks=[change])
    assert signal.getsignal(signal.SIGINT) is own


def test_a_handler_of_c_is_left_alone(monkeypatch: pytest.MonkeyPatch, sigint: None) -> None:
    """`signal.getsignal` returns None for it, and `signal.signal` cannot restore it."""
    changes: list[Any] = []
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *args: changes.append(args))
    make().fit(*data())
    assert not changes


def test_a_fit_within_a_fit_leaves_the_handler_of_the_outer_one() -> None:
    def inner(trainer: xbp.Trainer, step: int) -> None:
        make().fit(*data())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    history = make().fit(*data(), 2, 4, callbacks=[LambdaCallback(on_step_end=inner)])
    assert history.stopped == "interrupted by Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is before
