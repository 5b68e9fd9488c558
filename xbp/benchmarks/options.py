"""What a benchmark is asked for, and how much of it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much is measured: all of it, or just enough to see that everything works.

    Attributes
    ----------
    rounds, long_rounds : int
        How often the sides take turns; the second where a turn takes a minute.
    seconds, pause : float
        Of a turn, and before it: threads of the other sides spin for up to 0.2 s.
    drawn : int
        Most samples of a batch that are drawn, not MNIST's.
    guard : int
        Steps whose losses must be equal before anything is timed.
    images, epochs, target
        Of a whole training, which may end at a test accuracy of `target`.
    seeds : int
        Of a training whose mean accuracy must reach the target.
    square, copied, hidden : int
        Rows of a square matrix, bytes of a copy, and hidden units of the wide network.
    imports : int
        Imports are timed this many times as often.
    counted : int
        Steps whose kernels are counted.
    shapes, work : int
        Of a sweep over shapes, and most FLOP of a step there.
    grown, most_epochs : int
        Images of an epoch where the growth of memory is measured, and most epochs of any training.
    """

    rounds: int = 7
    long_rounds: int = 3
    seconds: float = 1.0
    pause: float = 0.3
    drawn: int = 10_000
    guard: int = 5
    images: int = 60_000
    epochs: int = 5
    target: float = 0.99
    seeds: int = 30
    square: int = 2048
    copied: int = 2**28
    hidden: int = 4096
    imports: int = 5
    counted: int = 64
    shapes: int = 60
    work: int = 4_000_000_000
    grown: int = 2048
    most_epochs: int = 50


QUICK = Scale(
    rounds=1,
    long_rounds=1,
    seconds=0.0,
    pause=0.0,
    drawn=4,
    guard=3,
    images=1024,
    epochs=1,
    target=0.0,
    seeds=2,
    square=64,
    copied=2**20,
    hidden=64,
    imports=1,
    counted=2,
    shapes=2,
    work=1_000_000,
    grown=256,
    most_epochs=2,
)
LARGE = {"square": 8192, "copied": 2**30}
"""Sizes that keep a GPU busy."""


@dataclass(frozen=True)
class Options:
    """What a user of ``xbp bench`` chose."""

    backend: str
    device: str | None
    threads: int
    tf32: bool
    rounds: int | None
    batches: tuple[int, ...]
    quick: bool
    bfloat16: bool = False
