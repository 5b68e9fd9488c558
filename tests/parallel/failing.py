"""Ranks among which one, or all, fail at the third step: ``failing.py WHAT WHO``."""

import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from xbp import parallel
from xbp.parallel import watch


class Stops:
    """A communicator whose rank stops when it has begun the barrier in the end of its program."""

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.communicator, name)

    def Ibarrier(self) -> Any:  # noqa: N802 - the name of MPI
        begun = self.communicator.Ibarrier()
        stop()
        return begun


def fail(what: str, group: parallel.Group) -> None:
    """What happens to one rank."""
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stopped":
        stop()
    elif what == "stopped in the end":
        thread = next(one for one in threading.enumerate() if isinstance(one, watch.Watch))
        thread.communicator = Stops(thread.communicator)
    elif what == "stopped behind it":  # before its last message
        leave = watch.Places.leave
        watch.Places.leave = lambda place: stop() if " end " in str(place) else leave(place)
    elif what == "stopped at last":  # when nobody watches any more
        watch.finalize = stop
    elif what == "slow":
        time.sleep(5)
    elif what == "barrier":
        group.barrier()
    elif what == "exits":
        sys.exit(3)
    elif what == "raises":
        raise ValueError("no such number")


def stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def main(what: str, who: int) -> None:
    group, numbers = parallel.group("mpi"), np.ones(3)
    for step in range(5):
        if step == 2 and group.rank == who:
            fail(what, group)
        if step == 2 and what == "all raise":
            raise ValueError("no such number")
        group.count_step()  # type: ignore[attr-defined]
        group.sum_(numbers)
    if group.rank == 0:
        sys.stdout.write("done")
    if what == "stopped in the end" and group.rank != who:
        time.sleep(1)  # so that the other one has begun


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
