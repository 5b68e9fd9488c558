"""Training from sources and iterables gives the results of training from arrays."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY

import xbp
from xbp import data, nn, optim
from xbp.backend import why_unavailable
from xbp.data.sources import batches_of
from xbp.errors import InputError, NonFiniteError
from xbp.random import permutation
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.training import Callback, Checkpoints, LambdaCallback
from xbp.training.capture import Phase, recordings_of
from xbp.training.interrupt import INTERRUPTED

SAMPLES, BATCH = 43, 8  # five steps, and one with the last three samples
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SAMPLES, 5))
Y = np.arange(SAMPLES) % 3
X += Y[:, None]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that no threads and no open files are left."""
    threads, files = set(threading.enumerate()), opened()
    yield
    assert set(threading.enumerate()) == threads
    assert opened() <= files


def opened() -> set[str]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return set()
    found = set()
    for entry in folder.iterdir():
        try:
            found.add(str(entry.readlink()))
        except OSError:  # the listing's own
            continue
    return {name for name in found if name.endswith(".npy")}


@pytest.fixture(params=["numpy", "array_api_strict", "torch", "cupy"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    if reason := why_unavailable(request.param):
        pytest.skip(reason)
    with xbp.use_backend(request.param):
        yield request.param


def trainer_of(capture: bool | None = None, **options: Any) -> xbp.Trainer:
    model = nn.Sequential(
        nn.Linear(5, 8, rng=0), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3, rng=1)
    )
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    loss = options.pop("loss", nn.CrossEntropyLoss())
    return xbp.Trainer(model, loss, optimizer, ["accuracy"], rng=7, capture=capture, **options)


def fit(trainer: xbp.Trainer, *given: Any, epochs: int = 3, **options: Any) -> dict[str, Any]:
    """The bits of all results of a training."""
    trainer.fit(*given, epochs=epochs, batch_size=BATCH, verbose=False, **options)
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    bits = {name: np.asarray(a).tobytes() for name, a in state.items()}
    return bits | {"records": trainer.history.records}


def files(folder: Path) -> data.Files:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return data.Files(folder / "x.npy", folder / "y.npy")


class Shuffled:
    """The batches of training from arrays, as an iterable without a length."""

    def __init__(self, seed: int = 7) -> None:
        self.seed, self.epoch = seed, 0

    def __iter__(self) -> Iterator[Any]:
        order = permutation(self.seed, self.epoch, SAMPLES)
        self.epoch += 1
        return batches_of(data.Arrays(X, Y), order, BATCH)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "arrays": lambda path: data.Arrays(X, Y),
    "float32": lambda path: data.Arrays(X.astype("float32"), Y),
    "files": files,
    "function": lambda path: data.Function(lambda i: [X[i], Y[i].tolist()], SAMPLES),
    "subset": lambda path: data.Subset(data.Arrays(X[::-1], Y[::-1]), np.arange(SAMPLES)[::-1]),
    "iterable": lambda path: Shuffled(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_gives_the_run_of_the_arrays(place: str, tmp_path: Path, name: str) -> None:
    expected = fit(trainer_of(), X, Y, validation_data=(X, Y))
    trainer = trainer_of()
    source = SOURCES[name](tmp_path)
    assert fit(trainer, source, validation_data=data.Arrays(X, Y)) == expected
    measured = [trainer.evaluate(each, batch_size=10) for each in (data.Arrays(X, Y), [(X, Y)])]
    expected = trainer.evaluate(X, Y, 10)
    outputs = xbp.to_numpy(trainer.predict(X, 10))
    # A batch of a resident array has any alignment in memory, and torch's products
    # depend on it in the last place: an ulp or two of float32.
    tolerance = 5e-7 if place == "torch" else 0.0
    for each in (data.Arrays(X, Y), data.Arrays(X), [(X[:7], Y[:7]), (X[7:], Y[7:])]):
        found = xbp.to_numpy(trainer.predict(each, 10))
        np.testing.assert_allclose(found, outputs, rtol=tolerance, atol=tolerance)
    assert measured[0] == pytest.approx(expected, rel=tolerance, abs=0)
    assert measured[1] == pytest.approx(expected, rel=1e-6, abs=0)  # float32, in another order


@pytest.mark.parametrize("name", ["arrays", "iterable"])
@pytest.mark.parametrize("where", ["array_api_strict", "torch", "cupy"])
def test_recorded_steps_find_their_batches_in_the_slots(
    tmp_path: Path, where: str, name: str
) -> None:
    if reason := why_unavailable(where):
        pytest.skip(reason)
    with xbp.use_backend(where), emulated_graphs():
        eager, trainer = trainer_of(False), trainer_of(True)
        assert fit(trainer, SOURCES[name](tmp_path)) == fit(eager, X, Y)
        recordings = recordings_of(trainer._stepper)
        assert recordings is not None
        assert recordings.by_size[BATCH].phase is Phase.REPLAY
        assert fit(trainer, X, Y) == fit(eager, X, Y)  # arrays again


def test_the_steps_of_an_epoch_do_not_wait_for_a_device() -> None:
    """The reading thread works on the host; its batches are copied without a wait."""
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        guards: list[Any] = []

        class Guard(Callback):
            def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
                guards.append(assert_no_host_sync())
                guards[-1].__enter__()

            def on_step_end(self, trainer: Any, step: int) -> None:
                if step == trainer.steps_per_epoch:
                    guards.pop().__exit__(None, None, None)

        fit(trainer_of(), data.Arrays(X, Y), callbacks=[Guard()])
        assert not guards


# --- iterables -----------------------------------------------------------------------------------


def test_a_data_loader_works_as_it_is() -> None:
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(pairs, batch_size=BATCH)
    trainer, twin = trainer_of(), trainer_of()
    expected = [(X[i : i + BATCH], Y[i : i + BATCH]) for i in range(0, SAMPLES, BATCH)]
    assert fit(trainer, loader) == fit(twin, expected)
    assert trainer.steps_per_epoch == 6 and trainer.batch_size == BATCH
    assert trainer.evaluate(loader) == trainer.evaluate(X, Y, batch_size=BATCH)
    assert fit(trainer, loader, validation_data=loader)["records"][-1]["val_loss"] > 0


def test_batches_may_have_any_size_and_shape(place: str) -> None:
    class Mean(nn.Layer):
        """Sequences of different lengths, equal within a batch."""

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            xp, n = self.check_input(x), x.shape[1]
            shape = x.shape

            def backward(dy: Any) -> Any:
                return xp.broadcast_to(dy[:, None, :] / n, shape)

            return xp.mean(x, axis=1), backward

    sizes = [(4, 3), (2, 3), (5, 3), (4, 7), (4, 3), (1, 1)]
    batches = [(RNG.normal(size=(n, t, 5)), np.arange(n) % 3) for n, t in sizes]
    sums = []
    for capture in (False, None):
        model = nn.Sequential(Mean(), nn.Linear(5, 3, rng=0))
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=0, capture=capture
        )
        trainer.fit(batches, epochs=2)
        sums.append(model.state_dict())
    model = nn.Sequential(Mean(), nn.Linear(5, 3, rng=0))
    optimizer, loss = optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss()
    for x, y in batches * 2:
        out, backward = model.forward(xbp.asarray(x, dtype="float32"), training=True)
        backward(loss(out, xbp.asarray(y))[1])
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        for state in sums:
            np.testing.assert_array_equal(state[name], value)


def test_several_inputs_come_as_a_tuple(place: str) -> None:
    class Sum(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            return x[0] + x[1], lambda dy: (dy, dy)

    model = nn.Sequential(Sum(), nn.Linear(5, 3, rng=0))
    trainer = xbp.Trainer(
        model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), 0.02), ["accuracy"], rng=7
    )
    twin = trainer_of()
    twin.model = nn.Sequential(nn.Linear(5, 3, rng=0))
    twin.optimizer = optim.Adam(twin.model.parameters(), 0.02)
    half = X.astype("float32") / 2
    fit(trainer, data.Arrays((half, half), Y), validation_data=data.Arrays((half, half), Y))
    fit(twin, 2 * half, Y, validation_data=(2 * half, Y))
    assert trainer.history.records == twin.history.records
    found = trainer.predict(data.Arrays((half, half), Y))
    np.testing.assert_array_equal(xbp.to_numpy(found), xbp.to_numpy(twin.predict(2 * half)))


