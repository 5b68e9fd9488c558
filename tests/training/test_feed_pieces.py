"""Feeds piece by piece, without training: their batches, rows of ranks, and refusals."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.data import Arrays
from xbp.errors import InputError, OutOfMemoryError
from xbp.random import permutation
from xbp.testing import assert_no_host_sync
from xbp.training.door.batches import Gate
from xbp.training.feeds import Resident, Streamed, feed_of, sample_shape, slices
from xbp.training.share import WHOLE, Share, Whole
from xbp.training.steps import batch_indices
from xbp.training.streamed import shares_of, streamed_inputs

N, BATCH = 10, 4
RANKS: dict[str, Whole] = {
    "alone": WHOLE,
    **{f"rank {r}": Share(SimpleNamespace(rank=r, size=3)) for r in range(3)},  # type: ignore[arg-type]
}


@pytest.fixture(params=["numpy", "array_api_strict"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param != "numpy":
        pytest.importorskip(request.param)
    with xbp.use_backend(request.param):
        yield request.param


def trainer_of(share: Whole = WHOLE) -> Any:
    model = nn.Linear(3, 2, dtype="float64", rng=0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = xbp.Trainer(model, nn.MSELoss(), optimizer, rng=0)
    trainer.share = share
    return trainer


def data(n: int = N) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)), rng.normal(size=(n, 2))


def of_arrays(share: Whole = WHOLE, **options: Any) -> Any:
    return feed_of(trainer_of(share), *data(), BATCH, **options)[0]


def of_source(share: Whole = WHOLE, **options: Any) -> Any:
    feed = feed_of(trainer_of(share), Arrays(*data()), None, BATCH, **options)[0]
    feed.make_room()
    return feed


def of_list(batches: Any, share: Whole = WHOLE, **options: Any) -> Any:
    feed = feed_of(trainer_of(share), batches, None, 99, **options)[0]
    feed.make_room()
    return feed


def epoch_of(
    feed: Any, share: Whole = WHOLE, seed: int = 5, epoch: int = 2, done: int = 0
) -> list[tuple[int, Any, Any]]:
    """Size, x and y of each batch of an epoch, as the steps see them."""
    order, found, k = feed.begin(seed, epoch, done), [], done + 1
    try:
        while size := feed.receive(k):
            pair = feed.batch
            if pair is None:
                rows = share.rows(batch_indices(order, k, feed.batch_size, size), size)
                pair = tuple(xbp.to_numpy(array)[xbp.to_numpy(rows)] for array in feed.data)
            found.append((size, *(xbp.to_numpy(array).copy() for array in pair)))
            feed.release()
            k += 1
    finally:
        feed.finish()
    return found


def check(found: Any, expected: list[tuple[int, Any]], pair: Any) -> None:
    """Compare batches with the rows that they should have."""
    assert [size for size, *_ in found] == [size for size, _ in expected]
    for (_, *own), (_, rows) in zip(found, expected, strict=True):
        for array, whole in zip(own, pair, strict=True):
            np.testing.assert_array_equal(array, whole[rows])


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize(("done", "drop_last"), [(0, False), (1, False), (0, True)])
@pytest.mark.parametrize("make", [of_arrays, of_source])
def test_the_batches_of_an_epoch(
    place: str, make: Any, done: int, drop_last: bool, name: str
) -> None:
    share = RANKS[name]
    feed = make(share, drop_last=drop_last)
    shuffled = permutation(5, 2, N)
    starts = range(done * BATCH, 8 if drop_last else N, BATCH)
    rows = [shuffled[start : start + BATCH] for start in starts]
    own = [(len(each), each[share.rank :: share.size]) for each in rows]
    check(epoch_of(feed, share, done=done), own, data())
    assert (feed.samples, feed.steps, feed.batch_size) == (N, 2 if drop_last else 3, BATCH)
    assert feed.drop_last == drop_last and feed.free == (place == "numpy")
    assert sample_shape(feed) == (3,)


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("make", [of_arrays, of_source])
def test_all_data_in_their_own_order(place: str, make: Any, name: str) -> None:
    share = RANKS[name]
    batches = make(share).batches(7)
    found = [(size, *map(xbp.to_numpy, pair)) for size, pair in batches]
    rows = np.arange(7), np.arange(7, N)
    check(found, [(len(each), each[share.rank :: share.size]) for each in rows], data())


def test_an_epoch_has_ended_after_its_last_step(place: str) -> None:
    for feed in (of_arrays(), of_source(), of_list([data(4), data(4), data(2)])):
        feed.begin(5, 2, 0)
        ended = []
        for k in (1, 2, 3):
            feed.receive(k)
            feed.release()
            ended.append(feed.ended(k))
        feed.finish()
        assert ended == [False, False, True] and feed.batch is None


def test_batches_of_an_iterable_come_as_they_are(place: str) -> None:
    """Those that have the first one's dtype and shape, and no more samples, come in slots."""
    pair = data(30)
    sizes, ends = (4, 4, 2, 4, 6, 4), np.cumsum((4, 4, 2, 4, 6, 4))
    rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    batches = [tuple(array[each] for array in pair) for each in rows]
    feed = of_list(batches)
    assert (feed.samples, feed.steps, feed.batch_size) == (0, 6, 4)
    for _ in range(2):
        check(epoch_of(feed), [*zip(sizes, rows, strict=True)], pair)
    feed.begin(0, 0, 0)
    slotted = []
    for k in range(1, 7):
        feed.receive(k)
        slotted.append((feed.batch is None, feed.slot))
        feed.release()
    feed.finish()
    assert slotted == [(True, 0), (True, 1), (True, 2), (True, 0), (False, 1), (True, 2)]


