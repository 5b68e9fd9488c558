"""Ranks that fail: none waits for ever, and one sentence says why."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parallel.started import needs_mpi, start

from xbp.errors import InputError
from xbp.parallel import watch
from xbp.parallel.watch import BARRIER, BROADCAST, COMPUTES, END, SUM, Judge, Place, Places

SCRIPT = str(Path(__file__).with_name("failing.py"))


def place(rank: int, call: int, kind: int, together: int = 6) -> Place:
    return Place(100 + rank, rank, 7, call, kind, together)


def verdict(own: Place, before: Place, *, heard: bool = True, seconds: float = 12.0) -> str:
    """The conclusion after some seconds without a change."""
    judge = Judge(timeout=60)
    looks = int(seconds / watch.BEAT) + 1
    return [judge.look(own, before, heard, watch.BEAT) for _ in range(looks)][-1]


@pytest.mark.parametrize("kind", [COMPUTES, SUM, END])
def test_a_silent_rank_has_stopped(kind: int) -> None:
    own, before = place(2, 9, SUM), place(1, 8, kind)
    if kind != END:  # both wait for it
        assert not verdict(own, before._replace(kind=COMPUTES), heard=False, seconds=59)
    said = verdict(own, before._replace(kind=COMPUTES), heard=False, seconds=61)
    assert said.startswith(
        "rank 1 has not answered for 60 s; rank 2 waits for it in a sum, step 7: all ranks end"
    )
    computing = verdict(place(2, 9, COMPUTES), before, heard=False, seconds=61)
    assert computing.startswith("rank 1 has not answered for 60 s; rank 2 is in step 7")


CALLS = [
    (place(1, 9, SUM), place(0, 9, SUM), False),
    (place(1, 9, SUM), place(0, 8, COMPUTES), False),  # has a long computation
    (place(1, 8, COMPUTES), place(0, 9, SUM), False),
    (place(1, 9, END), place(0, 8, COMPUTES), False),
    (place(1, 9, SUM), place(0, 8, BROADCAST), False),  # from a rank with a long computation
    (place(1, 8, BROADCAST), place(0, 12, SUM), False),
    (place(1, 9, SUM, 8), place(0, 8, SUM), False),  # ends the sum, slowly
    (place(1, 8, BARRIER), place(0, 10, BROADCAST, 8), False),
    (place(1, 9, SUM), place(0, 9, BARRIER), True),
    (place(1, 9, SUM), place(0, 9, BROADCAST), True),
    (place(1, 9, SUM), place(0, 8, SUM), True),
    (place(1, 9, SUM), place(0, 8, END), True),
    (place(1, 7, END), place(0, 9, SUM), True),
]


@pytest.mark.parametrize(("own", "before", "vain"), CALLS)
def test_ranks_that_wait_in_different_calls_wait_in_vain(
    own: Place, before: Place, vain: bool
) -> None:
    assert not verdict(own, before, seconds=9)
    said = verdict(own, before)
    assert bool(said) == vain
    if vain:
        here, there = watch.CALLS[own.kind], watch.CALLS[before.kind]
        assert said.startswith(
            f"rank 0 waits for rank 1 in {there} (step 7), and rank 1 for rank 0 in {here} (step 7)"
        )
        assert verdict(before, own) == said  # either of the two reports it


def test_who_moves_does_not_wait_in_vain() -> None:
    judge = Judge(timeout=60)
    for call in range(60):
        assert not judge.look(place(1, call, SUM), place(0, call + 1, BARRIER), True, watch.BEAT)


def test_a_pause_of_this_process_is_no_silence_of_the_other() -> None:
    """A pause like the suspension of a laptop, or SIGCONT."""
    judge, own, before = Judge(timeout=60), place(1, 9, SUM), place(0, 8, COMPUTES)
    assert not judge.look(own, before, False, 3600.0)
    assert not judge.look(own, before, False, watch.BEAT)


def test_a_place_outlives_its_process_in_a_file(tmp_path: Path) -> None:
    for places in (Places(3), Places(3, str(tmp_path))):
        places.step()
        places.enter(SUM)
        here = watch.place_from(places.bytes())
        assert here[1:] == (3, 1, 1, SUM, 0)
        places.leave()
        places.enter(BROADCAST)
        places.leave()
        places.enter(BARRIER)
        assert watch.place_from(places.bytes())[1:] == (3, 1, 3, BARRIER, 1)
        places.leave()
        assert watch.place_from(places.bytes())[1:] == (3, 1, 3, COMPUTES, 3)
    assert watch.place_from((tmp_path / "3").read_bytes())[1:] == (3, 1, 3, COMPUTES, 3)
    assert struct.calcsize("6q") == len(places.bytes())


@pytest.mark.parametrize(("text", "seconds"), [("", 60.0), ("5", 5.0), ("0.5", 0.5)])
def test_the_user_sets_the_time(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XBP_RANK_TIMEOUT", text)
    assert watch.timeout() == seconds


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_that_makes_no_sense_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XBP_RANK_TIMEOUT", text)
    with pytest.raises(InputError, match="XBP_RANK_TIMEOUT must be"):
        watch.timeout()


@pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), 1), (KeyboardInterrupt(), 130)])
def test_an_exception_ends_all(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also with an MPI whose threads cannot watch."""
    ended: list[int] = []
    world = SimpleNamespace(Get_rank=lambda: 4, Abort=lambda status: None)
    monkeypatch.setattr("os._exit", ended.append)
    MPI: Any = SimpleNamespace(
        COMM_WORLD=world, Query_thread=lambda: 1, THREAD_MULTIPLE=3, __hash__=None
    )
    monkeypatch.setattr(watch, "HEAD_START", 0.0)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    watch.watch_world.__wrapped__(MPI)
    sys.excepthook(type(error), error, None)
    said = capsys.readouterr().err
    assert said.startswith("rank 4:\n") and type(error).__name__ in said
    assert ended == [status]


# --- by MPI --------------------------------------------------------------------------------------

FAILURES = [
    ("none", 0, 0, ""),
    ("slow", 1, 0, ""),  # longer than the limit for a silent rank
    ("killed", 1, None, ""),  # MPICH ends all ranks, and names the process
    ("raises", 1, 1, "rank 1:\nTraceback"),
    ("all raise", 0, 1, "rank 0:\nTraceback"),
    ("stopped", 0, 1, "rank 0 has not answered for 4 s; rank 1 waits for it in a sum, step 3"),
    ("stopped at last", 0, 1, "rank 1 has waited for the others for 4 s in the end of its program"),
    ("exits", 1, 1, "rank 1 for rank 0 in the end of its program (step 2): all ranks end"),
    ("barrier", 1, 1, "in a barrier (step 2): all ranks end. Every rank must make the same calls"),
]


@needs_mpi
@pytest.mark.parametrize(("what", "who", "status", "sentence"), FAILURES)
def test_nobody_waits_for_ever(what: str, who: int, status: int | None, sentence: str) -> None:
    """Under plain ``python``."""
    done = start(2, SCRIPT, what, str(who), XBP_RANK_TIMEOUT="4")
    assert done.returncode == status if status is not None else done.returncode != 0, done.stderr
    if what != "stopped at last":  # whose output may still be in a buffer
        assert ("done" in done.stdout) == (status == 0)
    assert sentence in done.stderr
    if sentence:
        assert done.stderr.count("rank 0:") + done.stderr.count("rank 1:") <= 1
        assert done.stderr.count("all ranks end") <= 1
    else:
        assert "rank" not in done.stderr or what == "killed"
