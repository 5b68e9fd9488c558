"""A `fit` by one process, or by the ranks of a group, and what comes of it.

    mpiexec -n 3 python -m mpi4py tests/parallel/fits.py FOLDER CASE…

writes what each rank has found to ``FOLDER/CASE_RANK.npz``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from parallel.shares import CASES as LOOPS
from parallel.shares import dropped, normalized, plain, problem

import xbp
from xbp import data, models, nn, optim, parallel
from xbp.training import LambdaCallback, Metric

X, Y = problem(LOOPS["dropout"])  # 18 samples: batches of 8, 8 and 2
HELD = X[:7], Y[:7]


class Weighed(Metric):
    """A user's metric, which depends on the order of batches and of their samples."""

    name = "weighed"

    def reset(self) -> None:
        self.total, self.seen = 0.0, 0

    def update(self, prediction: Any, target: Any) -> None:
        for outputs, label in zip(*map(xbp.to_numpy, (prediction, target)), strict=True):
            self.seen += 1
            self.total += self.seen * float(outputs[label])

    def compute(self) -> float:
        return self.total / self.seen

    def state_dict(self) -> dict[str, Any]:
        return {"total": np.asarray(self.total), "seen": np.asarray(self.seen)}

    def load_state_dict(self, state: Any) -> None:
        self.total, self.seen = float(state["total"]), int(state["seen"])


def margin(prediction: Any, target: Any) -> Any:
    """A user's function, which is a mean over samples."""
    return np.mean(np.max(prediction, axis=1) - np.min(prediction, axis=1))


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.05, momentum=0.9)


class Clipped(optim.SGD):
    """SGD by gradients whose common norm is at most 0.1: that of the gradients of the batch."""

    def step(self, coefficients: Any = None) -> None:
        optim.clip_grad_norm(self.parameters, 0.1)
        super().step(coefficients)


def batches(x: Any, y: Any) -> list[Any]:
    """An iterable of batches, of unequal sizes."""
    return [(x[part], y[part]) for part in (slice(0, 8), slice(8, 9), slice(9, None))]


class Fit(NamedTuple):
    model: Callable[[], nn.Layer] = dropped
    loss: Callable[[], Any] = nn.CrossEntropyLoss
    optimizer: Callable[..., optim.Optimizer] = lambda p: optim.Adam(p, lr=0.01)
    metrics: tuple[Any, ...] = ("accuracy", "f1")
    given: Callable[[], Any] = lambda: (X, Y)
    options: dict[str, Any] = {"batch_size": 8, "validation_data": HELD}  # noqa: RUF012


FITS = {
    "dropout": Fit(),
    "batch norm": Fit(normalized, optimizer=sgd),
    "augmentation": Fit(
        plain,
        options={"batch_size": 8, "augment": data.Compose(data.Flip(), data.ShiftedCrop(1))},
    ),
    "metrics of a user": Fit(metrics=(Weighed(), margin, "accuracy")),
    "weights of classes": Fit(
        normalized,
        lambda: nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0], ignore_index=1),
        sgd,
    ),
    "a sum": Fit(loss=lambda: nn.CrossEntropyLoss("sum")),
    "clipped": Fit(optimizer=lambda p: Clipped(p, lr=0.5)),
    "accumulated": Fit(
        options={
            "batch_size": 3,
            "accumulate": 3,
            "augment": data.Compose(data.Flip(), data.ShiftedCrop(1)),
            "validation_data": HELD,
        },
    ),
    "accumulated, weights of classes": Fit(
        normalized,
        lambda: nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0]),
        sgd,
        options={"batch_size": 3, "accumulate": 3},
    ),
    "a source": Fit(
        given=lambda: (data.Arrays(X, Y), None),
        options={"batch_size": 8, "validation_data": data.Arrays(*HELD)},
    ),
    "an iterable": Fit(
        given=lambda: (batches(X, Y), None), options={"validation_data": batches(X, Y)}
    ),
}


def trainer_of(case: Fit, group: parallel.Group | str | None = None, **options: Any) -> xbp.Trainer:
    model = case.model()
    return xbp.Trainer(
        *(model, case.loss(), case.optimizer(model.parameters()), case.metrics),
        group=group,
        **{"rng": 5} | options,
    )


def fit(case: Fit, group: parallel.Group | str | None, **options: Any) -> dict[str, Any]:
    """Numbers of each kind that a user may look at, by names."""
    trainer = trainer_of(case, group)
    history = trainer.fit(*case.given(), **{"epochs": 3} | case.options | options)
    found = {f"history {name}": np.array(history[name]) for name in history.names()}
    found |= {f"state {name}": value for name, value in trainer.model.state_dict().items()}
    whole = trainer.evaluate(X, Y, batch_size=7)
    found |= {f"evaluated {name}": np.array(value) for name, value in whole.items()}
    found["predicted"] = trainer.predict(HELD[0], batch_size=5)
    found["predicted, one by one"] = trainer.predict(HELD[0], batch_size=1)
    found["the last loss"] = np.array(trainer.current_loss)
    return found


# --- 200 steps -----------------------------------------------------------------------------------

IMAGES = np.random.default_rng(3).normal(size=(96, 1, 28, 28)).astype(np.float32)
DIGITS = np.random.default_rng(4).integers(0, 10, 96)


def normalized_long(group: parallel.Group | str | None) -> dict[str, Any]:
    """201 steps of a network with batch norm, at a rate that magnifies rounding little."""
    return fit(Fit(normalized, optimizer=lambda p: optim.SGD(p, lr=0.01)), group, epochs=67)


def lenet5(group: parallel.Group | str | None, steps: int = 200) -> dict[str, Any]:
    """LeNet-5 with dropout, in float64, so that rounding does not decide which maximum wins."""
    lenet = models.LeNet5(rng=1).astype("float64")
    model = nn.Sequential(lenet, nn.Dropout(0.1))
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trainer = xbp.Trainer(
        *(model, nn.CrossEntropyLoss(), optimizer), ["accuracy"], rng=2, group=group
    )
    losses: list[float] = []
    keep = LambdaCallback(on_step_end=lambda t, step: losses.append(float(t.current_loss)))
    trainer.fit(IMAGES.astype(np.float64), DIGITS, steps // 4, 29, callbacks=[keep])  # last: 9
    return {"losses": np.array(losses), **model.state_dict()}


LONG: dict[str, Callable[..., dict[str, Any]]] = {
    "LeNet-5, 200 steps": lenet5,
    "batch norm, 201 steps": normalized_long,
}

if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    here = parallel.group("mpi")
    for case_name in names:
        long = LONG.get(case_name)
        result = fit(FITS[case_name], here) if long is None else long(here)
        np.savez(folder / f"{case_name}_{here.rank}.npz", **result)