@pytest.mark.parametrize("name", RANKS)
def test_each_rank_has_its_rows_of_an_iterable(place: str, name: str) -> None:
    share, pair = RANKS[name], data(9)
    rows = [np.arange(4), np.arange(4, 8), np.arange(8, 9)]
    feed = of_list([tuple(array[each] for array in pair) for each in rows], share)
    expected = [(len(each), each[share.rank :: share.size]) for each in rows]
    check(epoch_of(feed, share), expected, pair)
    found = [(size, *map(xbp.to_numpy, own)) for size, own in feed.batches(99)]
    check(found, expected, pair)


def test_the_first_batch_of_an_iterable_is_read_once() -> None:
    begun = []

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            begun.append(1)
            yield data(4)
            yield data(3)

    feed = of_list(Batches(), passes=2)
    assert (len(begun), feed.steps, feed.batch_size) == (1, 0, 4)
    assert [size for size, *_ in epoch_of(feed)] == [4, 3] and len(begun) == 1
    assert [size for size, *_ in epoch_of(feed)] == [4, 3] and len(begun) == 2


def test_the_batch_under_way_has_its_place(place: str) -> None:
    order = np.asarray([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    resident = of_arrays()
    x, y, rows = resident.place(order, 2, 4)
    assert (x, y) == resident.data and rows.tolist() == [5, 9, 2, 6]
    assert resident.place(order, 3, 2)[2].tolist() == [8, 7]  # smaller than the others
    for share in (WHOLE, RANKS["rank 1"]):
        source = of_source(share)
        order = source.begin(5, 2, 0)
        source.receive(1)
        source.release()
        for k, size in ((2, 4), (3, 2)):
            source.receive(k)
            x, y, rows = source.place(order, k, size)
            source.release()
            own = permutation(5, 2, N)[4 * k - 4 : 4 * k][share.rank :: share.size]
            np.testing.assert_array_equal(xbp.to_numpy(x), data()[0][own])
            np.testing.assert_array_equal(xbp.to_numpy(y), data()[1][own])
            assert xbp.to_numpy(rows).tolist() == [*range(len(own))]
        source.finish()
    assert resident.where == "" and of_source().where == " of this batch"
    assert source.where == " of rank 1's rows of this batch"


def test_a_batch_outside_the_slots_has_its_place() -> None:
    feed = of_list([data(2), data(5)])
    order = feed.begin(0, 0, 0)
    feed.receive(1)
    feed.release()
    feed.receive(2)
    x, y, rows = feed.place(order, 2, 5)
    feed.finish()
    assert np.array_equal(x, data(5)[0]) and np.array_equal(y, data(5)[1])
    assert rows.tolist() == [0, 1, 2, 3, 4]


def test_batches_of_another_dtype_or_of_tuples_come_without_a_slot() -> None:
    x, y = data(4)
    feed = of_list([(x, y), (x, y.astype("float32"))])
    epoch = epoch_of(feed)
    assert [given.dtype.name for _, _, given in epoch] == ["float64", "float32"]

    class Sum(nn.Layer):
        def forward(self, x: Any, *, training: bool = False, rng: Any = None) -> Any:
            return x[0] + x[1], lambda dy: (dy, dy)

    trainer = trainer_of()
    trainer.model = nn.Sequential(Sum(), trainer.model)
    feed = feed_of(trainer, [((x, x), y)], None, 99)[0]
    feed.make_room()
    assert feed.data == (None, None)
    feed.begin(0, 0, 0)
    assert feed.receive(1) == 4
    assert feed.batch is not None and len(feed.batch[0]) == 2
    feed.release()
    feed.finish()


def test_batches_of_another_shape_come_without_a_slot() -> None:
    trainer = trainer_of()
    trainer.model = nn.PReLU(dtype="float64")
    x = data()[0]
    batches = [(x[:2], x[:2]), (x[:2, :2], x[:2, :2]), (x[2:4], x[2:4])]
    feed = feed_of(trainer, batches, None, 99)[0]
    feed.make_room()
    for epoch in (epoch_of(feed), epoch_of(feed)):  # in the second one all shapes are known
        for (_, *found), expected in zip(epoch, batches, strict=True):
            for array, whole in zip(found, expected, strict=True):
                np.testing.assert_array_equal(array, whole)


def test_an_order_of_many_samples_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 2**24 + 1 + np.arange(3)  # no float32
    monkeypatch.setattr("xbp.training.feeds.permutation", lambda *given: many)
    assert of_arrays().begin(5, 2, 0).tolist() == many.tolist()


def test_an_order_is_made_without_a_wait(place: str) -> None:
    for feed in (of_arrays(), of_source()):
        with assert_no_host_sync():
            order = feed.begin(5, 2, 0)
        assert xbp.to_numpy(order).dtype == np.int64
        feed.finish()


def test_each_batch_meets_the_gate_and_each_slot_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[Any] = []
    feed = of_list([data(4), data(4), data(6)])
    monkeypatch.setattr(feed.gate, "meet", lambda pair: log.append(("meet", len(pair[0]))))
    release = feed.slots.release
    monkeypatch.setattr(feed.slots, "release", lambda k: log.append(("free", k)) or release(k))
    epoch_of(feed)
    assert log == [("free", 0), ("free", 1), ("meet", 6)]
    log.clear()
    assert len([*feed.batches(99)]) == 3
    assert log == [("meet", 4), ("meet", 4), ("meet", 6)]


@pytest.mark.parametrize("make", [of_source, lambda: of_list([data(4), data(4)])])
def test_no_thread_is_left_after_an_epoch(make: Any) -> None:
    before = {*threading.enumerate()}
    feed = make()
    feed.finish()  # of none
    feed.begin(5, 2, 0)
    assert len({*threading.enumerate()} - before) == 1
    feed.receive(1)
    feed.finish()
    assert not {*threading.enumerate()} - before


def test_what_an_iterable_cannot_do_is_said() -> None:
    feed = of_list([data(4), data(4)])
    feed.check_entry(0)
    of_source().check_entry(2)
    of_arrays().check_entry(2)
    with pytest.raises(InputError, match=r"^the checkpoint stands at step 2 of an epoch, and an"):
        feed.check_entry(2)
    with pytest.raises(InputError, match=r"^drop_last needs arrays or a source"):
        of_list([data(4)], drop_last=True)
    with pytest.raises(
        InputError, match=r"^this list_iterator gives no batches; give at least one"
    ):
        of_list(iter([]))
    with pytest.raises(InputError, match=r"can be gone through once, where 2 times are needed"):
        of_list(iter([data(4)]), passes=2)
    assert [size for size, *_ in epoch_of(of_list(iter([data(4)])))] == [4]
    batches = [data(4)]
    feed = of_list(batches, passes=2)
    epoch_of(feed)
    batches.clear()
    with pytest.raises(InputError, match=r"^this list gives no batches in this epoch"):
        epoch_of(feed)


def test_there_may_be_no_room_for_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_of(trainer_of(), Arrays(*data()), None, BATCH)[0]
    error: list[Exception] = [MemoryError(), ZeroDivisionError()]

    def full(*given: Any) -> Any:
        raise error[0]

    feed.backend = SimpleNamespace(asarray=full, __str__=lambda: "numpy")  # type: ignore[attr-defined]
    with pytest.raises(OutOfMemoryError, match=r"^there is no room for 3 batches of 4 samples on"):
        feed.make_room()
    error.pop(0)
    with pytest.raises(ZeroDivisionError):
        feed.make_room()


def test_data_are_told_from_others_by_their_digests() -> None:
    held, (x, y) = of_arrays(), data()
    assert [*held.digests("")] == ["x", "y"]
    assert [*held.digests("the validation")] == ["the validation x", "the validation y"]
    assert held.digests("")["x"] != held.digests("")["y"]
    assert of_source().digests("") == {"the data": Arrays(x, y).fingerprint()}
    assert [*of_source().digests("the validation")] == ["the validation data"]
    assert of_list([data(4)]).digests("") == {"the data": "an iterable of batches, a list"}


@pytest.mark.parametrize("name", RANKS)
def test_slices_are_the_own_rows_of_each_piece(name: str) -> None:
    share, x = RANKS[name], data()[0]
    found = [*slices(x, 4, share)]
    assert [size for size, _ in found] == [4, 4, 2]
    assert [size for size, _ in slices(x[:9], 4, share)] == [4, 4, 1]
    for (_, own), start in zip(found, (0, 4, 8), strict=True):
        assert np.array_equal(own, x[start : start + 4][share.rank :: share.size])


@pytest.mark.parametrize("name", RANKS)
def test_inputs_alone_are_streamed(place: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    share, (x, y) = RANKS[name], data()
    gate = Gate(trainer_of(share))
    expected = [(len(rows), rows[share.rank :: share.size]) for rows in (x[:4], x[4:8], x[8:])]
    batches = [x[:4], (x[4:8], y[4:8]), x[8:]]
    for source, size in ((Arrays(x, y), 4), (batches, 99)):
        found = [(n, xbp.to_numpy(own)) for n, own in streamed_inputs(source, gate, size)]
        assert [n for n, _ in found] == [n for n, _ in expected]
        for (_, own), (_, rows) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(own, rows)
    monkeypatch.setattr(gate, "meet_tokens", lambda x: met.append(len(x)))
    met: list[int] = []
    assert len([*streamed_inputs(batches, gate, 4)]) == 3
    assert met == [len(own) for _, own in expected]
    with pytest.raises(InputError, match=r"^there is nothing to predict"):
        [*streamed_inputs([], gate, 4)]


def test_a_source_is_asked_for_the_own_rows_alone() -> None:
    """Where a rank has none, for one, to know the shapes."""
    asked: list[list[int]] = []

    class Noted(Arrays):
        def batch(self, indices: Any) -> Any:
            asked.append([*map(int, indices)])
            return super().batch(indices)

    source = Noted(*data())
    found = [*shares_of(source, np.arange(N), 3, RANKS["rank 2"], lambda pair: pair, 1)]
    assert asked == [[5], [8], [9]]
    assert [(n, x.shape, y.shape) for n, (x, y) in found] == [
        (3, (1, 3), (1, 2)), (3, (1, 3), (1, 2)), (1, (0, 3), (0, 2)),
    ]  # fmt: skip


def test_the_kinds_of_feeds() -> None:
    assert isinstance(of_arrays(), Resident) and isinstance(of_source(), Streamed)
    large = feed_of(trainer_of(), Arrays(*data()), None, 99)[0]
    assert (large.batch_size, large.steps, large.example[0].shape) == (N, 1, (N, 3))
    with pytest.raises(InputError, match="y"):
        feed_of(trainer_of(), Arrays(*data()), data()[1], 4)