def test_an_iterator_serves_one_epoch() -> None:
    made = trainer_of()
    fit(made, iter(Shuffled()), epochs=1)
    assert made.steps_per_epoch == 0 and made.history.stopped == "all 1 epochs done"
    assert made.history.records == fit(trainer_of(), X, Y, epochs=1)["records"]


def test_an_iterable_that_is_empty_the_second_time() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = [(X, Y)]

        def __iter__(self) -> Iterator[Any]:
            left, self.left = self.left, []
            return iter(left)

    with pytest.raises(InputError, match="this Once gives no batches in this epoch; give an itera"):
        fit(trainer_of(), Once())


def test_stopping_in_the_last_step_of_an_unknown_number_ends_the_epoch() -> None:
    for stop_at, epochs in ((6, 1), (5, 0), (12, 2)):
        trainer = trainer_of()
        stop = LambdaCallback(
            on_step_end=lambda t, s, at=stop_at: (
                t.stop("enough") if t.optimizer.steps == at else None
            )
        )
        fit(trainer, Shuffled(), callbacks=[stop])
        assert trainer.epochs_done == epochs and trainer.optimizer.steps == stop_at


# --- errors --------------------------------------------------------------------------------------


class Failing(data.Source):
    """A source that fails at a batch, counted over all requests."""

    def __init__(self, at: int, error: Exception) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, indices: Any) -> Any:
        self.calls += 1
        if self.calls == self.at + 1:  # `fit` reads the first one
            raise self.error
        return X[indices], Y[indices]


