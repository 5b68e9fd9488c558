"""The sides take turns: starts the workers, sees that they compute the same, and times them."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TypeAlias

import numpy as np

import xbp
from xbp import machine
from xbp.benchmarks.workloads import (
    SIDES,
    WORKLOADS,
    flop,
    input_shape,
    make_model,
    on_gpu,
    step_products,
    traffic,
)
from xbp.errors import InputError, XBPError
from xbp.machine import cpus
from xbp.optim import OneCycleLR
from xbp.random import permutation

OURS = ("xbp", "xbp-eager", "reference")
XBP = (*OURS, "xbp-numpy")  # whose processes hold xbp
RATE = 0.01  # of SGD

Costs: TypeAlias = "dict[str, list[float | None]]"
"""Of each side, round by round; None for a goal not reached."""

# How far apart the sides' losses of the first five steps may lie, relatively. On PyTorch, JAX and
# scikit-learn it was 2.1e-7 at most, two roundings of float32; a learning rate that is 10 % off
# gives 4.5e-5 at least. In TF32 the factors of a product are rounded by up to 5e-4: not measured.
SAME, SAME_TF32 = 2e-6, 2e-3

# How many bytes more than after its tenth part a training may hold at its end. A pool counts each
# byte; a driver gives whole pages of 2 MiB; a process gets its memory from an allocator that keeps
# and splits what is freed. A step's arrays at batch 128 are 12 MB: one kept in each epoch is seen.
GROWS = {"now": 0, "device": 2**22, "process": 2**25}


@dataclass(frozen=True)
class Scale:
    """How much is measured: all of it, or just enough to see that everything works."""

    rounds: int = 7
    long_rounds: int = 3  # of what takes a minute
    seconds: float = 1.0  # of a turn
    pause: float = 0.3  # before each turn: threads of the others spin for up to 0.2 s
    guard: int = 5
    images: int = 60_000
    epochs: int = 5
    target: float = 0.99
    square: int = 2048
    copied: int = 2**28
    hidden: int = 4096
    imports: int = 5  # times as many rounds
    counted: int = 64  # steps whose kernels are counted
    grown: int = 2048  # images of an epoch, of many
    most_epochs: int = 50


QUICK = Scale(
    rounds=1,
    long_rounds=1,
    seconds=0.0,
    pause=0.0,
    guard=3,
    images=1024,
    epochs=1,
    target=0.0,
    square=64,
    copied=2**20,
    hidden=64,
    imports=1,
    counted=2,
    grown=256,
    most_epochs=2,
)
LARGE = {"square": 8192, "copied": 2**30}  # what a GPU needs, to be busy


@dataclass(frozen=True)
class Options:
    backend: str
    device: str | None
    threads: int
    tf32: bool
    rounds: int | None
    batches: tuple[int, ...]
    quick: bool


class SideError(XBPError):
    """A side could not do what it was asked."""


class Worker:
    """The harness's end of a side's process, started at the first command."""

    def __init__(self, name: str, options: Options, threads: int) -> None:
        side, folder = SIDES[name], Path(__file__).parent
        self.remarks: list[str] = []  # on what was asked
        sent: dict[str, Any] = {
            "backend": options.backend,
            "device": options.device,
            "tf32": options.tf32,
            "trainer": on_gpu(options.backend),
        }
        sent |= {"threads": threads, "cpus": cpus()[:threads], **side.options}
        self.errors = TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", folder / "worker.py", folder / side.file, json.dumps(sent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(name, options, threads),
            text=True,
            encoding="utf-8",
        )

    def ask(self, command: str, **job: Any) -> Any:
        """What the side answers.

        Raises
        ------
        SideError
            It could not do it, or is no more.
        """
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps([command, job]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip() or "it said nothing").splitlines()[-1]
            msg = f"the process ended with status {self.process.wait()}: {last}"
            raise SideError(msg)
        reply = json.loads(line)
        if "error" in reply:
            raise SideError(reply["error"])
        self.remarks += reply.get("remarks", [])
        return reply["answer"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def environment(name: str, options: Options, threads: int) -> dict[str, str]:
    """A worker's: the number of threads for all libraries, and nothing that changes how they wait.

    By default OpenMP's threads spin for some milliseconds after their work (Intel's for 200) and
    then sleep. To make them sleep at once would cost a peer a wake-up or more in each step, to let
    them spin for ever would disturb the others. So they keep to it, and pauses separate the turns.
    """
    dropped = (
        "NVIDIA_TF32_OVERRIDE",
        "XBP_BACKEND",
        "XBP_ACCELERATE",
        "XBP_CAPTURE",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
    )
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    for key in ("XBP_NUM", "OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
        env[f"{key}_THREADS"] = str(threads)
    env |= {"CUPY_TF32": "01"[options.tf32], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env |= {} if on_gpu(options.backend) else {"JAX_PLATFORMS": "cpu"}
    if name in XBP:
        root = str(machine.ROOT)
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return env | SIDES[name].environment


class Harness:
    """Measures workloads on the sides that are there; a context manager, which ends the workers.

    Parameters
    ----------
    options : Options
    sides : iterable of str
        Those wanted, of `SIDES`.
    say : callable
        Is told what happens, a line at a time.

    Attributes
    ----------
    rows : list of dict
        What has been measured: for each side its costs, round by round, in seconds or bytes a step;
        for each side of xbp, how many times that each other side costs in the same round.
    versions : dict
        What each side that takes part says of itself.
    not_run : dict
        Why a side takes no part.
    failures : list of str
        What a side that does take part could not do.
    machine : dict
        Where all this is, and how busy it was before.
    """

    def __init__(
        self, options: Options, sides: Iterable[str], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options, self.say = options, say
        self.found: Callable[[], None] = lambda: None  # is called after each row
        self.on_gpu = self.resident = on_gpu(options.backend)  # then data stay on the device
        self.scale = QUICK if options.quick else Scale(**(LARGE if self.on_gpu else {}))
        self.rounds = options.rounds or self.scale.rounds
        self.rows: list[dict[str, Any]] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.not_run: dict[str, str] = {}
        self.failures: list[str] = []
        self.workers: dict[str, Worker] = {}
        self.sides = list(sides)
        self.machine = conditions()

    def __enter__(self) -> Harness:
        with ExitStack() as stack:
            self._begin(stack)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _begin(self, stack: ExitStack) -> None:
        self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="xbp.")))
        for part, (x, y) in zip(("train", "test"), xbp.datasets.load_mnist(), strict=True):
            x, y = x[: self.scale.images], y[: self.scale.images]
            np.save(self.folder / f"x_{part}.npy", xbp.datasets.standardize_images(x))
            np.save(self.folder / f"y_{part}.npy", y.astype(np.int64))
        for name in list(self.sides):
            try:
                self._start(name, stack)
            except SideError as error:
                self.not_run[name] = str(error)
                self.sides.remove(name)

    def _start(self, name: str, stack: ExitStack) -> None:
        side = SIDES[name]
        if find_spec(side.module) is None:
            msg = f"not installed; {side.install}" if side.install else f"there is no {side.module}"
            raise SideError(msg)
        if side.file:
            self.workers[name] = self._worker(stack, name)
            self.versions[name] = self.workers[name].ask("versions")

    def _worker(
        self, stack: ExitStack, name: str, threads: int | None = None, **changed: Any
    ) -> Worker:
        options = replace(self.options, **changed)
        worker = Worker(name, options, threads or options.threads)
        stack.callback(worker.close)
        return worker

    def measure(self, name: str) -> None:
        """Measure workload `name` at all its sizes, on all sides that it has here."""
        workload = WORKLOADS[name]
        sides = [side for side in workload.sides if side in self.sides]
        sizes: tuple[int, ...] = workload.sizes or (0,)
        if workload.sizes:
            sizes = self.options.batches or sizes[: 1 if self.options.quick else None]
        for size in sizes if sides else ():
            label = f"{workload.title} {size or ''}".rstrip()
            self.say(label)
            try:
                getattr(self, f"_{workload.kind}")(name, sides, size)
            except SideError as error:
                self._fail(f"{label}: {error}")

    # --- the kinds of workload ---

    def _train(self, name: str, sides: list[str], batch: int) -> None:
        job, kind = self._job(name, batch), WORKLOADS[name].kind
        needed = {"flop": flop(kind, job["model"], batch)}
        needed |= {"bytes": traffic(kind, job["model"], batch)}
        self._turns(name, str(batch), kind, job, self._of(sides), **needed)

    _infer = _train

    def _products(self, name: str, sides: list[str], batch: int) -> None:
        shapes = step_products(self._job(name, batch)["model"][1:], batch)
        self._multiply(name, str(batch), shapes, self._of(sides))

    def _sgemm(self, name: str, sides: list[str], _: int) -> None:
        n = self.scale.square
        if self.on_gpu:
            for tf32 in (False, True):
                with ExitStack() as stack:
                    workers = {side: self._worker(stack, side, tf32=tf32) for side in sides}
                    self._multiply(name, precision(tf32), [[n, n, n, "nn"]], workers)
            return
        for threads, workers in self._by_threads(sides):
            self._multiply(name, threads_label(threads), [[n, n, n, "nn"]], workers)

    def _multiply(
        self, name: str, label: str, shapes: list[list[Any]], workers: dict[str, Worker]
    ) -> None:
        flop = sum(2 * m * k * n for m, k, n, _ in shapes)
        self._turns(name, label, "products", {"shapes": shapes}, workers, flop=flop)

    def _copy(self, name: str, sides: list[str], _: int) -> None:
        size = self.scale.copied
        for threads, workers in self._by_threads(sides):
            job = {"size": size, "parts": 1 if self.on_gpu else threads}
            label = "" if self.on_gpu else threads_label(threads)
            self._turns(name, label, "copy", job, workers, bytes=2 * size)

    def _launch(self, name: str, sides: list[str], _: int) -> None:
        for kernels in (1, 100):
            for graph in (False, True):
                label = f"{kernels} kernel" + "s" * (kernels > 1) + ", a graph" * graph
                job = {"kernels": kernels, "graph": graph}
                self._turns(name, label, "launch", job, self._of(sides))

    def _call(self, name: str, sides: list[str], _: int) -> None:
        self._turns(name, "", "call", {}, self._of(sides))

    def _learn(self, name: str, sides: list[str], batch: int) -> None:
        """A round is a seed, whose weights and shuffles are the same on all sides.

        What a side compiles for a whole batch is not counted. What it compiles for the last one of
        an epoch and for the evaluation is, at the first seed, so that the median leaves it out; so
        it is with what a side captures.
        """
        target = None if WORKLOADS[name].epochs else self.scale.target
        runs, checked = self._trainings(name, sides, batch, target)
        costs: Costs = {
            side: [r["seconds"] if r["accuracy"] >= (target or 0) else None for r in last]
            for side, last in _last(runs).items()
        }
        if runs:
            self._add(name, str(batch), costs, checked, epochs=runs)

    def _seeds(self, name: str, sides: list[str], batch: int) -> None:
        """The errors after whole trainings: two backends shall be no further apart than seeds."""
        runs, checked = self._trainings(name, sides, batch, None)
        if not runs:
            return
        costs: Costs = {
            side: [1 - r["accuracy"] for r in last] for side, last in _last(runs).items()
        }
        self._add(name, str(batch), costs, checked, epochs=runs)
        for line in disagreements(costs):
            self._fail(f"{WORKLOADS[name].title}: {line}")

    def _trainings(
        self, name: str, sides: list[str], batch: int, target: float | None
    ) -> tuple[dict[str, list[list[dict[str, float]]]], dict[str, Any]]:
        """Seconds and accuracy after each epoch, of each seed, of each side; and the check."""
        scale, orders = self.scale, self.folder / "orders.npy"
        epochs = min(WORKLOADS[name].epochs or scale.epochs, scale.most_epochs)
        steps = epochs * -(-scale.images // batch)
        schedule = OneCycleLR(WORKLOADS[name].rate, steps)
        rates = [schedule(step) for step in range(steps)]
        job = self._job(name, batch) | {"optimizer": "adam", "lr": rates[0]}
        workers, checked = self._prepare(name, str(batch), "train", job, self._of(sides))
        runs: dict[str, list[list[dict[str, float]]]] = {side: [] for side in workers}
        for seed in range(min(self.rounds, scale.long_rounds)):
            np.save(orders, [permutation(seed, e, scale.images) for e in range(epochs)])
            job |= {"weights": self._weights(job["model"], seed), "orders": str(orders)}
            job |= {"rates": rates, "target": target, "images": scale.images, "seed": seed}
            for side, worker in list(workers.items()):
                self.say(f"  seed {seed}, {SIDES[side].title}")
                time.sleep(scale.pause)
                try:
                    runs[side].append(worker.ask("learn", **job))
                except SideError as error:
                    self._drop(f"{WORKLOADS[name].title} {batch}", side, error, workers, runs)
        return runs, checked

    def _memory(self, name: str, sides: list[str], batch: int) -> None:
        """Each time the steps of an epoch in a new process, for a peak is that of a whole life."""
        job = self._job(name, batch) | {"images": self.scale.images}
        costs: Costs = {side: [] for side in sides}
        held: dict[str, list[dict[str, int]]] = {side: [] for side in sides}
        where = f"{WORKLOADS[name].title} {batch}"
        for _ in range(min(self.rounds, self.scale.long_rounds)):
            for side in list(costs):
                try:
                    with ExitStack() as stack:
                        before = self._on_device()
                        worker = self._worker(stack, side)
                        worker.ask("train", **job)
                        worker.ask("run", steps=self.scale.images // batch)
                        if self.on_gpu:
                            costs[side].append(self._on_device() - before)
                            held[side].append(worker.ask("held"))
                        else:
                            costs[side].append(worker.ask("peak"))
                except SideError as error:
                    self._drop(where, side, error, costs, held)
        if costs:
            self._add(name, str(batch), costs, **{"held": held} if self.on_gpu else {})

    def _on_device(self) -> int:
        """Bytes of the device that all processes have, their contexts included.

        A worker that has been there all the time asks the driver; it does nothing meanwhile. No
        pid is needed, which `nvidia-smi` gets wrong in a container.
        """
        if not self.on_gpu:
            return 0
        for side in ("xbp", "torch"):
            if side in self.workers:
                return int(self.workers[side].ask("held")["device"])
        msg = "the driver is asked by xbp or by PyTorch, and neither takes part"
        raise SideError(msg)

    def _growth(self, name: str, sides: list[str], batch: int) -> None:
        """Bytes held after the last epoch, less those after the first tenth of all."""
        epochs = min(WORKLOADS[name].epochs, self.scale.most_epochs)
        images = max(self.scale.grown, 2 * batch)
        job = self._job(name, batch) | {"images": images, "epochs": epochs}
        for side in sides:
            with ExitStack() as stack:
                held = self._worker(stack, side).ask("grow", **job)
            grown = {key: held[-1][key] - held[epochs // 10][key] for key in held[0]}
            self._add(name, str(batch), {side: [max(grown.values())]}, held=held, grown=grown)
            for key in GROWS.keys() & grown.keys():
                if grown[key] > GROWS[key]:
                    what = f"{grown[key]:,} bytes ({key}) from epoch {epochs // 10 + 1} to {epochs}"
                    self._fail(f"{WORKLOADS[name].title} {batch}, {SIDES[side].title}: {what}")

    def _kernels(self, name: str, sides: list[str], batch: int) -> None:
        """Each side in new processes, for the profiler stays in one for ever.

        What it has heard most of is believed; see `Worker.timeline`.
        """
        job, seen = self._job(name, batch), dict[str, Any]()
        for side in sides:
            found, errors = list[dict[str, Any]](), list[SideError]()
            for early in (False, True):
                try:
                    with ExitStack() as stack:
                        worker = self._worker(stack, side)
                        if early:
                            worker.ask("listen")
                        worker.ask("train", **job)
                        found.append(worker.ask("timeline", steps=self.scale.counted))
                except SideError as error:
                    errors.append(error)
            if found:
                seen[side] = max(found, key=lambda timeline: timeline["kernels"])
            else:
                self._drop(f"{WORKLOADS[name].title} {batch}", side, errors[0])
        costs: Costs = {side: [t["kernels"] + t["copies"]] for side, t in seen.items()}
        if seen:
            self._add(name, str(batch), costs, timeline=seen)

    def _imports(self, name: str, sides: list[str], _: int) -> None:
        costs: Costs = {side: [] for side in sides}
        for _ in range(self.rounds * self.scale.imports):
            for side in sides:
                clock = "time.perf_counter()"
                whole = SIDES[side].whole or f"import {SIDES[side].module}"
                code = f"import time; t = {clock}; {whole}; print({clock} - t)"
                done = subprocess.run(
                    [sys.executable, "-P", "-c", code],
                    env=environment("xbp", self.options, self.options.threads),
                    capture_output=True,
                    text=True,
                    check=True,
                )
                costs[side].append(float(done.stdout))
        self._add(name, "", costs)

    # --- what they share ---

    def _of(self, sides: list[str]) -> dict[str, Worker]:
        return {side: self.workers[side] for side in sides}

    def _by_threads(self, sides: list[str]) -> Iterator[tuple[int, dict[str, Worker]]]:
        """Workers of 1, 2, 4, … threads, and last of all threads."""
        most = self.options.threads
        threads = 1
        while threads < most and not self.on_gpu:
            with ExitStack() as stack:
                yield threads, {side: self._worker(stack, side, threads) for side in sides}
            threads *= 2
        yield most, self._of(sides)

    def _job(self, name: str, batch: int) -> dict[str, Any]:
        """What a worker must know to train or run the workload's network."""
        whole = WORKLOADS[name].model
        model: list[Any] = [self.scale.hidden if size == 4096 else size for size in whole]
        images = min(self.scale.images, max(2 * batch, 8192))
        if images < batch:
            msg = f"the batch size must not exceed {images}, the number of images; got {batch}"
            raise InputError(msg)
        resident: dict[str, Any] = {}
        if self.resident:  # whole epochs of whole batches
            images = self.scale.images // batch * batch
            guard = min(self.scale.guard, images // batch) * batch
            resident = {"order": self._orders(images, 1), "guard_orders": self._orders(guard, 2)}
        return resident | {
            "model": model,
            "shape": input_shape(model[0]),
            "data": str(self.folder),
            "weights": self._weights(model, 0),
            "images": images,
            "batch": batch,
            "optimizer": "sgd",
            "lr": RATE,
            "guard": self.scale.guard,
        }

    def _orders(self, n: int, epochs: int) -> str:
        """A file of the shuffles that `Trainer` makes of the seed 0."""
        path = self.folder / f"orders-{n}-{epochs}.npy"
        np.save(path, [permutation(0, epoch, n) for epoch in range(epochs)])
        return str(path)

    def _weights(self, model: list[Any], seed: int) -> str:
        """A file of xbp's initial weights, from which all sides start."""
        path = self.folder / f"{'-'.join(map(str, model))}-{seed}.npz"
        if not path.exists():
            with xbp.use_backend("numpy"):
                np.savez(path, **make_model(*model, rng=seed).state_dict())
        return str(path)

    def _prepare(
        self, name: str, label: str, command: str, job: dict[str, Any], workers: dict[str, Worker]
    ) -> tuple[dict[str, Worker], dict[str, Any]]:
        """The sides that can do it and have the first one's losses; and how these compare."""
        where = f"{WORKLOADS[name].title} {label}".rstrip()
        losses: dict[str, list[float]] = {}
        for side, worker in workers.items():
            try:
                first = worker.ask(command, **job)
                worker.ask("run", steps=1)
                losses[side] = first
                for remark in worker.remarks:
                    self._fail(f"{where}, {SIDES[side].title}: {remark}")
                worker.remarks.clear()
            except SideError as error:
                self._fail(f"{where}, {SIDES[side].title}: {error}")
        expected = next(iter(losses.values()), [])
        same = SAME_TF32 if self.options.tf32 else SAME
        apart = {side: deviation(values, expected) for side, values in losses.items()}
        for side, value in apart.items():
            if value > same:
                got, right = (", ".join(f"{v:.7g}" for v in w) for w in (losses[side], expected))
                what = f"its losses {got} are not {right} within {same:g}: it is not timed"
                self._fail(f"{where}, {SIDES[side].title}: {what}")
        ready = {side: workers[side] for side in losses if apart[side] <= same}
        checked = {"losses": losses, "deviation": apart} if expected else {}
        return ready, checked

    def _drop(self, where: str, side: str, error: SideError, *tables: dict[str, Any]) -> None:
        """A side that breaks costs itself, and the others nothing."""
        self._fail(f"{where}, {SIDES[side].title}: {error}")
        for table in tables:
            table.pop(side)

    def _fail(self, what: str) -> None:
        self.failures.append(what)
        self.say(f"failed: {what}")

    def _turns(
        self,
        name: str,
        label: str,
        command: str,
        job: dict[str, Any],
        workers: dict[str, Worker],
        **needed: Any,
    ) -> None:
        """Time the sides one after the other, round by round."""
        where = f"{WORKLOADS[name].title} {label}".rstrip()
        workers, checked = self._prepare(name, label, command, job, workers)
        steps: dict[str, int] = {}
        costs: Costs = {side: [] for side in workers}
        for _ in range(self.rounds):
            for side, worker in list(workers.items()):
                try:
                    steps[side] = steps.get(side) or self._steps(worker)
                    time.sleep(self.scale.pause)
                    costs[side].append(worker.ask("run", steps=steps[side]) / steps[side])
                except SideError as error:
                    self._drop(where, side, error, workers, costs)
        if costs:
            self._add(name, label, costs, checked, steps=steps, **needed)

    def _steps(self, worker: Worker) -> int:
        """How many steps fill the time of a turn."""
        steps = 1
        while (spent := float(worker.ask("run", steps=steps))) < self.scale.seconds / 10:
            steps *= 4
        return max(1, round(steps * self.scale.seconds / spent))

    def _add(
        self, name: str, label: str, costs: Costs, checked: dict[str, Any] | None = None, **row: Any
    ) -> None:
        ratios = {
            ours: {side: spread(costs[side], costs[ours]) for side in costs if side != ours}
            for ours in OURS
            if ours in costs
        }
        medians = {side: median(values) for side, values in costs.items()}
        row |= {"costs": costs, "medians": medians, "ratios": ratios}
        self.rows.append({"workload": name, "label": label} | row | (checked or {}))
        self.found()


def deviation(values: list[float], expected: list[float]) -> float:
    """The largest relative difference of two lists; 0 of empty ones, infinite if one has a nan."""
    pairs = zip(values, expected, strict=True)
    apart = [abs(a - b) / abs(b) if b else abs(a) for a, b in pairs]
    return math.inf if any(map(math.isnan, apart)) else max(apart, default=0.0)


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def spread(theirs: list[float | None], ours: list[float | None]) -> list[float] | None:
    """Median, least and largest of theirs / ours in the same round."""
    pairs = zip(theirs, ours, strict=True)
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    return [statistics.median(ratios), min(ratios), max(ratios)] if ratios else None


def disagreements(costs: Costs) -> list[str]:
    """A sentence for each side whose mean is further from the last one's than any two seeds are."""
    known = {side: [v for v in values if v is not None] for side, values in costs.items()}
    means = {side: statistics.fmean(values) for side, values in known.items()}
    apart, last = max(max(values) - min(values) for values in known.values()), [*known][-1]
    return [
        f"the mean of {side} is {mean:.3%}, that of {last} {means[last]:.3%}, and seeds differ by "
        f"{apart:.3%} at most"
        for side, mean in means.items()
        if abs(mean - means[last]) > apart
    ]


def _last(runs: dict[str, list[list[dict[str, float]]]]) -> dict[str, list[dict[str, float]]]:
    """What was found after the last epoch of each training."""
    return {side: [epochs[-1] for epochs in all_] for side, all_ in runs.items()}


def precision(tf32: bool) -> str:
    return "TF32" if tf32 else "float32"


def threads_label(n: int) -> str:
    return f"{n} thread" + "s" * (n > 1)


# --- where and when ------------------------------------------------------------------------------


def conditions() -> dict[str, Any]:
    """What the numbers depend on besides the libraries."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(digits=7),
        "processor": machine.processor(),
        "cpus": len(cpus()) or os.cpu_count(),
        "load": machine.load(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
