"""Batches of a source or an iterable, read ahead by a thread into a ring of slots on the device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from xbp.backend import Array, Backend, fill_slots, on_host, out_of_memory
from xbp.data.ahead import Ahead
from xbp.data.sources import Source, inputs_of
from xbp.errors import InputError, OutOfMemoryError
from xbp.nested import tree_leaves, tree_map
from xbp.random import permutation
from xbp.training.diagnosis import Place, batch_of
from xbp.training.door.batches import Gate
from xbp.training.door.data import home_of
from xbp.training.metrics.counting import len_of
from xbp.training.share import Whole
from xbp.training.state import Pair
from xbp.training.steps import batch_indices, steps_of

SLOTS = 3
"""Slots for the current step, for the next batch, and for the batch being read."""


class Streamed:
    """Batches of a source or an iterable, read ahead by a thread. (A `Feed`.)

    The thread reads a batch, checks it, and starts its transfer to a slot. A batch of another shape
    or dtype than the first one, or with tuples of arrays, is transferred without a slot.

    Parameters
    ----------
    data : Source, or iterable of batches (x, y)
    gate : Gate
    batch_size : int
        For an iterable, the size of the first batch.
    backend : Backend
        That of the model.
    passes : int
        The number of passes over the data.
    drop_last : bool
        Whether a last, smaller batch of an epoch is left out; for a source.

    Raises
    ------
    InputError
        The first batch does not fit, or there is none; an iterator, which allows one pass, is given
        for more; of an iterable a batch is to be left out.
    OutOfMemoryError
        There is no memory for the slots.
    """

    def __init__(
        self,
        data: Source | Iterable[Any],
        gate: Gate,
        batch_size: int,
        backend: Backend,
        passes: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.drop_last = drop_last
        self.source, self.gate, self.backend = data, gate, backend
        self.indexed = isinstance(data, Source)
        self.share = gate.pieces.share
        alone, rank = self.share.size == 1, self.share.rank
        self.where = " of this batch" if alone else f" of rank {rank}'s rows of this batch"
        self.held: Iterator[Any] | None = None  # a pass already begun
        self.ahead: Ahead[tuple[int, Pair | None]] | None = None
        self.batch: Pair | None = None
        self.slot = 0
        self.samples = 0
        if isinstance(data, Source):
            self.samples = len(data)
            self.steps = steps_of(self.samples, batch_size, drop_last)
            self.batch_size = min(batch_size, self.samples)
            self.order = np.arange(self.samples)
            first = data.batch(self.order[: self.batch_size])
        elif drop_last:
            msg = (
                "drop_last needs arrays or a source, whose batches are made here; an iterable has "
                "to leave its last batch out itself (a DataLoader by drop_last=True)"
            )
            raise InputError(msg)
        else:
            first = self._first(data, passes)
            self.steps = _length(data)
        self.example = gate.admit(first)
        if not self.indexed:
            self.batch_size = _samples(self.example)
        self.data: Pair = (None, None)
        self.free = on_host(backend.asarray(np.zeros(1)))

    def _first(self, data: Iterable[Any], passes: int) -> Any:
        """The first batch of an iterable, kept for the first pass."""
        iterator = iter(data)
        if iterator is data and passes > 1:
            msg = (
                f"this {type(data).__name__} can be gone through once, where {passes} times are "
                "needed; give an iterable that begins anew, such as a list or a DataLoader, or a "
                "data.Function"
            )
            raise InputError(msg)
        for first in iterator:
            self.held = _after(first, iterator)
            return first
        msg = f"this {type(data).__name__} gives no batches; give at least one"
        raise InputError(msg)

    # --- training ---

    def check_entry(self, done: int) -> None:
        if done and not self.indexed:
            msg = (
                f"the checkpoint stands at step {done} of an epoch, and an iterable of batches "
                "cannot be entered there; resume from a checkpoint between two epochs, or give a "
                "source, such as data.Files or data.Function"
            )
            raise InputError(msg)

    def make_room(self) -> None:
        """Make slots with the shapes of the first batch."""
        if any(isinstance(part, tuple) for part in self.example):
            return
        rows = SLOTS * self.batch_size
        try:
            x, y = (
                self.backend.asarray(np.zeros((rows, *part.shape[1:]), part.dtype))
                for part in self.example
            )
        except Exception as error:
            if not out_of_memory(error):
                raise
            msg = (
                f"there is no room for {SLOTS} batches of {self.batch_size} samples on "
                f"{self.backend}; take a smaller batch size"
            )
            raise OutOfMemoryError(msg) from None
        self.data, self.slots = (x, y), fill_slots([x, y], SLOTS)

    def begin(self, seed: int, epoch: int, done: int) -> Array:
        order = None
        if self.indexed:
            order = permutation(seed, epoch, self.samples)[: self.steps * self.batch_size]
        self.ahead = Ahead(self._read(self._shares(order, self.batch_size, done), done), SLOTS - 2)
        row = np.arange(self.batch_size) // self.share.size  # in its slot
        slot = np.arange(SLOTS)[:, np.newaxis] * self.batch_size
        return self.backend.asarray(np.reshape(slot + row, (-1,)))

    def _pass(self) -> Iterator[Any]:
        held, self.held = self.held, None
        return iter(self.source) if held is None else held  # type: ignore[arg-type]

    def _shares(self, order: Any, size: int, first: int = 0) -> Iterator[tuple[int, Pair]]:
        data = self.source if self.indexed else self._pass()
        return shares_of(data, order, size, self.share, self.gate, first)

    def _read(
        self, shares: Iterator[tuple[int, Pair]], done: int
    ) -> Iterator[tuple[int, Pair | None]]:
        """In the thread: the size of each batch, with the own rows if they are in no slot."""
        for index, (size, pair) in enumerate(shares, done):
            if size <= self.batch_size and self._fits(pair) and self.gate.knows(pair[0]):
                self.slots.fill(index % SLOTS, pair)
                yield size, None
            else:
                yield size, pair

    def _fits(self, pair: Pair) -> bool:
        return self.data[0] is not None and all(
            not isinstance(part, tuple)
            and part.dtype == like.dtype
            and part.shape[1:] == like.shape[1:]
            for part, like in zip(pair, self.example, strict=True)
        )

    def receive(self, k: int) -> int:
        assert self.ahead is not None
        self.batch, self.slot = None, (k - 1) % SLOTS
        size, pair = next(self.ahead, (0, None))
        if pair is not None:
            self.gate.meet(pair)
            self.batch = self._placed(pair)
        elif size:
            self.slots.receive(self.slot)
        elif k == 1:
            msg = (
                f"this {type(self.source).__name__} gives no batches in this epoch; give an "
                "iterable that begins anew with each epoch"
            )
            raise InputError(msg)
        return size

    def release(self) -> None:
        if self.batch is None:
            self.slots.release(self.slot)

    def place(self, order: Array, k: int, size: int) -> Place:
        rows = self.share.rows(batch_indices(order, k, self.batch_size, size), size)
        x, y = self.batch or batch_of(*self.data, rows)
        return x, y, self.backend.asarray(np.arange(len_of(tree_leaves(y)[0])))

    def ended(self, k: int) -> bool:
        assert self.ahead is not None
        return not self.ahead.more()

    def finish(self) -> None:
        self.batch = None
        if self.ahead is not None:
            self.ahead.close()

    # --- evaluation, and identity of the data ---

    def batches(self, size: int) -> Generator[tuple[int, Pair], None, None]:
        order = np.arange(self.samples) if self.indexed else None
        with Ahead(self._shares(order, size)) as ahead:
            for length, pair in ahead:
                self.gate.meet(pair)
                yield length, self._placed(pair)

    def _placed(self, pair: Pair) -> Pair:
        x, y = (tree_map(self.backend.asarray, part) for part in pair)
        return x, y

    def digests(self, what: str) -> dict[str, str]:
        name = f"{what or 'the'} data"
        if isinstance(self.source, Source):
            return {name: self.source.fingerprint()}
        return {name: f"an iterable of batches, a {type(self.source).__name__}"}


def shares_of(
    data: Source | Iterable[Any],
    order: Any,
    size: int,
    share: Whole,
    admit: Callable[[Any], Any],
    first: int = 0,
) -> Iterator[tuple[int, Any]]:
    """The size of each batch of a source or an iterable, and the own rows of it, on the host.

    Parameters
    ----------
    data : Source, or iterable of batches
    order : numpy array of int64, or None
        The order of the samples of a source.
    size : int
        Samples of a batch of a source.
    share : Whole
    admit : callable
        Checks what the data give, and brings it to the host.
    first : int
        The batch of a source to begin with, counted from 0.
    """
    if not isinstance(data, Source):
        for given in data:
            batch = admit(given)
            length = len(tree_leaves(batch)[0])
            yield length, share.rows(batch, length)
        return
    for start in range(first * size, len(order), size):
        rows = order[start : start + size]
        own = share.rows(rows, len(rows))
        if len(own):
            yield len(rows), admit(data.batch(own))
        else:  # a source is not asked for empty batches
            yield len(rows), tree_map(lambda part: part[:0, ...], admit(data.batch(rows[:1])))


def streamed_inputs(
    data: Source | Iterable[Any], gate: Gate, size: int
) -> Iterator[tuple[int, Any]]:
    """The inputs of a source or an iterable, read ahead: each batch's size, and its own rows.

    These lie on the model's device.

    Raises
    ------
    InputError
        There are none, or they are no numbers for the model.
    """
    backend, share = home_of(gate.pieces.model), gate.pieces.share

    order = np.arange(len(data)) if isinstance(data, Source) else None
    shares = shares_of(data, order, size, share, lambda batch: gate.inputs(inputs_of(batch)))
    none = True
    with Ahead(shares) as ahead:
        for length, x in ahead:
            none = False
            gate.meet_tokens(x)
            yield length, tree_map(backend.asarray, x)
    if none:
        msg = "there is nothing to predict: the iterable gives no batches"
        raise InputError(msg)


def _samples(pair: Pair) -> int:
    return len(tree_leaves(pair[1])[0])


def _length(data: Iterable[Any]) -> int:
    """The number of batches of an iterable with a length; else 0."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _after(first: Any, iterator: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from iterator