@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_an_error_while_reading_is_raised_in_the_caller(at: int) -> None:
    trainer = trainer_of()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(trainer, Failing(at, OSError("the disk is gone")))
    # the steps before it were made
    made = max(0, at - 1)
    assert trainer.optimizer.steps == made
    fit(trainer, data.Arrays(X, Y), epochs=1)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_an_error_while_reading_for(name: str) -> None:
    trainer = trainer_of()
    with pytest.raises(OSError, match="the disk is gone"):
        getattr(trainer, name)(Failing(2, OSError("the disk is gone")), batch_size=5)


def broken(change: Callable[[Any, Any], Any], at: int = 3) -> data.Function:
    """A source whose fourth batch is another one."""
    calls = []

    def batch(indices: Any) -> Any:
        calls.append(1)
        x, y = X[indices].copy(), Y[indices].copy()
        return change(x, y) if len(calls) == at + 1 else (x, y)

    return data.Function(batch, SAMPLES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x, y + 3), "needs labels from 0 to 2 for 3 classes, got"),
        (lambda x, y: (x, y[:-1]), "the arrays of a batch need the same number of samples"),
        (lambda x, y: x, r"a batch must be a pair \(x, y\), got a ndarray"),
        (lambda x, y: (x * 1e300, y), "x holds numbers beyond the model's float32"),
        (lambda x, y: (x + 1j, y), "x holds complex numbers"),
        (lambda x, y: (x[:, :4], y), "Linear"),
        (lambda x, y: (x, y / 2), "integer labels"),
    ],
)
def test_each_batch_is_checked(place: str, change: Any, said: str) -> None:
    trainer = trainer_of()
    with pytest.raises(InputError, match=said):
        fit(trainer, broken(change))
    assert trainer.optimizer.steps == 2
    with pytest.raises(InputError, match=said):
        fit(trainer, broken(change, at=0))
    assert trainer.optimizer.steps == 2


