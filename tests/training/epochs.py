"""A table of everything that trains, with data for an epoch, captured and eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nn.cases import CALLS

import xbp
from xbp import models, nn, optim, training
from xbp.testing.cases import RULES, Case, Layer, fed
from xbp.training.capture import Phase, recordings_of

BATCH, SAMPLES = 2, 9  # a warm-up, a recording, two replays, and a batch of another size

CALLBACKS: dict[str, Callable[[Path], Any]] = {
    "CSVLogger": lambda path: training.CSVLogger(path / "log.csv"),
    "Callback": lambda path: training.Callback(),
    "Checkpoints": lambda path: training.Checkpoints(path / "checkpoints"),
    "Convergence": lambda path: training.Convergence(1e-9),
    "EarlyStopping": lambda path: training.EarlyStopping("loss", restore_best=True),
    "ExponentialMovingAverage": lambda path: training.ExponentialMovingAverage(0.9),
    "LambdaCallback": lambda path: training.LambdaCallback(on_step_end=lambda t, s: t.current_loss),
    "LearningRateScheduler": lambda path: training.LearningRateScheduler(lambda epoch: 0.01),
    "LiveCurve": lambda path: training.LiveCurve(),
    "MLflow": lambda path: training.MLflow(tracking_uri=f"sqlite:///{path}/mlflow.db"),
    "ModelCheckpoint": lambda path: training.ModelCheckpoint(path / "best.safetensors", "loss"),
    "ProgressBar": lambda path: training.ProgressBar(),
    "ReduceLROnPlateau": lambda path: training.ReduceLROnPlateau("loss"),
    "TensorBoard": lambda path: training.TensorBoard(path / "board"),
    "TerminateOnNaN": lambda path: training.TerminateOnNaN(),
}
NEEDS = {"MLflow": "mlflow", "TensorBoard": "tensorboardX"}

METRICS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: name for name in training.METRICS},
    "Accuracy": training.Accuracy,
    "ConfusionMatrix": training.ConfusionMatrix,
    "F1Score": lambda: training.F1Score(average="micro"),
    "Precision": training.Precision,
    "Recall": training.Recall,
    "TopKAccuracy": lambda: training.TopKAccuracy(2),
    "accuracy()": lambda: training.accuracy,
}


class Epoch(NamedTuple):
    """A training of one epoch.

    Attributes
    ----------
    name : str
    model : callable
        Makes a new model.
    data : callable
        Makes x and y.
    loss, rule, metrics : callable
        Make the loss, the optimizer of some parameters, the metrics.
    callback : str
        One of `CALLBACKS`, or empty.
    """

    name: str
    model: Callable[[], nn.Layer]
    data: Callable[[], tuple[Any, Any]]
    loss: Callable[[], Any] = nn.MSELoss
    rule: Callable[[Any], optim.Optimizer] = lambda p: optim.SGD(p, 0.1, momentum=0.9)
    metrics: Callable[[], list[Any]] = list
    callback: str = ""

    def __str__(self) -> str:
        return self.name


def many(array: Any) -> Any:
    """`SAMPLES` rows, repeated from the given ones."""
    return np.resize(array, (SAMPLES, *array.shape[1:]))


def behind_a_slope(layer: nn.Layer | None = None) -> nn.Layer:
    """The layer after a linear one, so that each model has a parameter with a gradient."""
    layers = [] if layer is None else [layer]
    return nn.Sequential(nn.PReLU(dtype="float64"), *layers)


def of_layer(case: Case) -> Epoch:
    def data() -> tuple[Any, Any]:
        x = many(case.inputs()[0])
        with xbp.use_backend("numpy"):
            y = case.make().forward(x, training=True, rng=0)[0]
        return x, np.random.default_rng(4).normal(size=y.shape)

    return Epoch(case.call, lambda: behind_a_slope(case.make()), data)


def of_loss(case: Case) -> Epoch:
    def data() -> tuple[Any, Any]:
        prediction, target = case.inputs()
        return many(prediction), many(target)

    return Epoch(case.call, behind_a_slope, data, case.make)


def of_tokens() -> Epoch:
    """A model of integers, like those of a text."""

    def data() -> tuple[Any, Any]:
        rng = np.random.default_rng(8)
        return rng.integers(0, 7, (SAMPLES, 5)), rng.normal(size=(SAMPLES, 5, 7))

    sizes = {"vocabulary": 7, "context": 6, "layers": 1, "heads": 2, "width": 4}
    return Epoch("GPT of tokens", lambda: models.GPT(**sizes, dropout=0.1, rng=0), data)


def classifier() -> nn.Layer:
    return nn.Sequential(nn.Linear(3, 4, rng=0), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 6, rng=1))


def of_classes(name: str, **more: Any) -> Epoch:
    def data() -> tuple[Any, Any]:
        x = np.random.default_rng(5).normal(size=(SAMPLES, 3)).astype("float32")
        return x, np.arange(SAMPLES) % 6

    return Epoch(name, classifier, data, nn.CrossEntropyLoss, **more)


def of_two_classes(name: str) -> Epoch:
    def data() -> tuple[Any, Any]:
        x = np.random.default_rng(6).normal(size=(SAMPLES, 1))
        return x, 1.0 * (x > 0)

    metrics = lambda: [training.binary_accuracy]  # noqa: E731
    return Epoch(name, behind_a_slope, data, nn.BCEWithLogitsLoss, metrics=metrics)


LONG = [
    *(Layer(name, None, [fed((2, 11, 2), 2, 3)], title=f"long {name}") for name in (
        "RNN", "LSTM", "GRU")),
    Layer("GRU", None, [fed((2, 11, 2), 2, 3, bidirectional=True, truncate=4)], title="long GRU"),
    Layer("RNN", None, [fed((2, 3, 2), 2, 2, 5, bidirectional=True, dropout=0.5)]),
]  # fmt: skip


def epochs() -> Iterator[Epoch]:
    for case in (*CALLS, *(case for line in LONG for case in line.cases())):
        if case.line.trains:
            yield of_loss(case) if case.kind == "loss" else of_layer(case)
    yield of_tokens()
    for rule in RULES:
        yield of_classes(str(rule), rule=rule)
    for name, metric in METRICS.items():
        yield of_classes(f"metric {name}", metrics=lambda metric=metric: [metric()])
    for name in CALLBACKS:
        yield of_classes(f"callback {name}", callback=name)
    yield of_two_classes("metric binary_accuracy")


EPOCHS = {epoch.name: epoch for epoch in epochs()}


def named(name: str) -> Epoch:
    """The epoch of this name, or the first one of this layer, loss or optimizer."""
    return EPOCHS.get(name) or next(e for e in EPOCHS.values() if e.name.startswith(f"{name}("))


def trained(epoch: Epoch, capture: bool, path: Path) -> tuple[Any, xbp.Trainer]:
    """The bits of all results of an epoch, and its messages."""
    model = epoch.model()
    trainer = xbp.Trainer(
        model, epoch.loss(), epoch.rule(model.parameters()), epoch.metrics(), rng=7, capture=capture
    )
    callbacks = []
    if epoch.callback:
        path = path / f"captured={capture}"
        path.mkdir()
        callbacks.append(CALLBACKS[epoch.callback](path))
    trainer.fit(*epoch.data(), epochs=1, batch_size=BATCH, callbacks=callbacks)
    state = {**model.state_dict(), **trainer.optimizer.state_dict()}
    bits = {name: (np.shape(value), np.asarray(value).tobytes()) for name, value in state.items()}
    said = [{k: str(v) for k, v in record.items()} for record in trainer.history.records]
    return (bits, said), trainer


def check(epoch: Epoch, path: Path) -> None:
    """Check that a captured epoch has the results of an eager one, and was replayed."""
    without, _ = trained(epoch, False, path)
    captured, trainer = trained(epoch, True, path)
    assert captured == without, "a captured epoch differs from one that is not"
    recordings = recordings_of(trainer._stepper)
    assert recordings is not None
    assert recordings.by_size[BATCH].phase is Phase.REPLAY
