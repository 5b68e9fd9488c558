"""The training loop: its results, its ends, its errors."""

from __future__ import annotations

import itertools
import math
import os
import signal
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.errors import InputError, NonFiniteError
from xbp.training import Callback, Convergence, EarlyStopping, accuracy

Data = tuple[NDArray[Any], NDArray[Any]]


def blobs(n: int = 90, dtype: str = "float64") -> Data:
    """Three well separated classes in the plane."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return (rng.normal(size=(n, 2)) + 4 * np.eye(3)[y][:, :2]).astype(dtype), y


def classifier(dropout: float = 0.0, dtype: str = "float64") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, 8, dtype=dtype, rng=0),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(8, 3, dtype=dtype, rng=1),
    )


def make_trainer(dropout: float = 0.0, *, lr: Any = 0.1, rng: int = 0) -> xbp.Trainer:
    model = classifier(dropout)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=rng)


def test_fit_learns() -> None:
    trainer = make_trainer()
    history = trainer.fit(*blobs(), epochs=20, batch_size=16)
    assert history["accuracy"][-1] > 0.95
    assert history["loss"][-1] < history["loss"][0] / 3


def test_fit_is_the_explicit_loop() -> None:
    """Shuffles, masks and steps, with the last partial batch, are equal bit for bit."""
    x, y = blobs(50)
    trainer = make_trainer(dropout=0.3)
    history = trainer.fit(x, y, epochs=2, batch_size=16)

    model, loss = classifier(0.3), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stream, means = xbp.random.RandomStream(0), []
    for epoch in range(2):
        order, total = xbp.random.permutation(0, epoch, 50), 0.0
        for start in (0, 16, 32, 48):
            batch = order[start : start + 16]
            stream.advance(optimizer.steps)
            prediction, backward = model.forward(x[batch], training=True, rng=stream)
            value, gradient = loss(prediction, y[batch])
            backward(gradient)
            optimizer.step()
            optimizer.zero_grad()
            total += len(batch) * float(value)
        means.append(total / 50)
    assert history["loss"] == pytest.approx(means, rel=1e-15)  # the order of the sum
    for name, value in model.state_dict().items():
        assert np.array_equal(value, trainer.model.state_dict()[name])


def test_the_same_seed_gives_the_same_history_and_another_one_does_not() -> None:
    runs = [
        make_trainer(0.2, rng=rng).fit(*blobs(), epochs=3, batch_size=16, validation_data=blobs(30))
        for rng in (0, 0, 1)
    ]
    assert runs[0].records == runs[1].records
    assert runs[0]["loss"] != runs[2]["loss"]


def test_two_fits_are_one_long_fit() -> None:
    whole, parts = make_trainer(0.2), make_trainer(0.2)
    records = whole.fit(*blobs(), epochs=3, batch_size=32).records
    first = parts.fit(*blobs(), epochs=1, batch_size=32).records
    assert first + parts.fit(*blobs(), epochs=2, batch_size=32).records == records


def test_every_sample_is_used_once_an_epoch() -> None:
    seen: list[float] = []

    class Spy(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            if training:
                seen.extend(x[:, 0].tolist())
            return x, lambda dy: dy

    model = nn.Sequential(Spy(), nn.Linear(1, 1, dtype="float64", rng=0))
    trainer = xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.01), rng=0)
    x = np.arange(23.0).reshape(-1, 1) / 23
    trainer.fit(x, x, epochs=2, batch_size=5)
    assert sorted(seen[:23]) == sorted(seen[23:]) == x[:, 0].tolist()
    assert seen[:23] != x[:, 0].tolist()
    assert seen[:23] != seen[23:]


def test_evaluate_is_the_loss_over_the_whole_set() -> None:
    trainer = make_trainer(dropout=0.5)
    x, y = blobs(50)
    result = trainer.evaluate(x, y, batch_size=16)
    prediction = trainer.model(x)
    assert result["loss"] == pytest.approx(float(trainer.loss(prediction, y)[0]), rel=1e-13)
    assert result["accuracy"] == (prediction.argmax(1) == y).mean()
    assert np.array_equal(trainer.predict(x, batch_size=50), prediction)
    # Row by row BLAS may order a sum of 8 products differently.
    np.testing.assert_allclose(trainer.predict(x, batch_size=7), prediction, rtol=1e-13)


def test_a_summed_loss_is_summed_over_batches() -> None:
    x, y = blobs(50)
    model = classifier()
    loss = nn.CrossEntropyLoss("sum")
    trainer = xbp.Trainer(model, loss, optim.SGD(model.parameters(), lr=0.01))
    expected = float(loss(model(x), y)[0])
    assert trainer.evaluate(x, y, batch_size=16)["loss"] == pytest.approx(expected, rel=1e-13)


def test_early_stopping_stops_and_restores_the_best() -> None:
    x, y = blobs()
    trainer = make_trainer(lr=optim.StepLR(0.1, 30, gamma=10.0))  # good at first, then too large
    history = trainer.fit(
        x,
        y,
        epochs=50,
        batch_size=16,
        validation_data=(x, y),
        callbacks=[EarlyStopping(patience=2)],
    )
    best = min(history["val_loss"])
    assert len(history) == history["val_loss"].index(best) + 3
    assert "val_loss has not improved" in history.stopped
    assert trainer.evaluate(x, y)["loss"] == best


def test_convergence_stops_when_the_loss_settles() -> None:
    history = make_trainer().fit(*blobs(), epochs=500, batch_size=90, callbacks=[Convergence(1e-3)])
    losses = history["loss"]
    assert 2 <= len(losses) < 500
    assert abs(losses[-1] - losses[-2]) < 1e-3
    assert all(abs(a - b) >= 1e-3 for a, b in itertools.pairwise(losses[:-1]))
    assert "changed by less than 0.001" in history.stopped


def test_ctrl_c_ends_after_the_step_and_keeps_the_history() -> None:
    steps: list[int] = []

    class Interrupt(Callback):
        def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
            steps.append(step)
            if len(steps) == 4:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer()
    history = trainer.fit(*blobs(), epochs=5, batch_size=30, callbacks=[Interrupt()])
    assert steps == [1, 2, 3, 1]
    assert len(history) == 2
    assert "Ctrl-C" in history.stopped
    assert signal.getsignal(signal.SIGINT) is before


def test_callbacks_end_even_when_training_fails() -> None:
    calls: list[str] = []

    class Spy(Callback):
        def on_fit_begin(self, trainer: xbp.Trainer) -> None:
            calls.append("begin")

        def on_epoch_begin(self, trainer: xbp.Trainer, epoch: int) -> None:
            raise RuntimeError("on purpose")

        def on_fit_end(self, trainer: xbp.Trainer) -> None:
            calls.append("end")

    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer().fit(*blobs(), callbacks=[Spy()])
    assert calls == ["begin", "end"]


class Poison(nn.Layer):
    """The identity until its n-th training step, then nan."""

    def __init__(self, good_steps: int) -> None:
        self.left = good_steps

    def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
        self.left -= training
        return (x if self.left >= 0 else x * math.nan), lambda dy: dy


def test_a_loss_that_is_not_finite_names_epoch_step_and_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 8, dtype="float64", rng=0), Poison(4),
                          nn.Linear(8, 3, dtype="float64", rng=1))  # fmt: skip
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0)
    with pytest.raises(NonFiniteError, match=r"nan in epoch 2, step 2.*layer '1', Poison") as error:
        trainer.fit(*blobs(), epochs=3, batch_size=30)
    assert "\n" not in str(error.value)
    assert len(trainer.history) == 1
    assert optimizer.steps == 4
    assert all(np.isfinite(value).all() for value in model.state_dict().values())


def test_a_loss_that_is_not_finite_is_found_on_a_device() -> None:
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        model = nn.Sequential(nn.Linear(2, 3, dtype="float64", rng=0), Poison(4))
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1), rng=0
        )
        with pytest.raises(NonFiniteError, match=r"nan in epoch 2, step 2"):
            trainer.fit(*blobs(), epochs=3, batch_size=30)


def test_nan_in_the_data_is_named() -> None:
    x, y = blobs()
    x[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="the input: check the data"):
        make_trainer().fit(x, y, batch_size=90)


BAD_FITS = [
    ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, r"same number of samples.*\(3, 2\).*\(4,\)"),
    ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "at least one"),
    ({"x": np.zeros((3, 5))}, r"expects input \(…, 2\).*\(1, 5\)"),
    ({"x": np.zeros((3, 2), np.uint8)}, "needs floating-point input, got uint8"),
    ({"y": np.array([0, 1, 3])}, "labels from 0 to 2 for 3 classes, got 3"),
    ({"y": np.array([0, -1, 2])}, "got -1"),
    ({"y": np.array([0.0, 1.0, 2.0])}, "integer labels"),
    ({"y": np.array([[0.5, 0.1, 0.1]] * 3)}, "summing to 1"),
    ({"y": np.array(["a", "b", "c"])}, "takes booleans and numbers"),
    ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
    ({"epochs": 1.5}, "epochs must be"),
    ({"batch_size": -1}, "batch_size must be"),
    ({"callbacks": [EarlyStopping()]}, "no 'val_loss' to monitor.*validation_data"),
    ({"callbacks": [Convergence(1.0, monitor="los")]}, "no 'los' to monitor, only epoch, lr, loss"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_FITS, ids=[s for _, s in BAD_FITS])
def test_bad_input_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    trainer = make_trainer()
    before = trainer.model.state_dict()
    arguments = {"x": np.zeros((3, 2)), "y": np.array([0, 1, 2])} | change
    with pytest.raises(InputError, match=sentence) as error:
        trainer.fit(**arguments)
    assert "\n" not in str(error.value)
    if "callbacks" not in change:
        assert all(np.array_equal(before[k], v) for k, v in trainer.model.state_dict().items())


def test_unknown_metric_and_empty_prediction_are_refused() -> None:
    model = classifier()
    with pytest.raises(InputError, match="no metric 'acc'"):
        xbp.Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=1), ["acc"])
    with pytest.raises(InputError, match="nothing to predict"):
        make_trainer().predict(np.zeros((0, 2)))


def test_accuracy() -> None:
    outputs = np.array([[1.0, 2.0], [3.0, 3.0], [0.0, 5.0], [7.0, 0.0]])
    assert float(accuracy(outputs, np.array([1, 0, 0, 0], np.uint8))) == 0.75
    assert float(accuracy(outputs, np.array([[0, 1], [1, 0], [1, 0], [1, 0]]))) == 0.75
    with pytest.raises(InputError, match="integer labels"):
        accuracy(outputs, np.zeros(4))
    with pytest.raises(InputError, match=r"\(4, 2\) and \(3,\)"):
        accuracy(outputs, np.zeros(3, int))


def test_the_progress_bar_shows_rate_loss_and_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer().fit(*blobs(), epochs=2, batch_size=30, verbose=True)
    output = capsys.readouterr().out
    assert "epoch 2/2" in output
    assert "loss" in output


def test_fit_is_quiet_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer().fit(*blobs(), epochs=2, batch_size=30)
    assert capsys.readouterr() == ("", "")


def test_history_csv(tmp_path: Any) -> None:
    history = make_trainer().fit(*blobs(), epochs=2, batch_size=30, validation_data=blobs(30))
    history.to_csv(tmp_path / "history.csv")
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header == "epoch,lr,loss,accuracy,val_loss,val_accuracy"
    assert [float(row.split(",")[2]) for row in rows] == history["loss"]
    with pytest.raises(KeyError):
        history["f1"]


# --- LeNet-5 on two backends ---


def lenet_with_dropout(dtype: str) -> nn.Sequential:
    *layers, last = xbp.models.LeNet5(dtype=dtype, rng=0)
    return nn.Sequential(*layers, nn.Dropout(0.5), last)


def thirty_steps(backend: str, dtype: str) -> dict[str, NDArray[Any]]:
    (x, y), _ = xbp.datasets.load_mnist()
    images = xbp.datasets.standardize_images(x[:480], dtype=dtype)
    with xbp.use_backend(backend):
        model = lenet_with_dropout(dtype)
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0)
        history = trainer.fit(images, y[:480], epochs=1, batch_size=16)
    assert optimizer.steps == 30
    return {"loss": np.array(history["loss"]), **model.state_dict()}


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("backend", ["array_api_strict", "torch", "cupy"])
def test_thirty_steps_of_lenet5_with_dropout_agree(backend: str, dtype: str, bound: float) -> None:
    """The bound covers rounding, which grows by about 10³ over 30 steps."""
    reason = xbp.backend.why_unavailable(backend)
    if reason:
        pytest.skip(reason)
    here, there = thirty_steps("numpy", dtype), thirty_steps(backend, dtype)
    for name, value in here.items():
        assert np.max(np.abs(value - there[name])) <= bound * np.max(np.abs(value)), name
