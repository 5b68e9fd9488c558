"""Ranks that fail: none waits for ever, and one sentence says why."""

# ruff: noqa: N802 - the names of MPI

import io
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parallel.started import needs_mpi, start

from xbp.errors import InputError
from xbp.parallel import watch
from xbp.parallel.watch import BARRIER, BROADCAST, COMPUTES, END, SUM, Judge, Place, Places, Watch

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


def test_a_rank_that_has_left_the_end_may_be_silent() -> None:
    """Others may still be in the barrier, if a third rank has stopped in it."""
    own, left = place(2, 9, END), place(1, 9, END, together=9)
    assert left.over and not own.over
    assert not verdict(own, left, heard=False, seconds=120)
    said = verdict(own._replace(together=9), own._replace(rank=1), heard=False, seconds=61)
    assert said.startswith("rank 1 has not answered for 60 s; rank 2 waits for it in the end of")


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
    (place(1, 9, END), place(0, 8, END), False),  # after a broadcast of which one was the root
    (place(1, 9, END), place(0, 9, END, 9), False),  # leaves the barrier, slowly
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
        places.enter(END)
        assert not watch.place_from(places.bytes()).over
        places.leave()
        assert watch.place_from(places.bytes())[1:] == (3, 1, 4, END, 4)
        assert watch.place_from(places.bytes()).over
    assert watch.place_from((tmp_path / "3").read_bytes()).over
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


class Itself:
    """A communicator of one rank, which is its own neighbour, and what is called in the end."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.calls: list[str] = []
        self.looks = 0

    def Dup(self) -> "Itself":
        return self

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Isend(self, message: bytes, to: int) -> Any:
        self.messages.append(message)
        return SimpleNamespace(Test=lambda: True, Wait=lambda: self.calls.append("sent"))

    def Iprobe(self, before: int) -> bool:
        return bool(self.messages)

    def Recv(self, buffer: bytearray, before: int) -> None:
        buffer[:] = self.messages.pop(0)
        self.calls.append("left" if watch.place_from(bytes(buffer)).over else "heard")

    def Ibarrier(self) -> Any:
        self.calls.append("barrier")
        return self

    def Test(self) -> bool:
        self.looks += 1
        return self.looks > 5


def test_the_order_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends or hears any more, and sums give their memory back, before MPI ends."""
    world = Itself()
    guards: list[Any] = []

    def guard(seconds: float, function: Any) -> Any:
        world.calls.append("guarded")
        guards.append(SimpleNamespace(start=lambda: None, cancel=lambda: guards.clear()))
        return guards[0]

    thread = Watch(SimpleNamespace(COMM_WORLD=world), timeout=60)

    def note(what: str) -> None:
        assert not thread.is_alive() and not world.messages and guards
        world.calls.append(what)

    monkeypatch.setattr("threading.Timer", guard)
    monkeypatch.setattr(watch, "BEAT", 0.001)
    monkeypatch.setattr(watch, "free_memory", lambda MPI: note("memory"))
    monkeypatch.setattr(watch, "finalize", lambda MPI: note("MPI"))
    thread.start()
    thread.finish()
    after = world.calls[world.calls.index("barrier") + 1 :]
    assert [call for call in after if call != "heard"] == [
        "left",
        "guarded",
        "sent",
        "memory",
        "MPI",
    ]
    assert not guards


def ends_all() -> None:
    MPI: Any = SimpleNamespace(COMM_WORLD=SimpleNamespace(Abort=os._exit))
    watch.end_all("rank 1 has not answered", MPI)


def gives_up() -> None:
    own: Any = SimpleNamespace(rank=0, timeout=3.0)
    watch.Watch._give_up(own)


@pytest.mark.parametrize("end", [ends_all, gives_up])
def test_all_output_is_passed_on_before_all_end(
    end: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, seen = {name: io.BytesIO() for name in ("stdout", "stderr")}, list[str]()
    for name, stream in output.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream))
    monkeypatch.setattr(
        "time.sleep", lambda s: seen.extend(each.getvalue().decode() for each in output.values())
    )
    monkeypatch.setattr("os._exit", lambda status: seen.append("end"))
    sys.stdout.write("done")
    end()
    out, err, *after = seen
    assert out == "done" and err.startswith("Error: rank") and after[0] == "end"


# --- by MPI --------------------------------------------------------------------------------------

FAILURES = [
    ("none", 0, 0, ""),
    ("slow", 1, 0, ""),  # longer than the limit for a silent rank
    ("killed", 1, None, ""),  # MPICH ends all ranks, and names the process
    ("raises", 1, 1, "rank 1:\nTraceback"),
    ("all raise", 0, 1, "rank 0:\nTraceback"),
    ("stopped", 0, 1, "rank 0 has not answered for 4 s; rank 1 waits for it in a sum, step 3"),
    (
        "stopped at last",
        0,
        1,
        "rank 1 has waited for the others for 12 s in the end of its program",
    ),
    ("exits", 1, 1, "rank 1 for rank 0 in the end of its program (step 2): all ranks end"),
    ("barrier", 1, 1, "in a barrier (step 2): all ranks end. Every rank must make the same calls"),
]


@needs_mpi
@pytest.mark.parametrize("what", ["stopped in the end", "stopped behind it"])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_rank_that_stops_in_the_end_is_named(who: int, what: str) -> None:
    """By the next one, though others have left the barrier in which, or after which, it stops."""
    done = start(3, SCRIPT, what, str(who), XBP_RANK_TIMEOUT="3")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Error: rank {who} has not answered for 3 s; rank {(who + 1) % 3} waits for it in the end"
    )
    assert done.stderr.count("all ranks end") == 1


@needs_mpi
@pytest.mark.parametrize(("what", "who", "status", "sentence"), FAILURES)
def test_nobody_waits_for_ever(what: str, who: int, status: int | None, sentence: str) -> None:
    """Under plain ``python``."""
    done = start(2, SCRIPT, what, str(who), XBP_RANK_TIMEOUT="4")
    assert done.returncode == status if status is not None else done.returncode != 0, done.stderr
    assert ("done" in done.stdout) == (status == 0 or what == "stopped at last")
    assert sentence in done.stderr
    if sentence:
        assert done.stderr.count("rank 0:") + done.stderr.count("rank 1:") <= 1
        assert done.stderr.count("all ranks end") <= 1
    else:
        assert "rank" not in done.stderr or what == "killed"
