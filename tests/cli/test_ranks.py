"""``--ranks n``: what starts the ranks, what is printed, and that mistakes get one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli.running import assert_sentence, options
from parallel.started import environment, needs_mpi, of_mpich

from xbp.cli import ranks as joining
from xbp.cli import starting
from xbp.launchers import LAUNCHERS, Launched
from xbp.parallel import watch
from xbp.parallel.watch import BARRIER, COMPUTES, SUM, Place
from xbp.training.files.weights import load_weights

NOT_LAUNCHED = dict.fromkeys((name for names in LAUNCHERS.values() for name in names), "")

# --- the process that starts them ----------------------------------------------------------------


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have an MPI of a vendor, with some programs."""

    def pretend(name: str, *programs: str, root: bool = False) -> None:
        done = SimpleNamespace(returncode=0 if name else 1, stdout=f"{name}\n", stderr="No MPI\n")
        monkeypatch.setattr(starting.subprocess, "run", lambda *_, **__: done)
        found = {program: f"/bin/{program}" for program in programs}
        monkeypatch.setattr(starting.shutil, "which", lambda program, path: found.get(program))
        monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000, raising=False)

    return pretend


def test_each_mpi_is_started_by_its_own_program(vendor: Any) -> None:
    vendor("MPICH", "mpiexec", "mpiexec.hydra")
    assert starting.mpiexec(2) == ["/bin/mpiexec.hydra", "-n", "2"]
    free = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    vendor("Open MPI", "mpiexec")
    assert starting.mpiexec(3) == ["/bin/mpiexec", *free, "-n", "3"]
    vendor("Open MPI", "mpiexec", root=True)
    assert starting.mpiexec(3) == ["/bin/mpiexec", *free, "--allow-run-as-root", "-n", "3"]
    vendor("Another MPI", "mpiexec")
    assert starting.mpiexec(2) == ["/bin/mpiexec", "-n", "2"]


def test_without_mpi_it_is_said_what_to_install(command: Any, vendor: Any) -> None:
    vendor("")
    result = command("train", "lenet5", "--ranks", 2)
    assert_sentence(
        result, "MPI, which cannot be imported (No MPI)", 'pip install "xbackprop[mpi]"'
    )
    vendor("MPICH")
    assert_sentence(command("train", "lenet5", "--ranks", 2), "needs mpiexec.hydra of MPICH")


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of four cores, where numbers of ranks are noted instead of started."""
    started: list[int] = []

    def start(ranks: int) -> int:
        started.append(ranks)
        return 5

    monkeypatch.setattr(joining, "cores", lambda: 4)
    monkeypatch.setattr(joining, "start", start)
    return started


@pytest.mark.parametrize(
    ("ranks", "part"), [(5, "more processes than the 4 cores"), (0, "least 1")]
)
def test_numbers_that_make_no_sense(
    command: Any,
    four_cores: list[int],
    ranks: int,
    part: str,
) -> None:
    for words in (("train", "lenet5"), ("parity",)):
        assert_sentence(command(*words, "--ranks", ranks), "--ranks", part)
    assert not four_cores


def test_it_ends_as_the_ranks_do(command: Any, four_cores: list[int]) -> None:
    for words in (("train", "lenet5"), ("train", "resnet20"), ("parity",)):
        assert command(*words, "--ranks", 4).code == 5
    assert four_cores == [4, 4, 4]
    assert_sentence(command("train", "lenet5", "--ranks", 4, "--epochs", 0), "--epochs")
    assert four_cores == [4, 4, 4]  # a mistake is found before they are started


def test_one_rank_is_this_process(
    command: Any,
    four_cores: list[int],
    small: Path,
    tmp_path: Path,
) -> None:
    assert command(*options(small, tmp_path, epochs=1, ranks=1)).code == 0
    assert not four_cores


def test_torchrun_starts_ranks_from_its_first_process(
    command: Any,
    four_cores: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = dict(zip(LAUNCHERS["torchrun"], ("0", "4", "0", "4"), strict=True))
    for name, value in (NOT_LAUNCHED | here).items():
        monkeypatch.setenv(name, value)
    assert command("train", "lenet5").code == 5
    monkeypatch.setenv("RANK", "1")
    assert command("train", "lenet5").code == 0
    assert four_cores == [4]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert_sentence(command("train", "lenet5"), "4 processes on several machines, without MPI")


def test_ranks_have_an_environment_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*starting.LAUNCHERS["torchrun"], "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("KEPT", "as it is")
    given = starting.environment(2, "folder")
    assert "RANK" not in given and given["KEPT"] == "as it is"
    assert given["XBP_RANK_PLACES"] == "folder"
    assert "OMP_NUM_THREADS" in given  # the user's choice


# --- what mpiexec says ---------------------------------------------------------------------------

MPICH = f"""{"=" * 83}
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 12 RUNNING AT vm
=   EXIT CODE: 9
{"=" * 83}
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
OPEN_MPI = f"""{"-" * 74}
prterun noticed that process rank 1 with PID 12 on node vm exited on
signal 9 (Killed).
{"-" * 74}
"""
ENDED = f"""Abort(2) on node 0 (rank 0 in comm 0): application called MPI_Abort
{"-" * 74}
MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD
{"-" * 74}
"""


