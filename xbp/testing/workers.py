"""Checks of a certificate's cases, in this process or in several that share the cores.

Every process makes the catalogue itself, receives numbers of cases, and returns findings. A case
that ends its process is a failure like any other; the process is replaced.
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
from xbp.launchers import THREADS, cores
from xbp.testing.catalogue import Item, catalogue
from xbp.testing.curves import Training
from xbp.testing.finding import Finding

Case: TypeAlias = "Item | Training"
Found: TypeAlias = "tuple[int, list[Finding]]"
"""The number of a case in the catalogue, and what was found in it."""

MOST, LEAST = 8, 32
"""By default at most this many processes, and at least this many cases for each."""


def usual_jobs(cases: int) -> int:
    """The number of processes that repays their start, a second each."""
    return max(1, min(cores(), MOST, cases // LEAST))


def check_one(case: Case, backends: Sequence[str]) -> list[Finding]:
    """The findings of one case; any error in it is a finding."""
    try:
        with np.errstate(all="ignore"):  # infinities and nan are compared without warnings
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
    # Trainings take longest; shorter cases balance the load at the end.
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
    finally:  # at the end, on a failed start, on an interrupt
        waiting.clear()
        for server in servers:
            server.process.kill()
            server.join()


class Results(SimpleQueue["Found | str"]):
    """Findings, or an error sentence if no process can be started."""


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
        except Exception as error:  # reported to the reader of results
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
    """A process that checks cases, started at once; its first answer reports that it is ready."""

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
        """The answer to a number, or the first answer; None if the process ended."""
        assert self.process.stdin and self.process.stdout
        try:
            for number in numbers:
                print(number, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except OSError:  # the process has ended
            return None
        return json.loads(line) if line else None

    def end(self) -> str:
        """The way the process ended, for a sentence."""
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
    """The environment of one of `jobs` processes: this xbp's path, a share of the threads."""
    share = str(max(1, cores() // jobs))
    path = [str(Path(xbp.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONIOENCODING": "utf-8"}
    return dict.fromkeys(THREADS, share) | dict(os.environ) | fixed


def main() -> None:
    """The worker process: reads numbers of cases, writes findings, one a line."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries' output must not mix with answers
    cases = list(catalogue())
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        found = [asdict(finding) for finding in check_one(cases[int(line)], sys.argv[1:])]
        print(json.dumps(found, default=float), file=replies, flush=True)


if __name__ == "__main__":
    main()
