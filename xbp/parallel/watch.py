"""Failing ranks: all ranks end, and one line gives the reason.

MPI's launchers end all ranks when one is killed. They wait for ever for a rank that is stopped, has
raised an exception or has left its loop. So a thread of each rank sends the rank's position to the
next rank, on its own communicator, and receives that of the previous one:

- a rank without a message for `timeout` seconds has stopped;
- two ranks that wait in different calls, and have not moved for `DEADLOCKED` seconds, wait for one
  another. The end of the program is such a call.

In either case the rank that notices it prints a line, and ends all. A rank with a long computation
is waited for.

In the end of the program all ranks come to a barrier. A rank that leaves it says so in its last
message, as another may still be in the barrier. It watches the previous rank until it has received
that one's last message, and then ends MPI. This waits for all ranks once more, for a time after
which all that still watch have spoken.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import struct
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from xbp.arguments import positive
from xbp.errors import InputError
from xbp.parallel.shared import free_memory

BEAT = 0.5
"""Seconds from one message to the next."""

TIMEOUT, VARIABLE = 60.0, "XBP_RANK_TIMEOUT"
"""The limit in seconds for a silent rank, and the environment variable that sets it."""

DEADLOCKED = 10.0
"""Seconds for which two ranks wait in different calls before this counts as a deadlock."""

PAUSE = 0.01
"""Seconds between two looks for the other ranks in the end of the program."""

HEAD_START = 1.5
"""Seconds in which only rank 0 prints an error, as other ranks may have the same one."""

PASSED_ON = 0.2
"""Seconds in which the launcher reads what a rank has printed, before that ends all.

Without it some sentences are lost on a busy machine, as MPICH's launcher ends before.
"""

LAST_WORD = 8.0
"""Seconds beyond the limit for a silent rank after which a rank gives up ending MPI.

Longer than `wait_for_rank_0`: another one that still watches can name the rank that has stopped.
"""

PLACES = "XBP_RANK_PLACES"
"""The environment variable with a folder where ranks store their positions, for their launcher."""

COMPUTES, SUM, BROADCAST, BARRIER, END = range(5)
CALLS = ("computes", "a sum", "a broadcast", "a barrier", "the end of its program")


class Place(NamedTuple):
    """The position of a rank in its work."""

    process: int
    rank: int
    step: int
    """The number of sums of gradients that it has begun."""

    call: int
    """The number of calls that it has begun."""

    kind: int
    """The kind of the call in which it waits; `COMPUTES` if it is in none."""

    together: int = 0
    """The number of the last sum or barrier that it has ended, and so all ranks have begun."""

    @property
    def over(self) -> bool:
        """Whether it has left the barrier in the end of its program: its last message."""
        return self.kind == END and self.together == self.call


FORM = struct.Struct(f"{len(Place._fields)}q")


class Places:
    """The place of this rank: in memory, or in a file that outlives its process.

    Parameters
    ----------
    rank : int
    folder : path, optional
        Where the file is made.
    """

    def __init__(self, rank: int, folder: str | None = None) -> None:
        self._place = [os.getpid(), rank, 0, 0, COMPUTES, 0]
        self._bytes: Any = bytearray(FORM.size)
        if folder is not None:
            path = Path(folder) / str(rank)
            path.write_bytes(bytes(FORM.size))
            with path.open("r+b") as file:
                self._bytes = mmap.mmap(file.fileno(), FORM.size)
        self._write()

    def step(self) -> None:
        """Note that a step begins its sum."""
        self._place[2] += 1

    def enter(self, kind: int) -> None:
        """Note the beginning of a call."""
        self._place[3] += 1
        self._place[4] = kind
        self._write()

    def leave(self) -> None:
        """Note the end of the call. Nothing follows the end of the program."""
        if self._place[4] != BROADCAST:
            self._place[5] = self._place[3]
        if self._place[4] != END:
            self._place[4] = COMPUTES
        self._write()

    def bytes(self) -> bytes:
        """The place as bytes, for a message."""
        return bytes(self._bytes)

    def __str__(self) -> str:
        place = place_from(self.bytes())
        return f"rank {place.rank} was in {CALLS[place.kind]}, step {place.step:,},"

    def _write(self) -> None:
        FORM.pack_into(self._bytes, 0, *self._place)


def place_from(data: bytes) -> Place:
    """The place from the bytes of `Places.bytes`."""
    return Place(*FORM.unpack(data))


class Judge:
    """The conclusions of a rank from its position and that of the previous rank.

    Parameters
    ----------
    timeout : float
        Seconds for which a rank may be silent.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.silent = self.still = 0.0
        self.seen: tuple[Place, Place] | None = None

    def look(self, own: Place, before: Place, heard: bool, passed: float) -> str:
        """A sentence if ranks wait in vain; otherwise empty.

        Parameters
        ----------
        own, before : Place
            `before` by its last message.
        heard : bool
            Whether a message has come since the last look.
        passed : float
            Seconds since the last look. A long pause, in which this process itself was stopped,
            counts as two beats.
        """
        passed = min(passed, 2 * BEAT)
        self.silent = 0.0 if heard or before.over else self.silent + passed
        moved = (own, before) != self.seen
        self.still = 0.0 if moved else self.still + passed
        self.seen = own, before
        if self.silent > self.timeout:
            return (
                f"rank {before.rank} has not answered for {self.timeout:g} s; "
                f"{waiting(own)}: all ranks end. {VARIABLE} sets the time"
            )
        if _apart(own, before) and self.still > min(DEADLOCKED, self.timeout):
            one, other = sorted((own, before), key=lambda place: place.rank)
            return (
                f"rank {one.rank} waits for rank {other.rank} in {CALLS[one.kind]} (step "
                f"{one.step:,}), and rank {other.rank} for rank {one.rank} in "
                f"{CALLS[other.kind]} (step {other.step:,}): all ranks end. Every rank must make "
                "the same calls"
            )
        return ""


