"""Ranks that are killed or stopped at random moments: all end, and the run goes on.

    python tests/killed_ranks.py --runs 200

Each run trains in one, two or three processes, which write a checkpoint every few steps. A random
rank gets SIGKILL or SIGSTOP at a random moment, one to three times. Every time all ranks must end,
with a status, within `XBP_RANK_TIMEOUT` and `GRACE` seconds. A stopped rank must be named, unless
all have seen one another in the end of their program. The next processes, of another number, go on
from the last checkpoint. Losses of all epochs, parameters and optimizer must at the
end be those of a run that nobody killed, up to rounding. Exit status 1 if any of this fails. Needs
mpi4py and the wheel of MPICH.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from parallel.started import environment, of_mpich

import xbp
from xbp import nn, optim
from xbp.launchers import launched
from xbp.parallel.watch import PLACES, VARIABLE, Place, place_from
from xbp.training import Checkpoints

EPOCHS, SAMPLES, BATCH, EVERY = 12, 66, 8, 3
"""Nine steps an epoch, of whose last batch, of two samples, the third of three ranks has none."""

TIMEOUT, GRACE = 3, 20
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
"""float64: 108 steps may make the roundings of sums in another order a million times larger."""


def train(folder: Path | None) -> dict[str, np.ndarray]:
    """One training, from its last checkpoint on if it has one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 6))
    y = (x[:, 0] > x[:, 1]).astype(np.int64)
    model = nn.Sequential(
        nn.Linear(6, 16, dtype="float64", rng=0),
        nn.BatchNorm1d(16, eps=0.1, dtype="float64"),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(16, 2, dtype="float64", rng=1),
    )
    steps = EPOCHS * -(-SAMPLES // BATCH)
    optimizer = optim.Adam(model.parameters(), optim.OneCycleLR(0.02, steps), eps=1e-4)
    group = "mpi" if launched() is not None else None
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0, group=group)
    saving = [] if folder is None else [Checkpoints(folder, EVERY, monitor="val_loss")]
    held = x[:9], y[:9]
    history = trainer.fit(x, y, EPOCHS, BATCH, held, saving, verbose=False, resume=folder)
    losses = [[record["loss"], record["val_loss"]] for record in history.records]
    state = {f"optimizer {name}": value for name, value in optimizer.state_dict().items()}
    return {"losses": np.asarray(losses), **model.state_dict(), **state}


def start(folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    """`train` in so many processes; rank 0 writes the result."""
    for path in (folder / "places").glob("*"):
        path.unlink()
    several = [str(of_mpich("mpiexec.hydra")), "-n", str(ranks)] if ranks > 1 else []
    settings = {PLACES: str(folder / "places"), VARIABLE: str(TIMEOUT)}
    return subprocess.Popen(
        [*several, sys.executable, __file__, "--train", str(folder)],
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=(folder / "said").open("wb"),
    )


def places(folder: Path) -> list[Place]:
    found = (path.read_bytes() for path in sorted((folder / "places").glob("*")))
    return [place_from(data) for data in found if any(data)]


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits for its parent to take notice."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


class Outcome(NamedTuple):
    killed: int = 0
    stopped: int = 0
    longest: float = 0.0
    """Seconds from a signal to the end of all ranks."""


def strike(folder: Path, choose: random.Random, ranks: int, seconds: float) -> Outcome:
    """Start ranks, and kill or stop one of them."""
    process = start(folder, ranks)
    while len(places(folder)) < ranks > 1 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(choose.uniform(0.0, seconds if ranks > 1 else seconds + 0.5))
    alone = Place(process.pid, 0, 0, 0, 0)
    victim = choose.choice(places(folder) if ranks > 1 else [alone])
    stop = ranks > 1 and choose.random() < 0.3
    by, began, limit = signal.SIGSTOP if stop else signal.SIGKILL, time.monotonic(), TIMEOUT + GRACE
    with suppress(ProcessLookupError):  # it has ended
        os.kill(victim.process, by)
    try:
        status = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        others = [place.process for place in places(folder) if place.process != victim.process]
        if stop and all(map(has_ended, others)):  # it had ended MPI: only the launcher waits
            os.kill(victim.process, signal.SIGCONT)
            assert process.wait(timeout=limit) == 0
            return Outcome()
        process.kill()
        msg = f"{ranks} ranks still wait {limit} s after rank {victim.rank} got {by.name}"
        raise AssertionError(msg) from None
    if status == 0:
        return Outcome()  # the signal came too late
    said = (folder / "said").read_text(encoding="utf-8", errors="replace")
    if stop:
        named = f"rank {victim.rank} has not answered for {TIMEOUT} s" in said
        ends = all(place.over for place in places(folder))
        late = ends and "has waited for the others" in said
        assert named or late, f"{victim} was stopped among {places(folder)}: {said or 'no word'}"
    return Outcome(not stop, stop, time.monotonic() - began)


def one_run(
    folder: Path, choose: random.Random, seconds: float, expected: dict[str, np.ndarray]
) -> list[Outcome]:
    """Kill, go on with another number of ranks, …, finish."""
    (folder / "places").mkdir(parents=True)
    numbers = [choose.choice([2, 3])]
    for _ in range(choose.randint(1, 3)):
        numbers.append(choose.choice([n for n in (1, 2, 3) if n != numbers[-1]]))
    *struck, last = numbers
    outcomes = [strike(folder, choose, ranks, seconds) for ranks in struck]
    process = start(folder, last)
    assert process.wait(timeout=120) == 0, (folder / "said").read_text(encoding="utf-8")
    result = dict(np.load(folder / "result.npz"))
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, **CLOSE, err_msg=f"{numbers}: {name}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        result = train(arguments.train)
        start_ = launched()
        if start_ is None or start_.rank == 0:
            np.savez(arguments.train / "result.npz", **result)
        return 0
    choose, outcomes = random.Random(arguments.seed), list[Outcome]()
    expected = train(None)
    with tempfile.TemporaryDirectory() as parent:
        whole = Path(parent) / "whole"
        (whole / "places").mkdir(parents=True)
        process = start(whole, 2)
        while len(places(whole)) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        assert process.wait(timeout=120) == 0, (whole / "said").read_text(encoding="utf-8")
        seconds = time.monotonic() - began
        for run in range(arguments.runs):
            try:
                outcomes += one_run(Path(parent) / f"{run}", choose, seconds, expected)
            except AssertionError as error:
                sys.stdout.write(f"run {run}: {error}\n")
                return 1
    killed, stopped = sum(each.killed for each in outcomes), sum(each.stopped for each in outcomes)
    sys.stdout.write(
        f"{arguments.runs} runs, {killed} ranks killed and {stopped} stopped: all ended, within "
        f"{max(each.longest for each in outcomes):.1f} s, went on with another number of ranks, "
        "and gave the result of the run that nobody killed\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
