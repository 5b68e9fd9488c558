"""Whether n ranks compute what one process computes: ``xbp parity --ranks n``.

Each network is trained by `xbp.Trainer` with the same batches three ways: by one process in
float64, which is the truth; by `PROBES` processes in float64 whose images and weights are moved in
every step by what rounding explains (see `xbp.testing.curves`), which gives the bounds; and by the
ranks. The last batch of each epoch is smaller, and is divided unevenly. The networks are smooth, so
that the bounds stay close.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

import xbp
from xbp import accelerators, models, nn, optim
from xbp.backend import asarray, brief, to_numpy, use_backend
from xbp.parallel import Alone, Group
from xbp.testing.certificate import Progress, Row
from xbp.testing.curves import PROBES, Hosts, Move, distances
from xbp.testing.finding import Finding
from xbp.testing.tolerances import LAMBDA, roundoff
from xbp.training import Callback, Trainer

SAMPLES, BATCH, EPOCHS = 630, 64, 20
"""Nine batches of 64 and one of 54: 200 steps."""


def lenet5(dtype: str) -> nn.Layer:
    """LeNet-5 with dropout before its output."""
    layers = list(models.LeNet5(activation="tanh", pool="average", dtype=dtype, rng=0))
    return nn.Sequential(*layers[:-1], nn.Dropout(0.5), layers[-1])


def normalized(dtype: str) -> nn.Layer:
    """A convolutional network with batch norm of images and of features."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, dtype=dtype, rng=1),
        nn.BatchNorm2d(8, dtype=dtype),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(288, 32, dtype=dtype, rng=2),
        nn.BatchNorm1d(32, dtype=dtype),
        nn.Tanh(),
        nn.Linear(32, 10, dtype=dtype, rng=3),
    )


NETWORKS: dict[str, Callable[[str], nn.Layer]] = {
    "LeNet-5 with dropout": lenet5,
    "a network with batch norm": normalized,
}


@dataclass(frozen=True)
class Way:
    """How a network is trained: the dtype of its first weights, and that of the arithmetic."""

    dtype: str
    arithmetic: str
    backend: str = "numpy"
    group: Group = Alone()  # noqa: RUF009 - it has no state
    move: Move | None = None


class _Watcher(Callback):
    """Keeps the loss of every step, and moves the weights before the next one."""

    def __init__(self, move: Move | None) -> None:
        self.move, self.losses = move, list[Any]()

    def on_step_end(self, trainer: Any, step: int) -> None:
        self.losses.append(trainer.current_loss)
        if self.move is not None:
            for parameter in trainer.model.parameters():
                parameter.data = self.move(parameter.data)


def train(network: Callable[[str], nn.Layer], way: Way, epochs: int = EPOCHS) -> Hosts:
    """The losses of all steps, and the arrays of the trained model, by their names."""
    (images, labels), _ = xbp.datasets.load_mnist()
    x = xbp.datasets.standardize_images(images[:SAMPLES], dtype=way.dtype)
    with use_backend(way.backend):
        model = network(way.dtype)
        model.astype(way.arithmetic)
        optimizer = optim.SGD(model.parameters(), 0.02, momentum=0.9)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0, group=way.group)
        watcher, move = _Watcher(way.move), way.move
        trainer.fit(
            *(asarray(x, dtype=way.arithmetic), asarray(labels[:SAMPLES]), epochs, BATCH),
            callbacks=[watcher],
            augment=None if move is None else lambda x, y, rng: (move(x), y),
            verbose=False,
        )
        state = {name: [to_numpy(array)] for name, array in model.state_dict().items()}
        return {"the loss": [to_numpy(loss) for loss in watcher.losses]} | state


