"""Start the ranks of a command, pass on what they say, and end as they do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple, TextIO

import typer

import xbp
from xbp.errors import BackendError
from xbp.launchers import LAUNCHERS, share_of_cores


class Starter(NamedTuple):
    """How an MPI starts processes."""

    programs: tuple[str, ...]
    """Names of the program, the surest first: wheels of two MPIs both have an mpiexec."""

    options: tuple[str, ...] = ()
    as_root: tuple[str, ...] = ()


STARTERS = {
    "MPICH": Starter(("mpiexec.hydra", "mpiexec.mpich", "mpiexec")),
    "Intel MPI": Starter(("mpiexec.hydra", "mpiexec")),
    # It counts physical cores, and would tie two ranks to one of them.
    "Open MPI": Starter(
        ("mpiexec.openmpi", "mpirun.openmpi", "mpiexec"),
        ("--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"),
        ("--allow-run-as-root",),
    ),
}

WHICH_MPI = """
import mpi4py
mpi4py.rc(initialize=False, finalize=False)
from mpi4py import MPI
print(MPI.get_vendor()[0])
"""


def start(ranks: int) -> int:
    """Run the command of this process in `ranks` processes, and return their exit status."""
    with TemporaryDirectory(prefix="xbp-ranks-") as folder:
        process = subprocess.Popen(
            [*mpiexec(ranks), sys.executable, "-P", "-m", "xbp", *sys.argv[1:]],
            env=environment(ranks, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that a terminal's Ctrl-C comes here alone
        )
        banner: list[str] = []
        relays = [
            threading.Thread(target=relay, args=(source, sink, banner))
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        with passed_on(process, Path(folder)) as ended_by:
            for each in relays:
                each.start()
            for each in relays:
                each.join()
            status = process.wait()
        if ended_by:
            return 128 + ended_by[0]
        if sentence := obituary("".join(banner), places(Path(folder))):
            typer.echo(f"Error: {sentence}", err=True)
        return status if 0 <= status < 256 else 1


def mpiexec(ranks: int) -> list[str]:
    """The command line that starts `ranks` processes, without what they run.

    Raises
    ------
    BackendError
        mpi4py or its MPI is not installed.
    """
    from xbp.parallel.mpi import INSTALL

    asked = subprocess.run(
        [sys.executable, "-c", WHICH_MPI], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["it ends at once"])[-1]
        msg = f"--ranks needs MPI, which cannot be imported ({reason}); {INSTALL}"
        raise BackendError(msg)
    vendor = asked.stdout.strip()
    starter = STARTERS.get(vendor, Starter(("mpiexec",)))
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = next(filter(None, (shutil.which(name, path=beside) for name in starter.programs)), None)
    if found is None:
        msg = (
            f"--ranks needs {starter.programs[0]} of {vendor}, which is not on the PATH; {INSTALL}"
        )
        raise BackendError(msg)
    root = starter.as_root if getattr(os, "geteuid", lambda: 1)() == 0 else ()
    return [found, *starter.options, *root, "-n", str(ranks)]


def environment(ranks: int, folder: str) -> dict[str, str]:
    """The environment of the ranks: their share of the cores, and where they keep their places."""
    from xbp.parallel.watch import PLACES

    ours = {name for launcher in LAUNCHERS.values() for name in launcher}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    path = [str(Path(xbp.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return (
        inherited
        | share_of_cores(ranks)
        | {PLACES: folder, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        | {"PYTHONIOENCODING": "utf-8", "TERM": "dumb"}  # lines alone pass through pipes
    )


@contextmanager
def passed_on(process: subprocess.Popen[str], folder: Path) -> Iterator[list[int]]:
    """Pass Ctrl-C on to the ranks, which end after their step; the second one ends all at once.

    The list gets the signal by which this process has ended all.
    """
    pressed: list[int] = []
    ended_by: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield ended_by
        return

    def interrupt(number: int, frame: Any) -> None:
        ranks = places(folder)
        pressed.append(number)
        if number != signal.SIGINT or len(pressed) > 1 or not ranks:
            ended_by.append(number)
            process.terminate()
            return
        for place in ranks:
            with suppress(ProcessLookupError):
                os.kill(place.process, signal.SIGINT)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield ended_by
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- what mpiexec says ---------------------------------------------------------------------------

BANNER = re.compile(
    r"^={60,}$|^=   |^YOUR APPLICATION TERMINATED|^This typically refers|^Please see the FAQ"
    r"|^\[mpiexec@|^Abort\(\d+\) on node"
)
"""Lines of MPICH about a rank that was killed, or has ended all."""
RULE = re.compile(r"^-{60,}$")
"""The lines between which Open MPI says the same."""
PROCESS, SIGNAL = re.compile(r"PID (\d+)"), re.compile(r"signal (\d+)")


def relay(source: IO[str], sink: TextIO, banner: list[str]) -> None:
    """Print what the ranks say, and keep what MPI says of them."""
    between = False
    for line in source:
        rule = RULE.search(line) is not None
        if between or rule or BANNER.search(line):
            banner.append(line)
            between ^= rule
        else:
            with suppress(OSError):  # nobody reads it; the ranks go on
                sink.write(line)
                sink.flush()


def places(folder: Path) -> list[Any]:
    """Where the ranks on this machine are, or were last."""
    from xbp.parallel.watch import place_from

    found = (path.read_bytes() for path in sorted(folder.iterdir()))
    return [place_from(data) for data in found if any(data)]


def obituary(banner: str, ranks: Sequence[Any]) -> str:
    """The sentence about a rank that was killed; empty if none was."""
    from xbp.parallel.watch import waiting

    process, number = PROCESS.search(banner), SIGNAL.search(banner)
    if process is None or number is None:
        return ""
    names = {each.value: each.name for each in signal.Signals}
    by = names.get(int(number[1]), f"signal {number[1]}")
    dead = next((place for place in ranks if place.process == int(process[1])), None)
    if dead is None:
        return f"process {process[1]} was ended by {by}, and with it all ranks"
    others = "; ".join(waiting(place) for place in ranks if place is not dead)
    return f"rank {dead.rank} was ended by {by} in step {dead.step:,}; {others}: all ranks end"