def test_losses_with_arrays_check_on_the_host(place: str) -> None:
    loss = nn.BCEWithLogitsLoss(pos_weight=xbp.asarray([1.0, 2.0, 3.0], dtype="float32"))
    y = np.eye(3, dtype="float32")[Y]
    model = nn.Sequential(nn.Linear(5, 3, rng=0))
    trainer = xbp.Trainer(model, loss, optim.SGD(model.parameters(), 0.1), rng=0)
    trainer.fit(data.Arrays(X, y), batch_size=BATCH)
    with pytest.raises(InputError, match="needs targets from 0 to 1"):
        trainer.fit(data.Arrays(X, 2 * y), batch_size=BATCH)


@pytest.mark.parametrize("name", ["arrays", "iterable"])
def test_what_is_not_finite_is_found_in_its_batch(place: str, name: str) -> None:
    x = X.copy()
    order = permutation(7, 0, SAMPLES)
    x[order[2 * BATCH + 3], 1] = np.nan  # the fourth sample of the third batch
    source: Any = data.Arrays(x, Y)
    if name == "iterable":
        source = list(batches_of(source, order, BATCH))
    with pytest.raises(NonFiniteError) as caught:
        fit(trainer_of(), source, epochs=1)
    assert "the first thing not finite is the input" in str(caught.value) or place != "numpy"
    if place in ("numpy", "torch"):
        assert "step 3;" in str(caught.value)
        assert "check the data, first x[3] of this batch" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ((data.Arrays(X, Y), Y), {}, "gives its targets itself, got y=a ndarray of shape"),
        ((data.Arrays(X, Y), 3), {}, "gives its targets itself, got y=an int beside it; leave y"),
        ((data.Arrays(X),), {}, r"a batch must be a pair \(x, y\)"),
        ((iter([]),), {"epochs": 1}, "this list_iterator gives no batches; give at least one"),
        ((iter([(X, Y)]),), {}, "can be gone through once, where 3 times are needed"),
        ((X,), {}, "there are no targets: x and y must be arrays, got a ndarray of shape"),
        ((X, Y), {"validation_data": iter([(X, Y)])}, "can be gone through once"),
        ((X, Y), {"validation_data": data.Arrays(X)}, "a batch must be a pair"),
        ((data.Arrays(X, Y),), {"validation_data": 3}, "validation_data must be a pair"),
    ],
)
def test_wrong_data_are_one_sentence(given: Any, options: Any, said: str) -> None:
    trainer = trainer_of()
    with pytest.raises(InputError, match=said) as caught:
        fit(trainer, *given, **options)
    assert "\n" not in str(caught.value) and trainer.optimizer.steps == 0


def test_predict_says_what_there_is_not() -> None:
    trainer = trainer_of()
    with pytest.raises(InputError, match="there is nothing to predict: the iterable gives no batc"):
        trainer.predict(iter([]))
    with pytest.raises(InputError, match="there is nothing to predict: a batch is a ndarray of sh"):
        trainer.predict([(X[:0], Y[:0])])
    with pytest.raises(InputError, match="gives its targets itself"):
        trainer.evaluate(data.Arrays(X, Y), Y)


def test_ctrl_c_ends_after_the_step_and_leaves_no_thread(tmp_path: Path) -> None:
    trainer = trainer_of()
    strike = LambdaCallback(
        on_step_end=lambda t, s: os.kill(os.getpid(), signal.SIGINT) if s == 2 else None
    )
    fit(trainer, files(tmp_path), callbacks=[strike])
    assert trainer.optimizer.steps == 2 and trainer.history.stopped == "interrupted by Ctrl-C"