def waiting(place: Place) -> str:
    """The state of a rank, in the words of a message about another rank."""
    if place.kind:
        return f"rank {place.rank} waits for it in {CALLS[place.kind]}, step {place.step:,}"
    return f"rank {place.rank} is in step {place.step:,}"


def _apart(one: Place, other: Place) -> bool:
    """Whether two ranks wait in calls that cannot both end.

    No rank ends a sum or a barrier before all are in it, so a rank in a call that the other has
    ended in this way will end it too, however busy the machine is. A broadcast may be ended before
    others have begun it, so a rank in an earlier broadcast may still be served.
    """
    if not (one.kind and other.kind):
        return False
    if one.call == other.call or one.kind == other.kind == END:
        return one.kind != other.kind
    behind, ahead = sorted((one, other), key=lambda place: place.call)
    return behind.kind != BROADCAST and behind.call > ahead.together


class Watch(threading.Thread):
    """A thread of each rank of MPI's world, which watch one another in a ring.

    Parameters
    ----------
    MPI : module
        ``mpi4py.MPI``.
    timeout : float
        Seconds for which a rank may be silent.
    """

    def __init__(self, MPI: Any, timeout: float) -> None:
        super().__init__(name="xbp ranks", daemon=True)
        self.MPI, self.timeout = MPI, timeout
        self.communicator = MPI.COMM_WORLD.Dup()
        self.rank, self.size = self.communicator.Get_rank(), self.communicator.Get_size()
        self.places = Places(self.rank, os.environ.get(PLACES))
        self.over = threading.Event()
        self._told = Place(0, self.rank, 0, 0, COMPUTES)
        self._sent: Any = None

    def run(self) -> None:
        """Send and receive messages, until the last one of this rank and of the previous one."""
        before = (self.rank - 1) % self.size
        last = Place(0, before, 0, 0, COMPUTES)
        judge, then = Judge(self.timeout), time.monotonic()
        while not (self._told.over and last.over):
            if self.over.wait(BEAT):
                time.sleep(PAUSE)
            own = place_from(self.places.bytes())
            self._tell(own)
            heard = self._hear(before)
            last, now = heard or last, time.monotonic()
            sentence = judge.look(own, last, heard is not None, now - then)
            then = now
            if sentence:
                wait_for_rank_0(self.rank)  # with two ranks, each is the previous one of the other
                end_all(sentence, self.MPI)

    def _tell(self, own: Place) -> None:
        """Send a message to the next rank, unless the last one is still on its way."""
        if not self._told.over and (self._sent is None or self._sent.Test()):
            self._told, self._message = own, FORM.pack(*own)
            self._sent = self.communicator.Isend(self._message, (self.rank + 1) % self.size)

    def _hear(self, before: int) -> Place | None:
        """The latest message of the previous rank."""
        heard, buffer = None, bytearray(FORM.size)
        while self.communicator.Iprobe(before):
            self.communicator.Recv(buffer, before)
            heard = place_from(bytes(buffer))
        return heard

    def finish(self) -> None:
        """Wait for all ranks at the end of the program, and end MPI."""
        self.places.enter(END)
        everybody = self.communicator.Ibarrier()
        while not everybody.Test():
            time.sleep(PAUSE)
        self.places.leave()
        self.over.set()
        self.join()
        # For a rank that stops from now on.
        guard = threading.Timer(self.timeout + LAST_WORD, self._give_up)
        guard.daemon = True
        guard.start()
        self._sent.Wait()
        free_memory(self.MPI)
        finalize(self.MPI)
        guard.cancel()

    def _give_up(self) -> None:
        wait_for_rank_0(self.rank)
        say(
            f"rank {self.rank} has waited for the others for {self.timeout + LAST_WORD:g} s in the "
            f"end of its program: all ranks end. {VARIABLE} sets the time"
        )
        os._exit(1)  # without MPI, which is ending; so its launcher ends all