def certify_ranks(
    group: Group,
    backend: str,
    only: str = "",
    epochs: int = EPOCHS,
    progress: Progress = lambda done, total, case: None,
) -> list[Row]:
    """The rows of the certificate of these ranks; those of rank 0 alone are complete.

    All ranks call it, with the same arguments.

    Parameters
    ----------
    group : Group
    backend : str
    only : str, optional
        Only networks with this text in their names.
    epochs : int, optional
    progress : callable ``(done, total, case)``, optional
    """
    chosen = [name for name in NETWORKS if only.casefold() in name.casefold()]
    cases = list(product(chosen, ("float32", "float64")))
    rows = list[Row]()
    for name, dtype in cases:
        progress(len(rows), len(cases), f"{name}, {backend}, {dtype}")
        rows.append(_row(name, NETWORKS[name], Way(dtype, dtype, backend, group), epochs))
    progress(len(rows), len(cases), "")
    return rows


def _row(name: str, network: Callable[[str], nn.Layer], way: Way, epochs: int) -> Row:
    group, found = way.group, list[Finding]()
    try:
        run = train(network, way, epochs)
    except Exception as error:
        if group.size > 1:
            raise  # the other ranks would wait
        found.append(_finding(way, "the training", "forward", f"fails with {brief(error)}"))
    else:
        found += _same_bits(run, way)
        if group.rank == 0:
            found += _compare(run, network, way, epochs)
    units: dict[str, float] = {}
    for finding in found:
        units[finding.direction] = max(units.get(finding.direction, 0.0), finding.units)
    return Row(
        kind="ranks",
        name=f"{group.size}: {name}",
        backend=way.backend,
        dtype=way.dtype,
        cases=1,
        forward=units.get("forward"),
        backward=None,
        state=units.get("state"),
        bits=all(finding.passed for finding in found if finding.direction == "bits"),
        waits=None,
        failures=tuple(f"{name}, {epochs} epochs: {each}" for each in found if not each.passed),
    )


def _finding(way: Way, what: str, direction: str, problem: str = "") -> Finding:
    return Finding(
        way.backend, way.dtype, what, direction, 0.0, 0.0, f"{what} {problem}" if problem else ""
    )


def _same_bits(run: Hosts, way: Way) -> Iterator[Finding]:
    """Whether losses and arrays are the same on all ranks, by their hashes."""
    digests = [hashlib.blake2b(b"".join(a.tobytes() for a in arrays)) for arrays in run.values()]
    table = np.zeros((way.group.size, len(digests)), np.int64)
    table[way.group.rank] = [int.from_bytes(each.digest()[:7], "little") for each in digests]
    way.group.sum_(table)
    for key, column in zip(run, table.T, strict=True):
        other = int(np.argmax(column != column[0]))
        problem = f"differs between rank 0 and rank {other}" if other else ""
        yield _finding(way, key, "bits", problem)


def _compare(
    run: Hosts, network: Callable[[str], nn.Layer], way: Way, epochs: int
) -> Iterator[Finding]:
    """Losses of all steps, and the last arrays, against one process in float64."""
    with accelerators.disabled():
        truth = train(network, Way(way.dtype, "float64"), epochs)
        bounds = {key: np.zeros(len(arrays)) for key, arrays in truth.items()}
        for seed in range(PROBES):
            move = Move(math.sqrt(BATCH * 28 * 28) * roundoff(way.dtype), seed)
            probe = train(network, Way(way.dtype, "float64", move=move), epochs)
            for key, bound in bounds.items():
                np.maximum(bound, distances(probe, truth, key), out=bound)
    rounding = LAMBDA * math.sqrt(BATCH) * roundoff(way.dtype) * np.abs(truth["the loss"])
    bounds["the loss"] = np.maximum(np.maximum.accumulate(bounds["the loss"]), rounding)
    steps = len(truth["the loss"])
    for key, bound in bounds.items():
        error = distances(run, truth, key)
        worst = int(np.argmax(error / np.maximum(bound, 1e-300)))  # the first nan, if there is one
        what, direction = f"{key} after {steps} steps", "state"
        if key == "the loss":
            what, direction = f"the loss of step {worst + 1} of {steps}", "forward"
        if not np.isfinite(error[worst]):
            yield _finding(way, what, direction, "is not finite")
        else:
            numbers = float(error[worst]), float(bound[worst])
            yield Finding(way.backend, way.dtype, what, direction, *numbers)
