"""The ordinary tests, collected once, and run again for each fault in its own process."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mutation.kernels import Switch
from mutation.modules import ROOT

MEMORY = 8 << 30
"""Limit of the address space in bytes, for broken sizes."""


BLOCK = 50
"""Number of tests in one process."""

ERROR = 2
"""The status of a process that failed outside of a test."""


def without_torch() -> None:
    """Hide PyTorch: it is a peer, not a part of the suite, and what is caught must not depend on
    whether it is here.

    A search does not find it. An error would also end code that only asks, by
    `importlib.util.find_spec`, whether it is here.
    """
    found = PathFinder.find_spec

    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] == "torch" else found(name, path, target)

    PathFinder.find_spec = find_spec  # type: ignore[method-assign, assignment]


class Seen(NamedTuple):
    """A test's behaviour without a fault."""

    seconds: float
    functions: frozenset[tuple[str, str]]
    """(file, qualified name) of each function of xbp that ran."""
    passed: bool
    kernels: bool
    """Whether it called a compiled kernel."""


class Suite:
    """Collected tests.

    Parameters
    ----------
    paths : sequence of str
        Files and folders of tests and of modules with doctests, relative to the repository.
    run : callable
        Is given the suite, within the session of pytest.
    """

    def __init__(self, paths: Sequence[str], run: Callable[[Suite], None]) -> None:
        self.items: list[pytest.Item] = []
        self._run, self._failed, self._finished = run, False, False
        self.switch = Switch()
        ctypes.CDLL = self.switch  # type: ignore[assignment, misc]
        without_torch()
        sys.dont_write_bytecode = True
        os.chdir(ROOT)
        options = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "--tb=native", "-qq"]
        # xbp is imported already; where it is installed, pytest warns that it cannot rewrite it.
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        existing = [path for path in paths if Path(path).exists()]
        # pytest's output is dropped; this process keeps its own.
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        self.err = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
            code = pytest.main([*options, *existing], plugins=[self])
        if not self._finished:
            msg = f"the run has failed (pytest says {code!r})"
            raise SystemExit(msg)

    # --- pytest's hooks ---

    def pytest_collection(self) -> None:
        with contextlib.suppress(ImportError):
            from hypothesis import Phase, settings

            # A failure is enough; no shrinking.
            phases = (Phase.explicit, Phase.generate)
            settings.register_profile("mutation", settings(), phases=phases, database=None)
            settings.load_profile("mutation")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = [item for item in session.items if "test_mutation.py" not in item.nodeid]
        try:
            self._run(self)
        except Exception:
            traceback.print_exc()
            raise
        self._finished = True
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    # --- tests ---

    def passes(self, index: int) -> bool:
        """Run one test like pytest."""
        item, self._failed = self.items[index], False
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        except Exception:  # an error in pytest itself, such as lack of memory
            return False
        return not self._failed

    def watched(self, index: int) -> Seen:
        """Run one test and record its behaviour."""
        package, names = str(ROOT / "xbp") + os.sep, set()

        def note(frame: types.FrameType, event: str, _: Any) -> None:  # events within are not asked
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(package):
                names.add((code.co_filename, code.co_qualname))

        self.switch.called.clear()
        faulthandler.dump_traceback_later(300, exit=True, file=self.err)  # names a hanging test
        start = time.perf_counter()
        threading.settrace(note)  # also of the threads that read data ahead
        sys.settrace(note)
        try:
            passed = self.passes(index)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            faulthandler.cancel_dump_traceback_later()
        seconds = time.perf_counter() - start
        return Seen(seconds, frozenset(names), passed, bool(self.switch.called))

    def watch(
        self, indices: Sequence[int], jobs: int, progress: Callable[[str], None]
    ) -> dict[int, Seen]:
        """The behaviour of each of these tests, found in other processes."""
        seen: dict[int, Seen] = {}
        blocks = [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]
        with tempfile.TemporaryDirectory() as folder:

            def part(number: int) -> int:
                found = {index: self.watched(index) for index in blocks[number]}
                Path(folder, str(number)).write_bytes(pickle.dumps(found))
                return 0

            for number, status in processes(((n, part) for n in range(len(blocks))), jobs):
                if status:
                    ids = (
                        self.items[blocks[number][0]].nodeid,
                        self.items[blocks[number][-1]].nodeid,
                    )
                    msg = f"tests end with status {status}, though nothing is broken: {ids}"
                    raise SystemExit(msg)
                seen |= pickle.loads(Path(folder, str(number)).read_bytes())
                progress(f"{len(seen)} of {len(indices)} tests watched")
        return seen

    def catches(self, order: Iterable[tuple[int, float]], note: Callable[[int, int], None]) -> bool:
        """Whether one of these tests, (index, seconds that it usually takes), fails."""
        for index, seconds in order:
            # a test that hangs ends this process, which counts as caught
            signal.setitimer(signal.ITIMER_REAL, 5 + 20 * seconds)
            note(index, 1)
            if not self.passes(index):
                return True
            note(index, -1)
        return False


def processes(
    tasks: Iterable[tuple[Any, Callable[[Any], int]]], jobs: int
) -> Iterator[tuple[Any, int]]:
    """Run (argument, function) pairs, each in a copy of this process.

    Gives (argument, status) as they end. The status is what the function returns, `ERROR`, or
    negative for a signal.
    """
    running: dict[int, Any] = {}
    tasks = iter(tasks)
    try:
        while True:
            while len(running) < jobs and (task := next(tasks, None)):
                argument, function = task
                pid = os.fork()
                if not pid:
                    _child(argument, function)
                running[pid] = argument
            if not running:
                return
            pid, status = os.wait()
            yield running.pop(pid), os.waitstatus_to_exitcode(status)
    finally:  # after an interruption
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _child(argument: Any, function: Callable[[Any], int]) -> None:
    status = ERROR
    os.setpgid(0, 0)  # Ctrl-C is for the parent, which ends this process and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.dump_traceback_later(900, exit=True)  # a survivor, with the error on stderr
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = function(argument)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
