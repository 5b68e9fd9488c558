"""How much faster two ranks with one thread each train LeNet-5 than one process with one thread.

    python benchmarks/ranks.py                # on a quiet machine, some two minutes
    python benchmarks/ranks.py --rounds 1     # a first look
    python benchmarks/ranks.py --sums         # the time of a sum of an array, by MPI and by xbp

In turn, and in the same processes, rank 0 trains alone, with so many images a step, and all ranks
train together, with as many images each. The other ranks sleep meanwhile. Of each round the median
step counts; printed are the medians over the rounds of the images per second, of their ratio, and
of the time in sums over ranks, in which a rank also waits for the slower one. --sums calls both
kinds in turn, in place, after a barrier. Needs mpi4py and an MPI.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from xbp.launchers import launched, share_of_cores, take_share_of_cores

STEPS, EPOCHS = 150, 3
"""Steps of an epoch; the first epoch of a fit warms up."""

COUNTS = [1, 1000, 10_000, 61_706, 250_000, 1_000_000]
"""Sizes of arrays of which the sum is timed; the fourth is the number of LeNet-5's parameters."""


class Clock:
    """The seconds of each step but the first of an epoch, and of the sums within it."""

    def __init__(self) -> None:
        from xbp.training import LambdaCallback

        self.steps: list[float] = []
        self.sums: list[float] = []
        self.summing = 0.0
        self.callback = LambdaCallback(on_step_end=self.tick)

    def tick(self, trainer: Any, step: int) -> None:
        now = time.perf_counter()
        if step > 1 and trainer.epochs_done:
            self.steps.append(now - self.last)
            self.sums.append(self.summing)
        self.last, self.summing = now, 0.0


class Timed:
    """A group that measures its sums."""

    def __init__(self, group: Any, clock: Clock) -> None:
        self.rank, self.size = group.rank, group.size
        self.local_rank, self.local_size = group.local_rank, group.local_size
        self.broadcast_, self.barrier = group.broadcast_, group.barrier
        self.group, self.clock = group, clock

    def sum_(self, array: Any) -> None:
        self.timed(self.group.sum_, array)

    def sum_parts(self, whole: Any, parts: Any) -> None:
        self.timed(self.group.sum_parts, whole, parts)

    def timed(self, call: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        call(*arguments)
        self.clock.summing += time.perf_counter() - began


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def train(images: int, group: Any) -> Clock:
    """Epochs of LeNet-5, with so many images a step and rank."""
    import xbp
    from xbp import nn, optim

    clock = Clock()
    batch = images * group.size
    (x, y), _ = xbp.datasets.load_mnist()
    count = batch * STEPS
    rows = (list(range(len(x))) * (count // len(x) + 1))[:count]
    x, y = xbp.datasets.standardize_images(x[rows]), y[rows]
    model = xbp.models.LeNet5(rng=0)
    optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    timed = Timed(group, clock) if group.size > 1 else group
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, rng=0, group=timed)
    trainer.fit(x, y, EPOCHS, batch, callbacks=[clock.callback], verbose=False)
    return clock


def sleep_until_all_are_here(group: Any) -> None:
    """A barrier in which ranks leave their cores free."""
    here = group.communicator.Ibarrier()
    while not here.Test():
        time.sleep(0.005)


def measure(sizes: list[int], rounds: int, q: float) -> None:
    from xbp import parallel

    group = parallel.group("mpi")
    for images in sizes:
        found = []
        for _ in range(rounds):
            alone = train(images, parallel.group()) if group.rank == 0 else None
            sleep_until_all_are_here(group)
            together = train(images, group)
            sleep_until_all_are_here(group)
            if alone is not None:
                times = alone.steps, together.steps, together.sums
                found.append([quantile(values, q) for values in times])
        if group.rank == 0:
            one, several, summing = (median(column) for column in zip(*found, strict=True))
            ratios = [group.size * a / b for a, b, _ in found]
            print(
                f"{images} images a rank: 1 rank {images / one:,.0f} images/s, {group.size} ranks "
                f"{group.size * images / several:,.0f} images/s, {median(ratios):.2f} times as "
                f"many ({min(ratios):.2f} to {max(ratios):.2f}); a step of {1e6 * one:.0f} µs "
                f"takes {1e6 * several:.0f} µs, of them {1e6 * summing:.0f} µs in sums",
                flush=True,
            )


def time_sums(counts: list[int], q: float) -> None:
    """A table of the time of a sum of float32 numbers."""
    import numpy as np
    from mpi4py import MPI

    from xbp import parallel
    from xbp.parallel.shared import shared_sum

    group, shared = parallel.group("mpi"), shared_sum(MPI)
    ways = {
        MPI.get_vendor()[0]: lambda array: group.communicator.Allreduce(MPI.IN_PLACE, array),
        "shared memory": shared,
    }
    found: dict[str, list[list[float]]] = {way: [[] for _ in counts] for way in ways}
    for column, count in enumerate(counts):
        array = np.zeros(count, np.float32)
        for _ in range(max(100, min(2000, 20_000_000 // count))):
            for way, add in ways.items():
                group.barrier()
                began = time.perf_counter()
                add(array)
                found[way][column].append(1e6 * (time.perf_counter() - began))
    if group.rank == 0:
        print(f"| float32 numbers | {' | '.join(f'{count:,}' for count in counts)} |")
        print("|".join(["", *[" --- "] * (len(counts) + 1), ""]))
        for way, columns in found.items():
            cells = [quantile(times, q) for times in columns]
            shown = [f"{us:,.{1 if us < 10 else 0}f}" for us in cells]
            print(f"| {way}, µs | {' | '.join(shown)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--images", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sums", action="store_true", help="time sums of arrays alone")
    parser.add_argument(
        "--quantile",
        type=float,
        default=0.5,
        help="of the steps of a round, or of the sums; 0.05 if others compute",
    )
    arguments = parser.parse_args()
    if launched() is not None:
        take_share_of_cores()
        if arguments.sums:
            time_sums(COUNTS, arguments.quantile)
            return 0
        measure(arguments.images, arguments.rounds, arguments.quantile)
        return 0
    from xbp.cli.starting import mpiexec

    command = [*mpiexec(arguments.ranks), sys.executable, *sys.argv]
    environment = share_of_cores(arguments.ranks) | os.environ
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