def test_a_second_ctrl_c_while_it_waits_for_data(tmp_path: Path) -> None:
    def slow(indices: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            main = threading.main_thread().ident
            assert main is not None
            handler = signal.getsignal(signal.SIGINT)
            signal.pthread_kill(main, signal.SIGINT)
            deadline = time.monotonic() + 10
            while signal.getsignal(signal.SIGINT) is handler and time.monotonic() < deadline:
                time.sleep(0.01)  # until the first is noticed, as two signals may arrive as one
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.1)
        return X[indices], Y[indices]

    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(), data.Function(slow, SAMPLES))


# --- resuming ------------------------------------------------------------------------------------


# Steps within an epoch, and the last one of an epoch.
@pytest.mark.parametrize("stop_at", [3, 6, 8, 14] if NIGHTLY else [6, 8])
@pytest.mark.parametrize("name", ["arrays", "files", "function", "subset"])
def test_a_resumed_run_ends_with_the_same_bits(
    place: str, tmp_path: Path, name: str, stop_at: int
) -> None:
    source = SOURCES[name](tmp_path)
    expected = fit(trainer_of(), source, validation_data=source)
    stop = LambdaCallback(
        on_step_end=lambda t, s: t.stop(INTERRUPTED) if t.optimizer.steps == stop_at else None
    )
    folder = tmp_path / "checkpoints"
    kept = Checkpoints(folder, every=1)
    fit(trainer_of(), source, validation_data=source, callbacks=[stop, kept])
    last = folder / f"step-{stop_at:08}.safetensors"
    options = {"validation_data": source, "callbacks": [Checkpoints(tmp_path / "more")]}
    assert fit(trainer_of(), source, resume=last, **options) == expected
    other = data.Arrays(X + 1, Y)
    with pytest.raises(InputError, match=r"this run is not that of .*: the data is"):
        fit(trainer_of(), other, resume=last, validation_data=source)


def test_an_iterable_resumes_between_two_epochs(tmp_path: Path) -> None:
    expected = fit(trainer_of(), Shuffled())
    fit(trainer_of(), Shuffled(), epochs=1, callbacks=[Checkpoints(tmp_path)])
    second = Shuffled()
    second.epoch = 1
    assert fit(trainer_of(), second, resume=tmp_path, callbacks=[Checkpoints(tmp_path)]) == expected


def test_an_iterable_is_not_entered_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    stop = LambdaCallback(on_step_end=lambda t, s: t.stop("killed") if s == 2 else None)
    fit(trainer_of(), Shuffled(), callbacks=[stop, Checkpoints(tmp_path, every=2)])
    trainer = trainer_of()
    with pytest.raises(InputError, match=r"stands at step 2 of an epoch, and an iterable of"):
        fit(trainer, Shuffled(), resume=tmp_path / "step-00000002.safetensors")
    assert trainer.optimizer.steps == 0


def test_a_schedule_is_compared_where_the_end_is_known(recwarn: Any) -> None:
    def scheduled(end: int) -> xbp.Trainer:
        trainer = trainer_of()
        rates = [0.02] * end
        trainer.optimizer = optim.Adam(trainer.model.parameters(), lr=lambda step: rates[step])
        return trainer

    for given in (data.Arrays(X, Y), [(X, Y)] * 6):
        with pytest.raises(InputError, match="fails at step 17, the last of this training"):
            fit(scheduled(17), given)
    fit(scheduled(18), Shuffled())
    with pytest.raises(IndexError):
        fit(scheduled(17), Shuffled())


def test_a_batch_size_beyond_the_data() -> None:
    trainer = trainer_of()
    trainer.fit(data.Arrays(X, Y), epochs=2, batch_size=10**12)
    twin = trainer_of()
    twin.fit(X, Y, epochs=2, batch_size=SAMPLES)
    assert trainer.history.records == twin.history.records


# --- tokens --------------------------------------------------------------------------------------


def speaker(vocabulary: int) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(vocabulary, 4, rng=0), nn.Flatten(), nn.Linear(12, 3, rng=1))