@pytest.mark.parametrize("banner", [MPICH, OPEN_MPI])
def test_a_killed_rank_is_named(banner: str) -> None:
    sink, kept = io.StringIO(), list[str]()
    source = io.StringIO(f"epoch 1\n{banner}\n= 3\n")
    starting.relay(source, sink, kept)
    assert sink.getvalue() == "epoch 1\n\n= 3\n"
    ranks = [Place(11, 0, 7, 9, SUM), Place(12, 1, 6, 8, COMPUTES), Place(13, 2, 7, 9, BARRIER)]
    assert starting.obituary("".join(kept), ranks) == (
        "rank 1 was ended by SIGKILL in step 6; rank 0 waits for it in a sum, step 7; "
        "rank 2 waits for it in a barrier, step 7: all ranks end"
    )
    assert starting.obituary("".join(kept), []).startswith("process 12 was ended by SIGKILL")


def test_of_ranks_that_end_by_themselves_nothing_more_is_said() -> None:
    sink, kept = io.StringIO(), list[str]()
    starting.relay(io.StringIO(ENDED), sink, kept)
    assert sink.getvalue() == ""
    assert starting.obituary("".join(kept), []) == ""


# --- a rank --------------------------------------------------------------------------------------


def test_another_number_than_was_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "launched", lambda: Launched("MPICH", 0, 2, 0, 2))
    monkeypatch.setattr(joining, "_joined", [SimpleNamespace(size=2, rank=0)])
    assert joining.join(2) is joining.join(None)
    with pytest.raises(joining.InputError, match="--ranks is 3, but MPICH has started 2"):
        joining.join(3)


def test_an_error_ends_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(joining, "launched", lambda: None)
    monkeypatch.setattr(joining, "_joined", [SimpleNamespace(size=2, rank=1)])
    monkeypatch.setattr("xbp.parallel.mpi.engine", lambda: "MPI")
    monkeypatch.setattr(watch, "HEAD_START", 0.0)
    monkeypatch.setattr(watch, "end_all", lambda *arguments: ended.append(arguments))
    joining.end_all_ranks("no such file")
    assert ended == [("rank 1: no such file", "MPI", 2)]


# --- by MPI --------------------------------------------------------------------------------------


def start(*words: object, mpiexec: int = 0, **others: str) -> subprocess.Popen[str]:
    """Start ``python -m xbp …``, with `mpiexec` in so many ranks."""
    several = [str(of_mpich("mpiexec.hydra")), "-n", str(mpiexec)] if mpiexec else []
    return subprocess.Popen(
        [*several, sys.executable, "-m", "xbp", *map(str, words)],
        env=environment(COLUMNS="100", **others),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=120)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def numbers(folder: Path) -> list[list[float]]:
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        # The last epoch of a training that was ended early has no validation.
        return [[float(value or "nan") for value in row] for row in list(csv.reader(file))[1:]]


