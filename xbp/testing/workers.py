"""The cases of a certificate, in this process or in several, each with its share of the cores.

Every process makes the catalogue anew, so that only the number of a case is sent to it, and
findings come back. A case that ends its process is a failure as any other, and the process is
replaced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, TypeAlias

import numpy as np

import xbp
from xbp.backend import brief
from xbp.errors import XBPError
from xbp.machine import cpus
from xbp.testing.catalogue import Item, catalogue
from xbp.testing.curves import Training
from xbp.testing.finding import Finding

Case: TypeAlias = "Item | Training"
Found: TypeAlias = "tuple[int, list[Finding]]"
"""The number of a case in the catalogue, and what was found in it."""

MOST, LEAST = 8, 32
"""By default at most this many processes, and at least this many cases for each."""
THREADS = (
    *("XBP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)


def cores() -> int:
    """How many this process may use."""
    return len(cpus()) or os.cpu_count() or 1


def usual_jobs(cases: int) -> int:
    """The number of processes that is worth their start, of a second each."""
    return max(1, min(cores(), MOST, cases // LEAST))


def check_one(case: Case, backends: Sequence[str]) -> list[Finding]:
    """What one case comes to; whatever goes wrong in it is a finding."""
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are compared, not announced
            return case.check(backends)
    except Exception as error:  # in computing the truth
        problem = f"there is nothing to compare with: numpy fails with {brief(error)}"
        return failed(backends, problem)


def failed(backends: Sequence[str], problem: str) -> list[Finding]:
    """Findings of a case that could not be checked."""
    return [
        Finding(backend, dtype, "the truth", "forward", 0.0, 0.0, problem)
        for backend in backends
        for dtype in ("float32", "float64")
    ]


def check_all(cases: dict[int, Case], backends: Sequence[str], jobs: int) -> Iterator[Found]:
    """Check cases, by their numbers in the catalogue, and yield findings as they are made.

    Parameters
    ----------
    cases : dict of int to case
    backends : sequence of str
    jobs : int
        The number of processes; with 1 it is this process, and the order is that of `cases`.

    Raises
    ------
    XBPError
        A process cannot be started.
    """
    if jobs == 1:
        for number, case in cases.items():
            yield number, check_one(case, backends)
        return
    # Trainings take longest: the other cases fill what time they leave.
    trainings_first = sorted(cases, key=lambda number: not isinstance(cases[number], Training))
    waiting, results = deque(trainings_first), Results()
    servers = [Server(backends, jobs, waiting, results) for _ in range(jobs)]
    for server in servers:
        server.start()
    try:
        for _ in cases:
            result = results.get()
            if isinstance(result, str):
                raise XBPError(result)
            yield result
    finally:  # all done, a process that cannot be started, or an interrupt
        waiting.clear()
        for server in servers:
            server.process.kill()
            server.join()


class Results(SimpleQueue["Found | str"]):
    """What was found; a sentence instead where no process can be started."""


class Server(Thread):
    """Hands cases to a process of its own until none waits."""

    def __init__(
        self, backends: Sequence[str], jobs: int, waiting: deque[int], results: Results
    ) -> None:
        super().__init__(daemon=True)
        self.backends, self.jobs, self.waiting, self.results = backends, jobs, waiting, results
        self.process = Process(backends, jobs)

    def run(self) -> None:
        try:
            while self.serve():
                self.process.close()
                self.process = Process(self.backends, self.jobs)
        except Exception as error:  # whoever waits for results hears of it
            self.results.put(f"the processes cannot go on: {brief(error)}; --jobs 1 does without")
        self.process.close()

    def serve(self) -> bool:
        """Whether the process ended while there were cases to check."""
        if self.process.answer() is None:
            how = self.process.end()
            self.results.put(f"no process can be started: it {how}; --jobs 1 does without")
            return False
        while self.waiting:
            try:
                number = self.waiting.popleft()
            except IndexError:  # another thread was faster
                break
            found = self.process.answer(number)
            if found is None:
                problem = f"the process that checked it {self.process.end()}"
                self.results.put((number, failed(self.backends, problem)))
                return bool(self.waiting)
            self.results.put((number, [Finding(**fields) for fields in found]))
        return False


class Process:
    """One that checks cases. It is started at once, and its first answer says that it is ready."""

    def __init__(self, backends: Sequence[str], jobs: int) -> None:
        self.errors = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *backends],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(jobs),
            text=True,
            encoding="utf-8",
        )

    def answer(self, *numbers: int) -> Any:
        """What it says to a number, or at first; None if it ended instead."""
        assert self.process.stdin and self.process.stdout
        try:
            for number in numbers:
                print(number, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except OSError:  # it is no more
            return None
        return json.loads(line) if line else None

    def end(self) -> str:
        """How it ended, in words."""
        status = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:]
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return ": ".join([f"ended with {how}", *last])

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.errors.close()


def environment(jobs: int) -> dict[str, str]:
    """Of one process of `jobs`: it finds this xbp, and takes its share of the threads."""
    share = str(max(1, cores() // jobs))
    path = [str(Path(xbp.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONIOENCODING": "utf-8"}
    return dict.fromkeys(THREADS, share) | dict(os.environ) | fixed


def main() -> None:
    """The other end: numbers of cases come in, findings go out, a line each."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    cases = list(catalogue())
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        found = [asdict(finding) for finding in check_one(cases[int(line)], sys.argv[1:])]
        print(json.dumps(found, default=float), file=replies, flush=True)


if __name__ == "__main__":
    main()
