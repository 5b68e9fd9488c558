"""One training, by one process with whole batches, or by the ranks of a group with their shares.

    mpiexec -n 3 python -m mpi4py tests/parallel/shares.py FOLDER CASE…

writes what each rank has found to ``FOLDER/CASE_RANK.npz``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nightly import NIGHTLY

from xbp import data, nn, optim, parallel
from xbp.random import RandomStream, permutation

SIZES = 1, 2, 3, 5
SAMPLES, BATCH, EPOCHS = 18, 8, 17
"""Batches of 8, 8 and 2 samples, of which three of five ranks have none; 51 steps."""


class Case(NamedTuple):
    model: Callable[[], nn.Layer]
    loss: Callable[[], Any] = nn.CrossEntropyLoss
    optimizer: Callable[..., optim.Optimizer] = lambda p: optim.Adam(p, lr=0.01)
    augment: data.Augmentation | None = None
    targets: Callable[[Any], Any] = lambda labels: labels


def images(*between: nn.Layer) -> nn.Layer:
    """A convolutional network with these layers after its convolution and its first product."""
    first, second = between
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, dtype="float64", rng=1),
        first,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 12, dtype="float64", rng=2),
        second,
        nn.Tanh(),
        nn.Linear(12, 3, dtype="float64", rng=3),
    )


def normalized() -> nn.Layer:
    """Batch norm with an ε so large that two almost equal rows do not magnify rounding."""
    return images(nn.BatchNorm2d(4, dtype="float64"), nn.BatchNorm1d(12, eps=0.1, dtype="float64"))


def dropped() -> nn.Layer:
    return images(nn.Dropout(0.2), nn.Dropout(0.5))


def plain() -> nn.Layer:
    return images(nn.Identity(), nn.Identity())


def sizes_of(names: Iterable[str]) -> list[tuple[str, int]]:
    """A name and a number of ranks: three, of which the last batch leaves one without samples, for
    every name, and one, two or five of them in turn; nightly all four.
    """
    turns = [(3, other) for other in (5, 2, 1)]
    return [
        (name, size)
        for i, name in enumerate(names)
        for size in (SIZES if NIGHTLY else turns[i % 3])
    ]


CASES = {
    "dropout": Case(dropped),
    "batch norm": Case(normalized, optimizer=lambda p: optim.SGD(p, lr=0.05, momentum=0.9)),
    "augmentation": Case(plain, augment=data.Compose(data.Flip(), data.ShiftedCrop(1))),
    "a weighted mean": Case(
        normalized,
        lambda: nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0], ignore_index=1),
        lambda p: optim.SGD(p, lr=0.05),
    ),
    "a sum": Case(
        normalized,
        lambda: nn.MSELoss("sum"),
        lambda p: optim.SGD(p, lr=0.002),
        targets=lambda labels: np.eye(3)[labels],
    ),
}


def problem(case: Case) -> tuple[Any, Any]:
    rng = np.random.default_rng(7)
    return rng.normal(size=(SAMPLES, 1, 8, 8)), case.targets(rng.integers(0, 3, SAMPLES))


def train(name: str, group: parallel.Group | None) -> dict[str, Any]:
    """Losses of all steps, and the final state of the model; None is the ordinary loop."""
    case = CASES[name]
    (x, y), model, loss, stream = problem(case), case.model(), case.loss(), RandomStream(5)
    optimizer, losses = case.optimizer(model.parameters()), []
    if group is not None:
        nn.pool_statistics(model, group)
    for epoch in range(EPOCHS):
        order = permutation(5, epoch, SAMPLES)
        for start in range(0, SAMPLES, BATCH):
            rows = order[start : start + BATCH]
            if group is not None:
                stream.take_share(group.rank, group.size, len(rows))
                rows = rows[group.rank :: group.size]
            some, target = x[rows], y[rows]
            if case.augment is not None:
                some, target = case.augment(some, target, rng=stream)
            prediction, backward = model.forward(some, training=True, rng=stream)
            if group is None:
                value, gradient = loss(prediction, target)
                backward(gradient)
            else:
                value, gradient, weight = parallel.weighted(loss, prediction, target)
                backward(gradient)
                value = parallel.reduce_gradients(model.parameters(), group, value, weight)
            optimizer.step()
            optimizer.zero_grad()
            stream.advance()
            losses.append(float(value))
    return {"losses": np.array(losses), **model.state_dict()}


# --- ranks without MPI ---------------------------------------------------------------------------


class Meeting:
    """The meeting point of a group's threads."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size


class Thread:
    """A rank that is a thread: a `parallel.Group` without MPI."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self.meeting = meeting
        self.sums = 0
        """Calls of `sum_`."""

    def _gathered(self, array: Any) -> list[Any]:
        self.meeting.given[self.rank] = array + 0 * array
        self.barrier()
        everybody = list(self.meeting.given)
        self.barrier()
        return everybody

    def sum_(self, array: Any) -> None:
        self.sums += 1
        first, *others = self._gathered(array)
        assert all(other.shape == first.shape and other.dtype == first.dtype for other in others)
        for other in others:
            first = first + other
        array[...] = first

    def broadcast_(self, array: Any, root: int = 0) -> None:
        array[...] = self._gathered(array)[root]

    def barrier(self) -> None:
        self.meeting.barrier.wait()


def by_threads(size: int, work: Callable[[Thread], Any]) -> list[Any]:
    """The results of `work` on each rank of a group of threads."""
    meeting, results, errors = Meeting(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    for error in (*broken, *errors):
        raise error
    return results


if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    here = parallel.group("mpi")
    for case_name in names:
        np.savez(folder / f"{case_name}_{here.rank}.npz", **train(case_name, here))
