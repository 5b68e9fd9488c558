"""Parts as processes: started, watched, and stopped with their own child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.parts import Part

ROOT = Path(__file__).parents[2]
GRACE = 5.0
"""Seconds between the request to end and the kill."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part.

    Attributes
    ----------
    part : Part
    how : str
        ``"done"``, ``"status 1"``, ``"stopped"``, ``"running"``, ``"not reached"``.
    seconds : float
    log : Path or None
        Its output.
    started : float
        The time of its start, in seconds since the epoch.
    """

    part: Part
    how: str
    seconds: float = 0.0
    log: Path | None = None
    started: float = 0.0


class Running:
    """A running part, in its own session, so that its child processes can be ended with it."""

    def __init__(self, part: Part, log: Path, allowed: float) -> None:
        self.part, self.log, self.allowed = part, log, allowed
        self.began, self.started, self.stopped = time.perf_counter(), time.time(), False
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},  # no buffering, as it may be stopped
            )

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def outcome(self) -> Outcome:
        status = self.process.poll()
        how = "running" if status is None else "done" if status == 0 else f"status {status}"
        how = "stopped" if self.stopped else how
        return Outcome(self.part, how, self.seconds, self.log, self.started)

    def ended(self) -> bool:
        """Whether it has ended; ends it if its time is up."""
        if self.process.poll() is None and self.seconds > self.allowed:
            self.stopped = True
            self.stop()
        return self.process.poll() is not None

    def stop(self) -> None:
        """Ask it to end, then kill it, with its child processes."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # no process is left
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


def wait_for_one(running: list[Running]) -> Running:
    """Wait for the first that ends, and remove it from the list."""
    while True:
        for one in running:
            if one.ended():
                running.remove(one)
                return one
        time.sleep(0.05)


def stop_all(running: Iterable[Running]) -> None:
    for one in running:
        one.stopped = True
        one.stop()
