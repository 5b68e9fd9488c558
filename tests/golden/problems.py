"""The trainings and models of the golden files: their construction in the current API.

The files fix what they compute. Names may follow the library; numbers may not change.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import xbp
from xbp import nn, optim
from xbp.models import lenet1998
from xbp.report.run import StepCurve
from xbp.training import (
    Callback,
    Checkpoints,
    ConfusionMatrix,
    Convergence,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    TopKAccuracy,
)

FILES = Path(__file__).parent / "files"


def spread(*shape: int, dtype: Any = "float32", shift: int = 0) -> NDArray[Any]:
    """Scattered multiples of 1/128 from -1 to 1, equal on every machine."""
    indices = np.arange(shift, shift + int(np.prod(shape)), dtype=np.int64)
    return ((indices * 7919 % 257 - 128) / 128).reshape(shape).astype(dtype)


# --- models --------------------------------------------------------------------------------------


def small(classes: int = 4, *, dtype: Any = "float32", rng: Any = 0) -> nn.Sequential:
    """A convolutional network for 8 × 8 pixels with 145 parameters, if there are four classes."""
    rng = xbp.random.generator(rng)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, dtype=dtype, rng=rng),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 3, dtype=dtype, rng=rng),
        nn.PReLU(3, dtype=dtype),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(12, classes, dtype=dtype, rng=rng),
    )


def small28(classes: int = 10, *, dtype: Any = "float32", rng: Any = 0, **_: Any) -> nn.Sequential:
    """A small network in place of LeNet-5 in ``xbp train lenet5``, for small files."""
    rng = xbp.random.generator(rng)
    return nn.Sequential(
        nn.AvgPool2d(7),
        nn.Flatten(),
        nn.Dropout(0.125),
        nn.Linear(16, classes, dtype=dtype, rng=rng),
    )


def dense(p: float = 0.5) -> nn.Sequential:
    rng = xbp.random.generator(1)
    return nn.Sequential(
        nn.Linear(3, 5, dtype="float64", rng=rng),
        nn.Sigmoid(),
        nn.Dropout(p),
        nn.Linear(5, 2, dtype="float64", rng=rng),
    )


def recurrent(layer: type[nn.Recurrent] = nn.RNN) -> nn.Sequential:
    rng = xbp.random.generator(2)
    return nn.Sequential(layer(2, 3, rng=rng), nn.LastTimeStep(), nn.Linear(3, 2, rng=rng))


def of1998() -> nn.Sequential:
    """The layers of LeNet-5 as it was in 1998, for 8 × 8 pixels and two classes."""
    rng = xbp.random.generator(3)
    table = [[True, False], [True, True], [False, True]]  # 3 maps, each looking at some of 2
    codes = spread(2, 12, dtype="float64") > 0
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, dtype="float64", rng=rng),
        nn.ScaledTanh(),
        lenet1998.Subsample2d(2, dtype="float64", rng=rng),
        lenet1998.PartialConv2d(table, 3, dtype="float64", rng=rng),
        nn.ScaledTanh(),
        nn.Flatten(),
        lenet1998.EuclideanRBF(np.where(codes, 1.0, -1.0), dtype="float64"),
        lenet1998.Negation(),
    )


def one_by_one() -> nn.Sequential:
    """One input, one output: no sum has two terms, so all machines compute the same bits."""
    rng = xbp.random.generator(4)
    return nn.Sequential(
        nn.Linear(1, 1, dtype="float64", rng=rng),
        nn.PReLU(dtype="float64"),
        nn.Dropout(0.5),
        nn.Linear(1, 1, dtype="float64", rng=rng),
    )


MODELS: dict[str, tuple[Callable[[], nn.Layer], NDArray[Any]]] = {
    "small": (small, spread(2, 1, 8, 8)),
    "dense": (dense, spread(2, 3, dtype="float64")),
    "rnn": (recurrent, spread(2, 4, 2)),
    "lstm": (lambda: recurrent(nn.LSTM), spread(2, 4, 2)),
    "gru": (lambda: recurrent(nn.GRU), spread(2, 4, 2)),
    "1998": (of1998, spread(2, 1, 8, 8, dtype="float64")),
}
"""A user's own models, of which a file has the weights only; with inputs."""

NAMED: dict[str, tuple[Callable[[], nn.Layer], NDArray[Any]]] = {
    "lenet5": (lambda: xbp.models.LeNet5(rng=0), spread(2, 1, 28, 28)),
    "lenet5_tanh_average_float64": (
        lambda: xbp.models.LeNet5(3, activation="tanh", pool="average", dtype="float64", rng=0),
        spread(2, 1, 28, 28, dtype="float64"),
    ),
    "lenet5_1998": (lambda: xbp.models.LeNet5(variant="1998", rng=0), spread(2, 1, 28, 28)),
    "mlp": (
        lambda: xbp.models.MLP(3, 4, 3, 2, activation=[nn.Tanh, nn.GELU], dropout=[0, 0.5], rng=0),
        spread(2, 3),
    ),
    "mlp_float64": (
        lambda: xbp.models.MLP(
            *(2, 3, 1), bias=False, output_activation=nn.Sigmoid, dtype="float64", rng=0
        ),
        spread(2, 2, dtype="float64"),
    ),
}
"""Models of xbp, which `load_model` makes from their files; with inputs."""


# --- trainings -----------------------------------------------------------------------------------


