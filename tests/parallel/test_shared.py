"""The sum in shared memory: by threads with a stand-in for the window of MPI, and by MPI."""

# ruff: noqa: N802 - the names of MPI

import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from parallel.started import needs_mpi, start

from xbp import accelerators
from xbp.accelerators.cpu.stream import stream
from xbp.errors import RankError
from xbp.parallel import shared
from xbp.parallel.shared import SharedSum


class Window:
    """The memory of all ranks, which are threads."""

    def __init__(self, memory: list[bytearray]) -> None:
        self.memory, self.syncs = memory, 0
        self.state: list[str] = []

    def Lock_all(self) -> None:
        self.state.append("locked")

    def Unlock_all(self) -> None:
        self.state.append("unlocked")

    def Free(self) -> None:
        self.state.append("free")

    def Sync(self) -> None:
        self.syncs += 1

    def Shared_query(self, rank: int) -> tuple[bytearray, int]:
        return self.memory[rank], 1


def ranks(size: int, work: Any) -> list[Any]:
    """The results of ``work(rank, sum)`` in threads that share memory."""
    meeting = threading.Barrier(size, timeout=60)
    memory: list[Any] = [None] * size
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        def allocate(count: int, unit: int, comm: Any) -> Window:
            memory[rank] = bytearray(b"\xff" * count)  # not zeros
            meeting.wait()
            return Window(memory)

        communicator = SimpleNamespace(
            Get_rank=lambda: rank, Get_size=lambda: size, Barrier=meeting.wait
        )
        MPI = SimpleNamespace(Win=SimpleNamespace(Allocate_shared=allocate))
        try:
            results[rank] = work(rank, SharedSum(communicator, MPI))
        except BaseException as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for error in errors:
        raise error
    return results


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_ranks_get_the_sum_in_their_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred arrays one after the other, smaller and larger than a piece."""
    monkeypatch.setattr(shared, "PIECE", 256)
    monkeypatch.setattr(shared, "KEPT", 5)
    draw = np.random.default_rng(0)
    dtypes = ["float32", "float64", "int64", "complex64", "uint8"]
    rounds = [
        [(draw.normal(size=n) * 100).astype(dtype) for _ in range(size)]
        for n, dtype in zip(draw.integers(0, 150, 100), 20 * dtypes, strict=True)
    ]

    def work(rank: int, add: SharedSum) -> list[Any]:
        pauses, found = np.random.default_rng(rank), []
        for given in rounds:
            array = given[rank].copy()
            add(array)
            if pauses.random() < 0.1:
                time.sleep(0.002)  # others may be one meeting ahead
            found.append(array)
        return found

    with np.errstate(invalid="ignore"):  # uint8 of negative numbers
        everybody = ranks(size, work)
    for k, given in enumerate(rounds):
        expected = given[0].copy()
        for other in given[1:]:
            expected = expected + other
        for found in everybody:
            assert found[k].tobytes() == expected.tobytes(), k


PARTS = {
    "contiguous": lambda r: np.arange(6.0) + r,
    "in other order": lambda r: np.asfortranarray(np.arange(6.0).reshape(2, 3) + r),
    "a number": lambda r: np.asarray(7.0 + r),
    "every second": lambda r: (np.arange(12.0) + r)[::2],
    "nothing": lambda r: None if r else np.arange(6.0),
    "nowhere": lambda r: None,
}


@pytest.mark.parametrize("piece", [4096, 64])
def test_parts_lie_one_after_the_other(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in several."""
    monkeypatch.setattr(shared, "PIECE", piece)
    sizes = [1 if name == "a number" else 6 for name in PARTS]
    ends = np.cumsum([0, *sizes])
    places = [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def work(rank: int, add: SharedSum) -> Any:
        for _ in range(3):
            whole = np.full(ends[-1], np.nan)
            add(whole, [*zip(places, [make(rank) for make in PARTS.values()], strict=True)])
        return whole.tolist()

    expected = np.zeros(ends[-1])
    for place, make in zip(places, PARTS.values(), strict=True):
        for rank in range(2):
            if (part := make(rank)) is not None:
                expected[place] += np.ravel(part)
    assert ranks(2, work) == [expected.tolist()] * 2


def test_a_part_that_does_not_fit_its_place_is_refused() -> None:
    def work(rank: int, add: SharedSum) -> None:
        add(np.zeros(4), [(slice(0, 2), np.ones(3)), (slice(2, 4), np.ones(1))])

    with pytest.raises(ValueError, match="could not broadcast"):
        ranks(2, work)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (np.ones(6), r"rank 1 sums 6 numbers of float64, and rank 0 5 numbers of float64"),
        (np.ones(5, "int64"), r"rank 1 sums 5 numbers of int64, and rank 0 5 numbers of float64"),
    ],
)
def test_ranks_that_sum_different_arrays_are_refused(other: Any, said: str) -> None:
    def work(rank: int, add: SharedSum) -> str:
        add(np.ones(3))
        with pytest.raises(RankError, match="every rank must make the same calls") as caught:
            add([np.ones(5), other][rank].copy())
        return str(caught.value)

    found = ranks(2, work)
    assert found[0].startswith(said.replace("\\", "")) and found[1].startswith("rank 0 sums 5")


def test_a_rank_that_waits_for_long_leaves_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []

    def sleep(seconds: float) -> None:
        assert seconds == shared.PAUSE
        slept.append(threading.get_ident())
        come.wait(0.01)
        if len(slept) > 20:
            come.set()

    come = threading.Event()
    monkeypatch.setattr("xbp.parallel.shared.time", SimpleNamespace(sleep=sleep))

    def work(rank: int, add: SharedSum) -> Any:
        if rank:
            come.wait(30)
        array = np.ones(2)
        add(array)
        return array.tolist()

    assert ranks(2, work) == [[2.0, 2.0]] * 2
    assert len(slept) > 20 and len(set(slept)) == 1


def test_the_memory_is_given_back() -> None:
    def work(rank: int, add: SharedSum) -> list[str]:
        add(np.ones(2))
        add.free()
        return add.window.state

    assert ranks(2, work) == [["locked", "unlocked", "free"]] * 2


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
def test_streamed_copies_are_copies(compiled: bool) -> None:
    """To and from addresses of any alignment, with lengths around those of a line."""
    draw = np.random.default_rng(1)
    for dtype in ("uint8", "float32", "float64", "complex128"):
        for _ in range(60):
            lengths = draw.integers(0, 200, draw.integers(1, 6))
            first = int(draw.integers(0, 64))
            parts = [draw.integers(0, 99, first + n).astype(dtype)[first:] for n in lengths]
            to = np.full(first + lengths.sum() + 64, 111).astype(dtype)
            expected = to.copy()
            expected[first : first + lengths.sum()] = np.concatenate(parts)
            if compiled:
                stream(to[first : first + lengths.sum()], parts)
            else:
                with accelerators.disabled():
                    stream(to[first : first + lengths.sum()], parts)
            np.testing.assert_array_equal(to, expected)


# --- by MPI --------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("size", [2, 4, 5])
def test_by_mpi(size: int) -> None:
    """Four ranks share memory; of five, MPI makes the sum."""
    done = start(size, str(Path(__file__).with_name("sums.py")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{size} ranks: shared memory {size < 5}\n"