@pytest.mark.parametrize("at", [0, 3])
def test_tokens_are_looked_at_where_they_come_in(place: str, at: int) -> None:
    """An index out of range would wrap on a GPU, silently."""
    tokens = np.random.default_rng(0).integers(0, 7, (SAMPLES, 3))
    calls = []

    def batch(indices: Any) -> Any:
        calls.append(1)
        x = tokens[indices]
        x[0, 1] = 7 if len(calls) == at + 1 else x[0, 1]
        return x, Y[indices]

    model = speaker(7)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=7)
    with pytest.raises(InputError, match="7"):
        trainer.fit(data.Function(batch, SAMPLES), batch_size=BATCH)
    calls.clear()
    with pytest.raises(InputError, match="7"):
        trainer.predict(data.Function(batch, SAMPLES), batch_size=BATCH)


def test_the_model_is_shown_each_range_of_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from xbp.training.door import batches

    shown: list[Any] = []
    check = batches.check_tokens
    monkeypatch.setattr(
        batches, "check_tokens", lambda model, x: (shown.append(x.tolist()), check(model, x))
    )
    tokens = np.sort(np.random.default_rng(0).integers(0, 7, (SAMPLES, 3)), axis=0)
    model, twin = speaker(9), speaker(9)
    runs = [
        xbp.Trainer(m, nn.CrossEntropyLoss(), optim.SGD(m.parameters(), 0.1), rng=7)
        for m in (model, twin)
    ]
    runs[0].fit(data.Arrays(tokens, Y), epochs=3, batch_size=BATCH)
    runs[1].fit(tokens, Y, epochs=3, batch_size=BATCH)
    assert runs[0].history.records == runs[1].history.records
    assert 1 <= len(shown) <= 7  # at most once for each greatest token, not once a batch
    assert all(row == [row[0]] * 3 for ends in shown for row in ends)


def test_places_with_vocabularies_of_their_own_have_their_own_bounds() -> None:
    class Columns(nn.Layer):
        def __init__(self) -> None:
            self.first, self.second = nn.Embedding(3, 2, rng=0), nn.Embedding(9, 2, rng=1)

        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            (a, back_a), (b, back_b) = self.first.forward(x[:, 0]), self.second.forward(x[:, 1])

            def backward(dy: Any) -> Any:
                back_a(dy)
                back_b(dy)

            return a + b, backward

    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 3, SAMPLES), rng.integers(0, 9, SAMPLES)], axis=1)
    x[:BATCH] = 0, 4
    model = nn.Sequential(Columns(), nn.Linear(2, 3, rng=0))
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.1), rng=7)
    trainer.fit(data.Arrays(x, Y), epochs=2, batch_size=BATCH)
    x[30, 0] = 3
    with pytest.raises(InputError, match="3"):
        trainer.fit(data.Arrays(x, Y), epochs=1, batch_size=BATCH)


class Pair(nn.Layer):
    """A table for the tokens of the first input, and numbers as the second."""

    def __init__(self) -> None:
        self.table = nn.Embedding(4, 3, rng=0)

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        y, backward = self.table.forward(x[0], training=training, rng=rng)
        return y + x[1], lambda dy: (backward(dy), dy)


def test_tokens_in_a_tuple_are_checked_where_data_come_in(place: str) -> None:
    """On a device too, where the layer itself gives nan for what is no token."""
    tokens, numbers = np.arange(24) % 4, np.ones((24, 3), np.float32)
    targets = np.zeros((24, 3), np.float32)
    for bad in (None, 5, 21):
        given = tokens.copy()
        if bad is not None:
            given[bad] = 4
        model = Pair()
        trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1), rng=0)
        source = data.Arrays((given, numbers), targets)
        if bad is None:
            trainer.fit(source, batch_size=8, verbose=False)
        else:
            with pytest.raises(InputError, match="needs tokens from 0 to 3, got 4"):
                trainer.fit(source, batch_size=8, verbose=False)