class Training(NamedTuple):
    """A `fit` of `epochs` epochs; ``middle.safetensors`` is the state after `middle` steps, within
    an epoch, and ``end.safetensors`` the state at the end.
    """

    model: Callable[[], nn.Layer]
    loss: Callable[[], nn.Loss]
    optimizer: Callable[[list[nn.Parameter]], optim.Optimizer]
    x: NDArray[Any]
    y: NDArray[Any]
    middle: int
    epochs: int = 3
    batch_size: int = 4
    metrics: Callable[[], list[Any]] = list
    callbacks: Callable[[Path], list[Callback]] = lambda folder: []
    seed: int = 5
    validate: bool = True

    def steps_per_epoch(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def run(
        self, folder: Path, *, resume: Path | None = None, until: int | None = None
    ) -> xbp.Trainer:
        """Train in `folder`; checkpoints after `middle` steps, each epoch, and `until` steps."""
        model = self.model()
        optimizer = self.optimizer(model.parameters())
        trainer = xbp.Trainer(model, self.loss(), optimizer, self.metrics(), rng=self.seed)
        callbacks = [*self.callbacks(folder), Checkpoints(folder, self.middle, keep=99)]
        if until is not None:
            callbacks.insert(0, StopAfter(until))
        validation = (self.x[:5], self.y[:5]) if self.validate else None
        trainer.fit(
            *(self.x, self.y, self.epochs, self.batch_size, validation, callbacks),
            verbose=False,
            resume=resume,
        )
        return trainer


class StopAfter(Callback):
    """A callback that ends training after a step, counted over all epochs, unless it is resumed."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
        if trainer.optimizer.steps == self.steps:
            trainer.stop("interrupted")


def checkpoint(folder: Path, steps: int) -> Path:
    return folder / f"step-{steps:08}.safetensors"


def classes(n: int, count: int) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) * 5 % count


def _everything(folder: Path) -> list[Callback]:
    """All callbacks with a state."""
    return [
        EarlyStopping("val_loss", patience=9),
        Convergence(1e-9),
        StepCurve(),
        CSVLogger(folder / "log.csv"),
        ModelCheckpoint(folder / "best.model.safetensors", "val_accuracy", save_best_only=True),
    ]


def _optimizer(name: str, **options: Any) -> Training:
    """A training by one optimizer of the table."""
    return Training(
        lambda: nn.Sequential(nn.Linear(2, 2, dtype="float64", rng=0)),
        nn.MSELoss,
        lambda parameters: getattr(optim, name)(parameters, **options),
        spread(14, 2, dtype="float64"),
        spread(14, 2, dtype="float64", shift=50),
        middle=6,
        epochs=2,
        validate=False,
    )


TRAININGS: dict[str, Training] = {
    "adam": Training(
        small,
        nn.CrossEntropyLoss,
        lambda p: optim.Adam(p, optim.OneCycleLR(0.02, 15), amsgrad=True),
        spread(18, 1, 8, 8),
        classes(18, 4),
        middle=7,
        metrics=lambda: [
            *("accuracy", "precision", "recall", "f1"),
            *(TopKAccuracy(2), ConfusionMatrix()),
        ],
        callbacks=_everything,
    ),
    "momentum": Training(
        dense,
        nn.MSELoss,
        lambda p: optim.SGD(p, 0.1, momentum=0.875, nesterov=True, weight_decay=0.01),
        spread(14, 3, dtype="float64"),
        spread(14, 2, dtype="float64", shift=11),
        middle=6,
        callbacks=lambda folder: [LearningRateScheduler(lambda epoch: 0.125 / (epoch + 1))],
    ),
    "rnn": Training(
        recurrent,
        nn.CrossEntropyLoss,
        lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
        spread(11, 4, 2),
        classes(11, 2),
        middle=4,
        metrics=lambda: ["accuracy"],
    ),
    "1998": Training(
        of1998,
        lenet1998.RejectingCrossEntropyLoss,
        lambda p: optim.SGD(p, optim.StepLR(0.02, 4)),
        spread(10, 1, 8, 8, dtype="float64"),
        classes(10, 2),
        middle=4,
    ),
    "one_by_one": Training(
        one_by_one,
        nn.MSELoss,
        lambda p: optim.SGD(p, 0.25, momentum=0.5, nesterov=True),
        spread(6, 1, dtype="float64"),
        spread(6, 1, dtype="float64", shift=3),
        middle=8,
        batch_size=1,
        validate=False,
    ),
    "optimizer_adagrad": _optimizer("Adagrad", lr=0.1, lr_decay=0.05),
    "optimizer_adadelta": _optimizer("Adadelta", lr=0.5),
    "optimizer_rmsprop": _optimizer("RMSprop"),
    "optimizer_adam": _optimizer("Adam", lr=0.1, weight_decay=0.01),
    "optimizer_adamw": _optimizer("AdamW", lr=0.1),
    "optimizer_adamax": _optimizer("Adamax", lr=0.1),
    "optimizer_nadam": _optimizer("NAdam", lr=0.1),
    "optimizer_radam": _optimizer("RAdam", lr=0.1),
}
EXACT = "one_by_one"
"""The training that has equal bits on every machine."""

ORDERS = [(5, 0, 18), (5, 1, 18), (5, 2, 7), (0, 0, 64), (2**63, 10, 5)]
"""(seed, epoch, number of samples) of shuffles."""

DRAWS = [(5, 0, 9), (5, 7, 9), (0, 2**33 + 1, 5), (2**64, 3, 5)]
"""(seed, step, number of words) of random bits, two draws each."""

CLI = ["train", "lenet5", "--epochs", "2", "--batch-size", "32", "--limit", "100"]
"""The run whose folders are kept; the resumed run has `small28` in place of LeNet-5."""
CLI_MIDDLE = 6