@needs_mpi
@pytest.mark.skipif(joining.cores() < 2, reason="two ranks need two cores")
class TestTwoRanks:
    def test_they_train_as_one_process_does(
        self,
        command: Any,
        small: Path,
        tmp_path: Path,
    ) -> None:
        alone, two, own = tmp_path / "alone", tmp_path / "two", tmp_path / "own"
        expected = command(*options(small, alone))
        assert expected.code == 0
        found = ended(start(*options(small, two, ranks=2, checkpoint_every=4)))
        assert (found.code, found.err) == (0, ""), found
        by_hand = ended(start(*options(small, own), mpiexec=2))
        assert by_hand.code == 0, by_hand
        for folder, out in ((two, found.out), (own, by_hand.out)):
            assert out.count("300 training images") == out.count("wrote history.csv") == 1
            # float32: ten steps at a rate of 0.004 move roundings of 1e-7 to 1e-6
            np.testing.assert_allclose(numbers(folder), numbers(alone), rtol=1e-5)
            weights = load_weights(folder / "model.safetensors")
            for name, value in load_weights(alone / "model.safetensors").items():
                np.testing.assert_allclose(weights[name], value, rtol=1e-3, atol=1e-5)
        record = json.loads((two / "run.json").read_text(encoding="utf-8"))
        assert "--ranks 2" in record["command"]
        again = command("train", "lenet5", "--resume", two, "--ranks", 1)
        assert again.code == 0 and "going on after step 10" in again.out

    @pytest.mark.parametrize("mpiexec", [0, 2])
    def test_a_mistake_is_told_once(self, mpiexec: int, tmp_path: Path) -> None:
        words = [
            "train",
            "lenet5",
            "--data-dir",
            tmp_path / "missing",
            "--output",
            tmp_path / "run",
        ]
        found = ended(start(*words, *([] if mpiexec else ["--ranks", 2]), mpiexec=mpiexec))
        assert found.code == 2
        lines = [line for line in found.err.splitlines() if not line.startswith("Abort(")]
        assert len(lines) == 1 and lines[0].startswith("Error: rank 0: "), found
        assert "missing" in lines[0]

    @pytest.mark.parametrize("what", ["killed", "stopped", "interrupted"])
    def test_all_end(self, what: str, small: Path, tmp_path: Path) -> None:
        words = options(small, tmp_path / "run", epochs=100_000, ranks=2)
        process = start(*words, TMPDIR=str(tmp_path), XBP_RANK_TIMEOUT="4")
        places: list[Place] = []
        while len(places) < 2 or min(place.step for place in places) < 3:
            assert process.poll() is None, ended(process)
            time.sleep(0.05)
            places = [
                each for folder in tmp_path.glob("xbp-ranks-*") for each in starting.places(folder)
            ]
        if what == "interrupted":
            process.send_signal(signal.SIGINT)
            found = ended(process)
            assert (found.code, found.err) == (0, "")
            assert "training ended early: interrupted by Ctrl-C" in found.out
            assert numbers(tmp_path / "run")
            return
        os.kill(places[1].process, signal.SIGKILL if what == "killed" else signal.SIGSTOP)
        found = ended(process)
        assert found.code not in (0, 2)
        # MPICH ends the other rank by the same signal, and may name that one.
        killed = r"Error: rank (1|0) was ended by SIGKILL in step \d+; rank [01] (is in|waits)"
        stopped = r"Error: rank 1 has not answered for 4 s; rank 0 (waits for it|is in step)"
        assert re.match(killed if what == "killed" else stopped, found.err), found
        assert found.err.count("\n") == 1
