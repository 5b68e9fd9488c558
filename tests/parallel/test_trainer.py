"""A `Trainer` of n ranks makes what one of a single process makes, and is equal on all ranks."""

import csv
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import NIGHTLY
from parallel import fits
from parallel.fits import FITS, HELD, Fit, X, Y
from parallel.shares import Thread, by_threads, dropped, normalized, sizes_of
from parallel.started import needs_mpi, start

import xbp
from xbp import nn, optim, parallel, training
from xbp.errors import DataError, InputError, NonFiniteError, RankError
from xbp.testing import emulated_graphs
from xbp.training import Checkpoints, LambdaCallback, Metric
from xbp.training.capture import recordings_of

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
"""Sums in another order differ by some 2⁻⁵³, which few steps magnify little."""


def agree(found: list[dict[str, Any]], expected: dict[str, Any], **close: float) -> None:
    for each in found:
        assert each.keys() == expected.keys()
        for key, value in each.items():
            np.testing.assert_allclose(value, expected[key], **(close or CLOSE), err_msg=key)
            assert value.tobytes() == found[0][key].tobytes(), f"{key} differs between ranks"


@cache
def alone(name: str) -> dict[str, Any]:
    return fits.fit(FITS[name], None)


@pytest.mark.parametrize(("name", "size"), sizes_of(FITS))
def test_a_fit(name: str, size: int) -> None:
    agree(by_threads(size, lambda group: fits.fit(FITS[name], group)), alone(name))


def test_lenet5() -> None:
    """24 steps here; 200 by MPI."""
    found = by_threads(3, lambda group: fits.lenet5(group, 24))
    agree(found, fits.lenet5(None, 24), rtol=1e-9, atol=1e-11)


def test_ranks_scale_the_loss_alike_and_leave_out_the_same_steps() -> None:
    """Some gradients overflow on one rank alone; their sum is infinite on all."""

    def run(group: Any) -> dict[str, Any]:
        model = dropped()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optimizer, rng=7, group=group, precision="float16"
        )
        assert trainer.scaling is not None
        trainer.scaling.load_state_dict({"scale": 2.0**21, "good_steps": 0})
        scales: list[float] = []
        watch = LambdaCallback(on_step_end=lambda trainer, _: scales.append(trainer.loss_scale))
        trainer.fit(X, Y, 4, 8, callbacks=[watch], verbose=False)
        return {**model.state_dict(), "scales": np.asarray(scales)}

    expected = run(None)
    assert 3 <= len(set(expected["scales"])) < len(expected["scales"])
    # A factor that differs by 2⁻⁵³ is rounded to another number once in 2⁴².
    agree(by_threads(3, run), expected)