def finalize(MPI: Any) -> None:
    """End MPI, which waits for all ranks, while other threads run.

    mpi4py's own call keeps Python's lock. Where the function is not found, that one follows later.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(MPI.__file__).MPI_Finalize()


@cache
def watch_world(MPI: Any) -> Places:
    """Let the ranks of MPI's world watch one another, from now to the end of the program.

    An unhandled exception ends all of them too. An MPI without threads has no watch.
    """
    rank = MPI.COMM_WORLD.Get_rank()
    previous = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        wait_for_rank_0(rank)
        sys.stderr.write(f"rank {rank}:\n")
        previous(kind, error, trace)
        end_all("", MPI, 130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = tell
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return Places(rank, os.environ.get(PLACES))
    watch = Watch(MPI, timeout())
    watch.start()
    atexit.register(watch.finish)
    return watch.places


def timeout() -> float:
    """The seconds for which a rank may be silent.

    Raises
    ------
    InputError
        The environment variable is no positive number.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return TIMEOUT
    try:
        return positive(VARIABLE, float(text))
    except ValueError:
        msg = f"{VARIABLE} must be a positive number of seconds, got {text!r}"
        raise InputError(msg) from None


def wait_for_rank_0(rank: int) -> None:
    """Let rank 0 alone print an error of all ranks, such as a missing file."""
    if rank:
        time.sleep(HEAD_START + min(0.1 * rank, 5.0))


def end_all(sentence: str, MPI: Any, status: int = 1) -> NoReturn:
    """Print the reason, and end all ranks with this exit status."""
    say(sentence)
    MPI.COMM_WORLD.Abort(status)
    os._exit(status)  # some return from it


def say(sentence: str) -> None:
    """Print an error, if there is one, and let the launcher pass on all output of this rank."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            if sentence and stream is sys.stderr:
                stream.write(f"Error: {sentence}\n")
            stream.flush()
    time.sleep(PASSED_ON)
