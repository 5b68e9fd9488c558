"""Trainings, killed with SIGKILL at random moments and resumed, compared with unkilled ones.

    python tests/killed.py --runs 200
    python tests/killed.py --kills 1000 --minutes 10     # as many as that takes, or as many as fit

Each training runs in its own process, which writes a checkpoint every few steps and is killed one
to three times, mostly while it writes one, as that takes most of its time. After each kill every
checkpoint in the folder must be complete, and the next process must lose no more than the steps
since the last one. Final parameters, optimizer and history must equal, bit for bit, those of a
training that was not killed. Exit status 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import xbp
from xbp import nn, optim
from xbp.training import Callback, Checkpoints, EarlyStopping
from xbp.training.files.checkpoints import checkpoints_in
from xbp.training.files.tensors import TensorFile

EPOCHS, STEPS_PER_EPOCH, EVERY = 8, 7, 3


class Log(Callback):
    """Appends the number of each step to a file, after its checkpoint has been written."""

    call_order = 4

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, trainer: xbp.Trainer, step: int) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(b"%d\n" % trainer.optimizer.steps)


def train(folder: Path | None) -> str:
    """One training, resumed from its last checkpoint, if any; returns a digest of its result."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS_PER_EPOCH * 4 - 1, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    model = nn.Sequential(
        nn.Linear(3, 8, rng=0), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2, rng=1)
    )
    optimizer = optim.Adam(model.parameters(), optim.OneCycleLR(0.05, EPOCHS * STEPS_PER_EPOCH))
    trainer = xbp.Trainer(model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=0)
    callbacks: list[Callback] = [EarlyStopping(patience=EPOCHS)]
    if folder is not None:
        callbacks += [Log(folder / "steps"), Checkpoints(folder, EVERY, monitor="val_loss")]
    trainer.fit(x, y, EPOCHS, 4, (x[:9], y[:9]), callbacks, verbose=False, resume=folder)
    digest = hashlib.sha256(json.dumps(trainer.history.records).encode())
    for name, value in {**model.state_dict(), **optimizer.state_dict()}.items():
        digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()


def start(folder: Path) -> int:
    """Start `train` in its own process; returns the process id."""
    child = os.fork()
    if child == 0:
        try:
            (folder / "result").write_text(train(folder))
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return child


class Outcome(NamedTuple):
    kills: int = 0
    within_a_write: int = 0
    most_lost: int = 0


def one_run(folder: Path, choose: random.Random, seconds: float, expected: str) -> Outcome:
    """Kill, resume, …, finish; an AssertionError describes a violation."""
    kills = within = most_lost = done = 0
    for _ in range(choose.randint(1, 3)):
        before, child = len(steps(folder)), start(folder)
        time.sleep(choose.uniform(0.0, 0.9 * seconds))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        made = steps(folder)[before:]
        if made:
            assert made == list(range(made[0], made[-1] + 1)), "steps were left out"
            lost = done + 1 - made[0]
            most_lost = max(most_lost, lost)
            assert lost <= done - last_checkpoint(done), f"{lost} steps were lost after {done}"
            done = made[-1]
        for path in checkpoints_in(folder):
            TensorFile(path).read()
        kills += os.WIFSIGNALED(status)
        within += any(folder.glob(".xbp-*"))
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(start(folder), 0)[1]) == 0, "it does not go on"
    assert (folder / "result").read_text() == expected, "the result is another one"
    return Outcome(kills, within, most_lost)


def steps(folder: Path) -> list[int]:
    path = folder / "steps"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def last_checkpoint(step: int) -> int:
    """The latest possible step of the last checkpoint before the log of `step`.

    The checkpoint of an epoch's last step is written after its validation, and so after the log.
    """
    epoch = (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    inside = step - 1 if step % STEPS_PER_EPOCH == 0 else step
    return max(epoch, inside // EVERY * EVERY)


def enough(outcomes: list[Outcome], runs: int, kills: int | None) -> bool:
    killed = [outcome.kills for outcome in outcomes if outcome.kills]
    return len(killed) >= runs if kills is None else sum(killed) >= kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, help="go on until so many kills, in place of --runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    choose = random.Random(arguments.seed)
    expected, outcomes = train(None), []
    with tempfile.TemporaryDirectory() as parent:
        began, whole = time.perf_counter(), Path(parent) / "whole"
        whole.mkdir()
        assert train(whole) == expected, "checkpoints change the result"
        seconds = time.perf_counter() - began
        end = began + 60 * arguments.minutes
        while time.perf_counter() < end and not enough(outcomes, arguments.runs, arguments.kills):
            folder = Path(parent) / f"{len(outcomes)}"
            folder.mkdir()
            try:
                outcomes.append(one_run(folder, choose, seconds, expected))
            except AssertionError as error:
                sys.stdout.write(f"run {len(outcomes)}: {error}\n")
                return 1
    kills, within = (sum(column) for column in list(zip(*outcomes, strict=True))[:2])
    sys.stdout.write(
        f"{len(outcomes)} runs, {kills} kills, {within} of them within the writing of a file: all "
        f"went on, the most that one lost was {max(o.most_lost for o in outcomes)} steps (of "
        f"{EVERY} from one checkpoint to the next), and all ended with the same bits\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
