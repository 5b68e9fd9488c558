"""Feeds: the batches of a `fit` and of evaluation, on the model's device.

A batch is a set of rows of arrays on the device, given by an array of indices, `order`. Resident
data have a permutation of all rows as their order. Streamed batches are read ahead into a ring of
slots, where step k, counted from 1, uses slot (k - 1) mod SLOTS. In both cases its rows are

    order[s : s + size],    s = (k - 1) · batch size  mod  length of the order,

so that a step, captured or not, does not depend on the kind of feed. A process that has a share of
each batch takes its rows of these; a slot holds nothing else, and `order` maps all rows to those.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol

from xbp.backend import Array, backend_of, on_host
from xbp.data.sources import is_stream
from xbp.nested import tree_leaves
from xbp.random import permutation
from xbp.training.diagnosis import Place
from xbp.training.door.batches import Gate, refuse_targets
from xbp.training.door.data import admit, home_of
from xbp.training.fingerprint import digest_of
from xbp.training.metrics.counting import len_of
from xbp.training.share import WHOLE, Whole
from xbp.training.state import Pair, Pieces
from xbp.training.steps import batch_indices, steps_of
from xbp.training.streamed import Streamed


class Feed(Protocol):
    """The batches of a `fit`, epoch by epoch; the two kinds are `Resident` and `Streamed`."""

    data: Pair
    """The arrays in which the batches lie."""

    batch_size: int

    samples: int
    """Samples of an epoch; 0 for an iterable of batches."""

    steps: int
    """Steps of an epoch; 0 if their number is unknown before its end."""

    drop_last: bool
    """Whether a last, smaller batch of an epoch is left out."""

    example: Pair
    """Some of the data, for their shapes."""

    batch: Pair | None
    """The batch of the current step, if it is not in the arrays."""

    free: bool
    """Whether reading a loss costs no wait for a device."""

    where: str
    """The set that the number of a sample in a message refers to, such as " of this batch"."""

    def check_entry(self, done: int) -> None:
        """Refuse to begin after step `done` of an epoch if that is not possible.

        Raises
        ------
        InputError
        """

    def make_room(self) -> None:
        """Make the arrays; called when training begins."""

    def begin(self, seed: int, epoch: int, done: int) -> Array:
        """Begin an epoch, counted from 0, after step `done`; returns the order."""

    def receive(self, k: int) -> int:
        """Wait for the batch of step k; returns its number of samples, or 0 after the end."""

    def release(self) -> None:
        """Note that the last received batch's step has been launched."""

    def place(self, order: Array, k: int, size: int) -> Place:
        """The batch of step k, the last one received, from the arrays."""

    def ended(self, k: int) -> bool:
        """Whether step k, which is done, was the last one of its epoch."""

    def finish(self) -> None:
        """End the epoch, complete or not."""

    def batches(self, size: int) -> Generator[tuple[int, Pair], None, None]:
        """All data in their own order: the size of each batch, and the own rows, on the device."""

    def digests(self, what: str) -> dict[str, str]:
        """Digests that identify these data; `what` is "" or "the validation"."""


class Resident:
    """Whole arrays on the model's device. (A `Feed`.)"""

    batch: Pair | None = None
    where = ""

    def __init__(
        self, data: Pair, batch_size: int, drop_last: bool = False, share: Whole = WHOLE
    ) -> None:
        self.data = self.example = data
        self.share = share
        self.samples, self.batch_size = len_of(data[0]), batch_size
        self.steps, self.drop_last = steps_of(self.samples, batch_size, drop_last), drop_last
        self.free = on_host(data[0])

    def check_entry(self, done: int) -> None:
        """Accept any step."""

    def make_room(self) -> None:
        """Do nothing: the arrays exist."""

    def begin(self, seed: int, epoch: int, done: int) -> Array:
        return backend_of(self.data[0]).asarray(permutation(seed, epoch, self.samples))

    def receive(self, k: int) -> int:
        if k > self.steps:
            return 0
        return min(self.batch_size, self.samples - (k - 1) * self.batch_size)

    def release(self) -> None:
        """Do nothing: the arrays stay."""

    def place(self, order: Array, k: int, size: int) -> Place:
        return *self.data, batch_indices(order, k, self.batch_size, size)

    def ended(self, k: int) -> bool:
        return k == self.steps

    def finish(self) -> None:
        """Do nothing: no thread is at work."""

    def batches(self, size: int) -> Generator[tuple[int, Pair], None, None]:
        x, y = self.data
        shares = slices(x, size, self.share), slices(y, size, self.share)
        for (length, some), (_, target) in zip(*shares, strict=True):
            yield length, (some, target)

    def digests(self, what: str) -> dict[str, str]:
        return {f"{what} {n}".strip(): digest_of(a) for n, a in zip("xy", self.data, strict=True)}


def feed_of(
    pieces: Pieces, x: Any, y: Any, batch_size: int, passes: int = 1, drop_last: bool = False
) -> tuple[Feed, list[str]]:
    """Data as the user gives them, checked, as a feed.

    Parameters
    ----------
    pieces : Pieces
    x, y : array; or x a source or an iterable of batches, and y None
    batch_size : int
    passes : int
        The number of passes over the data.
    drop_last : bool
        Whether training leaves out a last, smaller batch.

    Returns
    -------
    feed : Feed
    quantities : list of str
        The names of the loss and of the values that metrics give for such data.

    Raises
    ------
    InputError
        The data do not fit each other, the model, the loss or a metric.
    OutOfMemoryError
        There is not enough memory for them.
    """
    if is_stream(x):
        refuse_targets(y)
        gate = Gate(pieces)
        feed = Streamed(x, gate, batch_size, home_of(pieces.model), passes, drop_last)
        return feed, gate.quantities
    data, quantities = admit(pieces, x, y)
    return Resident(data, batch_size, drop_last, pieces.share), quantities


def sample_shape(feed: Feed) -> tuple[int, ...]:
    """The shape of one sample; of its first array, where a sample is a tuple of arrays."""
    return tuple(tree_leaves(feed.example[0])[0].shape[1:])


def slices(array: Array, size: int, share: Whole = WHOLE) -> Iterator[tuple[int, Array]]:
    """An array, piece by piece along its first axis: the length of each, and the own rows."""
    length = len_of(array)
    for start in range(0, length, size):
        stop = min(start + size, length)  # no slice past the end: the standard
        yield stop - start, share.rows(array[start:stop, ...], stop - start)