@needs_mpi
@pytest.mark.parametrize("size", [2, 3, 5] if NIGHTLY else [2, 5])
def test_by_mpi(size: int, tmp_path: Path) -> None:
    names = ["batch norm", "metrics of a user", "accumulated", "a source"]
    names += fits.LONG if size == 2 or NIGHTLY else []
    done = start(size, "-m", "mpi4py", fits.__file__, str(tmp_path), *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        found = [dict(np.load(tmp_path / f"{name}_{rank}.npz")) for rank in range(size)]
        if name in fits.LONG:
            agree(found, fits.LONG[name](None), rtol=1e-7, atol=1e-9)  # which magnify rounding
        else:
            agree(found, alone(name))


# --- callbacks -----------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"batch_size": 8, "validation_data": HELD}
CALLBACKS: dict[str, Callable[[], Any]] = {
    "EarlyStopping": lambda: training.EarlyStopping("loss", patience=1, min_delta=0.05),
    "Convergence": lambda: training.Convergence(0.1, "val_loss"),
    "LearningRateScheduler": lambda: training.LearningRateScheduler(lambda e: 0.01 * 0.5**e),
    "ReduceLROnPlateau": lambda: training.ReduceLROnPlateau(patience=0, threshold=0.2),
    "ExponentialMovingAverage": lambda: training.ExponentialMovingAverage(0.5),
    "TerminateOnNaN": training.TerminateOnNaN,
    "one that evaluates": lambda: LambdaCallback(
        on_step_end=lambda t, step: t.stop("good enough") if t.evaluate(X, Y)["loss"] < 1 else None
    ),
    "one that measures": lambda: LambdaCallback(
        on_step_end=lambda t, step: t.stop("accurate") if t.measured().result()["f1"] > 0.5 else 0
    ),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_see_the_numbers_of_the_whole_batch(name: str) -> None:
    def run(group: Any) -> dict[str, Any]:
        trainer = fits.trainer_of(Fit(), group)
        history = trainer.fit(X, Y, 6, callbacks=[CALLBACKS[name]()], **OPTIONS)
        stops.append(history.stopped)
        found = {key: np.array(history[key]) for key in history.names()}
        return found | trainer.model.state_dict() | {"steps": np.array(trainer.optimizer.steps)}

    stops: list[str] = []
    expected = run(None)
    agree(by_threads(3, run), expected)
    assert len(set(stops)) == 1, stops


def test_rank_0_alone_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others touch no file: they do not even know the folder."""
    written: list[tuple[int, Path]] = []

    def work(group: Thread) -> Any:
        folder = tmp_path / f"rank {group.rank}"
        if group.rank == 0:
            folder.mkdir()
        trainer = fits.trainer_of(Fit(), group)
        callbacks = [
            training.CSVLogger(folder / "log.csv"),
            training.ModelCheckpoint(folder / "model.safetensors"),
            training.ModelCheckpoint(folder / "best.safetensors", "loss", save_best_only=True),
            Checkpoints(folder / "checkpoints", every=2, monitor="loss"),
        ]
        trainer.fit(X, Y, 2, callbacks=callbacks, verbose=True, **OPTIONS)
        trainer.save(folder / "run")
        written.append((group.rank, folder))

    by_threads(3, work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank 0"]
    folder = tmp_path / "rank 0"
    with (folder / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (folder / "run" / "run.json").exists() and (folder / "best.safetensors").exists()
    assert capsys.readouterr().out.count("epoch 2/2: loss") == 1


def test_an_error_before_the_first_step_ends_all(tmp_path: Path) -> None:
    """The folder of rank 0 holds the checkpoints of another run."""
    fits.trainer_of(Fit()).fit(X, Y, callbacks=[Checkpoints(tmp_path)], **OPTIONS)
    errors: dict[int, Exception] = {}

    def work(group: Thread) -> Any:
        try:
            fits.trainer_of(Fit(), group).fit(X, Y, callbacks=[Checkpoints(tmp_path)], **OPTIONS)
        except (DataError, RankError) as error:
            errors[group.rank] = error

    by_threads(2, work)
    assert isinstance(errors[0], DataError)
    assert "rank 0 has failed, and so all 2 end: DataError: " in str(errors[1])


# --- checkpoints ---------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818
    pass


CHECKPOINTED = Fit(normalized, optimizer=fits.sgd, metrics=("accuracy", fits.Weighed()))


def interrupted_and_resumed(first: int, second: int, folder: Path) -> list[dict[str, Any]]:
    """A run of `first` ranks that ends within its second epoch, and goes on with `second`."""

    def kill(trainer: Any, step: int) -> None:
        if trainer.optimizer.steps == 5:
            raise Killed

    def work(group: Thread, stop: bool) -> dict[str, Any]:
        trainer = fits.trainer_of(CHECKPOINTED, group)
        callbacks: list[Any] = [
            training.CSVLogger(folder / "log.csv"),
            training.EarlyStopping("loss", patience=3),
            Checkpoints(folder, every=1),
        ]
        if stop:
            callbacks.append(LambdaCallback(on_step_end=kill))
        history = trainer.fit(X, Y, 3, callbacks=callbacks, resume=folder, **OPTIONS)
        found = {key: np.array(history[key]) for key in history.names()}
        return found | trainer.model.state_dict()

    with pytest.raises(Killed):
        by_threads(first, lambda group: work(group, stop=True))
    return by_threads(second, lambda group: work(group, stop=False))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (3, 3), (2, 5), (5, 2)])
def test_a_checkpoint_is_resumed_by_any_number_of_ranks(
    first: int, second: int, tmp_path: Path
) -> None:
    def whole(group: Any) -> dict[str, Any]:
        trainer = fits.trainer_of(CHECKPOINTED, group)
        history = trainer.fit(X, Y, 3, **OPTIONS)
        return {key: np.array(history[key]) for key in history.names()} | trainer.model.state_dict()

    found = interrupted_and_resumed(first, second, tmp_path)
    agree(found, whole(None))
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    if first == second:
        never_killed = by_threads(first, whole)[0]
        for key, value in found[0].items():
            assert value.tobytes() == never_killed[key].tobytes(), key


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ctrl_c_on_one_rank_ends_all_after_the_same_step(size: int) -> None:
    def work(group: Thread) -> Any:
        trainer = fits.trainer_of(Fit(), group)

        def press(trainer: Any, step: int) -> None:
            if trainer.optimizer.steps == 4 and group.rank == size - 1:
                trainer.share.interrupter(trainer.stop)(training.interrupt.INTERRUPTED)

        history = trainer.fit(X, Y, 9, callbacks=[LambdaCallback(on_step_end=press)], **OPTIONS)
        return trainer.optimizer.steps, history.stopped, len(history)

    steps = 4 if size == 1 else 5  # the others hear of it in the next step
    assert by_threads(size, work) == [(steps, "interrupted by Ctrl-C", 2)] * size


@pytest.mark.parametrize("model", [dropped, normalized])
def test_a_loss_that_is_not_finite_ends_all_with_one_sentence(model: Any) -> None:
    """With batch norm it is so on all ranks, without on one."""
    x = X.copy()
    x[11, 0, 0, 0] = np.nan

    def run(group: Any, *given: Any) -> Any:
        trainer = fits.trainer_of(Fit(model, optimizer=fits.sgd), group)
        with pytest.raises(NonFiniteError) as caught:
            trainer.fit(*given, batch_size=8)
        weight = trainer.model.parameters()[0].data
        assert np.isfinite(weight).all() and trainer.model.parameters()[0].grad is None
        return str(caught.value), trainer.optimizer.steps

    one = run(None, x, Y)
    assert "first x[11]" in one[0]
    assert by_threads(3, lambda group: run(group, x, Y)) == [one] * 3
    source = by_threads(3, lambda group: run(group, xbp.data.Arrays(x, Y)))
    assert source == [source[0]] * 3 and "rows of this batch" in source[0][0]


def test_models_that_come_apart_are_noticed() -> None:
    def work(group: Thread, compare: bool) -> Any:
        def change(trainer: Any, step: int) -> None:
            if group.rank == 1 and step == 3:
                trainer.model[5].bias.data[0] += 1e-9

        trainer = fits.trainer_of(Fit(), group, compare_ranks=compare)
        trainer.fit(X, Y, 1, callbacks=[LambdaCallback(on_step_end=change)], **OPTIONS)

    with pytest.raises(RankError, match=r"'5.bias' of the model differs between rank 0 and rank 1"):
        by_threads(3, lambda group: work(group, compare=True))
    by_threads(3, lambda group: work(group, compare=False))


DIFFERENT: dict[str, Callable[[int], Any]] = {
    "the first sample": lambda r: {"x": X + r},
    "the number of samples": lambda r: {"x": [X, X[:9]][r], "y": [Y, Y[:9]][r]},
    "batch_size": lambda r: {"batch_size": 8 + r},
    "epochs": lambda r: {"epochs": 1 + r},
    "the validation": lambda r: {"validation_data": [HELD, None][r]},
    "the list of callbacks": lambda r: {"callbacks": [training.TerminateOnNaN()] * r},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_are_asked_for_different_things_are_refused(name: str) -> None:
    def work(group: Thread) -> Any:
        options = {"x": X, "y": Y, "batch_size": 8} | DIFFERENT[name](group.rank)
        if name == "the number of samples":  # of equal first and last ones
            options["x"] = np.concatenate([options["x"][:8], X[-1:]]) if group.rank else X
            options["y"] = np.concatenate([options["y"][:8], Y[-1:]]) if group.rank else Y
        fits.trainer_of(Fit(), group).fit(**options)

    with pytest.raises(RankError, match=f"{name} differs between rank 0 and rank 1; give all"):
        by_threads(2, work)


# --- the beginning -------------------------------------------------------------------------------


def test_ranks_begin_with_the_model_and_the_seed_of_rank_0() -> None:
    lock = threading.Lock()

    def work(group: Thread) -> Any:
        with lock:
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, dtype="float64", rng=None))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, group=group)
        history = trainer.fit(X, Y, 2, 8)
        return trainer.seed, history["loss"], model.state_dict()["1.weight"].tobytes()

    first, *others = by_threads(3, work)
    assert others == [first] * 2


def test_batch_norm_belongs_to_the_group_only_within_a_fit() -> None:
    def work(group: Thread) -> Any:
        trainer = fits.trainer_of(Fit(normalized, optimizer=fits.sgd), group)
        groups = []
        look = LambdaCallback(on_step_end=lambda t, step: groups.append(t.model[1].group))
        trainer.fit(X, Y, 1, callbacks=[look], **OPTIONS)
        assert groups == [group] * 3 and trainer.model[1].group is None  # type: ignore[index]

    by_threads(2, work)


def test_a_step_by_hand_is_given_the_whole_batch() -> None:
    def run(group: Any) -> dict[str, Any]:
        trainer = fits.trainer_of(Fit(normalized, optimizer=fits.sgd), group)
        for first in (0, 8, 16):
            trainer.step(X[first : first + 8], Y[first : first + 8])
        return trainer.model.state_dict() | {"loss": np.array(trainer.current_loss)}

    agree(by_threads(3, run), run(None))


def test_a_group_by_name() -> None:
    trainer = fits.trainer_of(Fit(), "alone")
    assert isinstance(trainer.group, parallel.Alone) and trainer.share.first
    with pytest.raises(InputError, match="group must be one of"):
        fits.trainer_of(Fit(), "gloo")


def test_a_metric_that_keeps_more_than_it_adds_up_is_given_whole_batches() -> None:
    class Longest(training.Accuracy):
        def reset(self) -> None:
            super().reset()
            self.longest = 0

        def update(self, prediction: Any, target: Any) -> None:
            super().update(prediction, target)
            self.longest = max(self.longest, len(target))

        def compute(self) -> float:
            return float(self.longest)

    def work(group: Thread) -> Any:
        return fits.trainer_of(Fit(metrics=(Longest(),)), group).fit(X, Y, **OPTIONS)["accuracy"]

    assert by_threads(3, work) == [[8.0]] * 3


class Rank(parallel.Alone):
    """One of two ranks, for what it does without the other one."""

    size, local_size = 2, 2

    def __init__(self, rank: int) -> None:
        self.rank = self.local_rank = rank


def test_rank_0_alone_warns() -> None:
    def make(rank: int) -> None:
        model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.Softmax())
        xbp.Trainer(
            model,
            nn.CrossEntropyLoss(),
            optim.SGD(model.parameters(), 0.1),
            group=Rank(rank),
            rng=0,
        )

    make(1)
    with pytest.warns(UserWarning, match="softmax"):
        make(0)


def test_a_last_batch_may_be_left_out() -> None:
    def run(group: Any, x: Any, y: Any = None) -> dict[str, Any]:
        trainer = fits.trainer_of(Fit(), group)
        history = trainer.fit(x, y, 2, batch_size=7, drop_last=True)
        return {key: np.array(history[key]) for key in history.names()} | trainer.model.state_dict()

    expected = run(None, X, Y)
    agree(by_threads(3, lambda group: run(group, X, Y)), expected)
    agree(by_threads(3, lambda group: run(group, xbp.data.Arrays(X, Y))), expected)


def test_tokens_and_ranks_without_samples() -> None:
    tokens, labels = np.arange(22).reshape(11, 2) % 9, np.arange(11) % 3

    def run(group: Any, stream: bool) -> dict[str, Any]:
        model = nn.Sequential(
            nn.Embedding(9, 4, dtype="float64", rng=0),
            nn.LSTM(4, 5, dtype="float64", rng=1),
            nn.LastTimeStep(),
            nn.Linear(5, 3, dtype="float64", rng=2),
        )
        optimizer = optim.Adam(model.parameters())
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["f1"], rng=0, group=group)
        given = (xbp.data.Arrays(tokens, labels),) if stream else (tokens, labels)
        history = trainer.fit(*given, epochs=2, batch_size=5)  # the last batch has one sample
        found = {key: np.array(history[key]) for key in history.names()} | model.state_dict()
        return found | {"predicted": trainer.predict(given[0], batch_size=5)}

    expected = run(None, stream=False)
    for stream in (False, True):
        agree(by_threads(3, lambda group, stream=stream: run(group, stream)), expected)


# --- captured steps ------------------------------------------------------------------------------


class Doubled(parallel.Alone):
    """Two ranks, of which the other one has the same rows; a device records its sums."""

    size, local_size = 2, 2
    recordable = True

    def sum_(self, array: Any) -> None:
        if isinstance(array, np.ndarray) and array.ndim == 2:  # a row of each rank
            array[1] = array[0]
        else:
            array *= 2


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_a_recorded_step_has_the_sums_of_the_group(backend: str) -> None:
    if backend not in xbp.available_backends():
        pytest.skip(f"no {backend} here")
    found, metrics = [], (training.accuracy, "f1")
    with xbp.use_backend(backend), emulated_graphs():
        for capture in (False, True):
            trainer = fits.trainer_of(Fit(metrics=metrics), Doubled(), capture=capture)
            history = trainer.fit(X, Y, 3, batch_size=5)  # shares of 3, 3, 3 and 2 samples
            assert (recordings_of(trainer._stepper) is not None) == capture
            state = trainer.model.state_dict()
            found.append((history.records, {k: v.tobytes() for k, v in state.items()}))
    assert found[0] == found[1]


class Everything(Metric):
    """A user's metric, which a graph cannot hold: it is given all rows of each batch."""

    name = "everything"

    def reset(self) -> None:
        self.batches: list[Any] = []

    def update(self, prediction: Any, target: Any) -> None:
        self.batches.append([xbp.to_numpy(array).copy() for array in (prediction, target)])

    def compute(self) -> float:
        return float(sum((k + 1) * np.sum(each) for k, (each, _) in enumerate(self.batches)))


def test_after_a_recorded_step_a_metric_is_given_the_whole_batch() -> None:
    pytest.importorskip("array_api_strict")
    found = []
    with xbp.use_backend("array_api_strict"), emulated_graphs():
        for capture in (False, True):
            metric = Everything()
            trainer = fits.trainer_of(Fit(metrics=(metric,)), Doubled(), capture=capture)
            history = trainer.fit(X, Y, 4, batch_size=5)
            assert (recordings_of(trainer._stepper) is not None) == capture
            assert [len(target) for _, target in metric.batches] == [5, 5, 5, 3]
            for prediction, _ in metric.batches:
                assert (prediction[0::2] != 0).all() and (prediction[1::2] == 0).all()
            found.append(history["everything"])
    assert found[0] == found[1]


def test_sums_that_no_device_records_make_steps_eager() -> None:
    pytest.importorskip("array_api_strict")

    class Host(Doubled):
        recordable = False

    with xbp.use_backend("array_api_strict"), emulated_graphs():
        trainer = fits.trainer_of(Fit(), Host())
        trainer.fit(X, Y, batch_size=4)
        assert recordings_of(trainer._stepper) is None
        with pytest.raises(InputError, match="capture=True needs processes whose sums a GPU rec"):
            fits.trainer_of(Fit(), Host(), capture=True).fit(X, Y, batch_size=4)


def test_a_step_of_a_users_own_reduces_its_gradients() -> None:
    class Own(xbp.Trainer):
        def step(self, x: Any, y: Any) -> Any:
            prediction, backward = self.model.forward(x, training=True)
            value, gradient, weight = parallel.weighted(self.loss, prediction, y)
            backward(gradient)
            parameters = self.model.parameters()
            self.current_loss = parallel.reduce_gradients(parameters, self.group, value, weight)
            self.optimizer.step()
            self.optimizer.zero_grad()
            return prediction

    def run(kind: Any, group: Any) -> dict[str, Any]:
        model = normalized()
        loss = nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0])
        trainer = kind(model, loss, fits.sgd(model.parameters()), ["f1"], rng=5, group=group)
        history = trainer.fit(X, Y, 2, **OPTIONS)
        return {key: np.array(history[key]) for key in history.names()} | model.state_dict()

    agree(by_threads(3, lambda group: run(Own, group)), run(xbp.Trainer, None))
