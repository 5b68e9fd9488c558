"""The harness: measures workloads, each kind of them in its own way, on all sides."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from xbp.benchmarks.comparison import Costs, Epoch, after_last_epoch, disagreements
from xbp.benchmarks.networks import DATA, NETWORKS, input_shape
from xbp.benchmarks.process import SideError, environment
from xbp.benchmarks.sweep import draw_shapes
from xbp.benchmarks.turns import Sides, Turns
from xbp.benchmarks.workloads import NEXT, SIDES, WORKLOADS, flop, step_products, traffic
from xbp.optim import OneCycleLR
from xbp.random import permutation

GROWS = {"now": 0, "device": 2**22, "process": 2**25}
"""How many bytes a training may gain between the first tenth of its epochs and its end.

A memory pool counts each byte; a driver gives whole pages of 2 MiB; a process gets its memory from
an allocator that keeps and splits freed blocks. A step's arrays at batch 128 are 12 MB, so one that
stays alive in each epoch is found.
"""


class Harness(Turns):
    """Measures workloads; a context manager, which ends the processes of the sides."""

    def measure(self, name: str) -> None:
        """Measure workload `name` at all its sizes, on all sides that it has here."""
        workload = WORKLOADS[name]
        sides = [side for side in workload.sides if side in self.sides]
        sizes: tuple[int, ...] = workload.sizes or (0,)
        if workload.sizes:
            sizes = self.options.batches or sizes[: 1 if self.options.quick else None]
            if workload.model and NETWORKS[workload.model[0]].data in DATA:
                sizes = tuple(min(size, self.scale.drawn) for size in sizes)
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

    def _multiply(self, name: str, label: str, shapes: list[list[Any]], workers: Sides) -> None:
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

        Compilation for a whole batch is not timed. Compilation for the last batch of an epoch and
        for the evaluation is timed, and so is capture; both happen with the first seed only, so
        that the median leaves them out.
        """
        target = None if WORKLOADS[name].epochs else self.scale.target
        trained, checked = self._trainings(name, sides, batch, target)
        costs: Costs = {
            side: [r["seconds"] if r["accuracy"] >= (target or 0) else None for r in last]
            for side, last in after_last_epoch(trained).items()
        }
        if not trained:
            return
        self._add(name, str(batch), costs, checked, epochs=trained)
        for side, runs in trained.items() if WORKLOADS[name].averaged else ():
            mean = statistics.fmean(epochs[-1]["accuracy"] for epochs in runs)
            if mean < self.scale.target:
                what = f"{SIDES[side].title} reaches {mean:.3%} in the mean of {len(runs)} seeds"
                self._fail(f"{WORKLOADS[name].title}: {what}, not {self.scale.target:.0%}")

    def _seeds(self, name: str, sides: list[str], batch: int) -> None:
        """The errors after whole trainings: backends may differ by no more than seeds do."""
        trained, checked = self._trainings(name, sides, batch, None)
        if not trained:
            return
        costs: Costs = {
            side: [1 - r["accuracy"] for r in last]
            for side, last in after_last_epoch(trained).items()
        }
        self._add(name, str(batch), costs, checked, epochs=trained)
        for line in disagreements(costs):
            self._fail(f"{WORKLOADS[name].title}: {line}")

    def _trainings(
        self, name: str, sides: list[str], batch: int, target: float | None
    ) -> tuple[dict[str, list[list[Epoch]]], dict[str, Any]]:
        """For each side and seed, seconds and accuracy after each epoch; the losses compared."""
        scale, orders = self.scale, self.folder / "orders.npy"
        epochs = min(WORKLOADS[name].epochs or scale.epochs, scale.most_epochs)
        steps = epochs * -(-scale.images // batch)
        schedule = OneCycleLR(WORKLOADS[name].rate, steps)
        rates = [schedule(step) for step in range(steps)]
        job = self._job(name, batch) | {"optimizer": "adam", "lr": rates[0]}
        workers, checked = self._prepare(name, str(batch), "train", job, self._of(sides))
        trained: dict[str, list[list[Epoch]]] = {side: [] for side in workers}
        averaged = WORKLOADS[name].averaged
        job["evaluation_counts"] = averaged
        for seed in range(scale.seeds if averaged else min(self.rounds, scale.long_rounds)):
            np.save(orders, [permutation(seed, e, scale.images) for e in range(epochs)])
            job |= {"weights": self._weights(job["model"], seed), "orders": str(orders)}
            job |= {"rates": rates, "target": target, "images": scale.images, "seed": seed}
            for side, worker in list(workers.items()):
                self.say(f"  seed {seed}, {SIDES[side].title}")
                time.sleep(scale.pause)
                try:
                    trained[side].append(worker.ask("learn", **job))
                except SideError as error:
                    self._drop(f"{WORKLOADS[name].title} {batch}", side, error, workers, trained)
        return trained, checked

    def _memory(self, name: str, sides: list[str], batch: int) -> None:
        """An epoch in a new process each time, as a peak is counted over the life of a process."""
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

    def _memories(self, name: str, sides: list[str], _: int) -> None:
        """A few steps of each network in a new process."""
        for other in ("lenet5-train", "mlp", "rnn", *NEXT):
            batch = min(WORKLOADS[other].sizes[-1], self.scale.drawn)
            job, costs = self._job(other, batch), dict[str, list[float | None]]()
            for side in sides:
                with ExitStack() as stack:
                    worker = self._worker(stack, side)
                    worker.ask("train", **job)
                    worker.ask("run", steps=self.scale.guard)
                    costs[side] = [worker.ask("peak")]
            title = WORKLOADS[other].title.partition(", training step")[0]
            self._add(name, f"{title}, batch {batch}", costs)

    def _sweep(self, name: str, sides: list[str], _: int) -> None:
        """Short turns for each shape."""
        scale, rounds, windows = self.scale, self.rounds, name == "sweep-windows"
        count = -(-scale.shapes // 4) if windows else scale.shapes
        self.scale = replace(scale, seconds=min(scale.seconds, 0.2))
        self.rounds = min(rounds, scale.long_rounds)
        try:
            for shape in draw_shapes(count, scale.work, windows=windows):
                self.say(f"  {shape}")
                model, rng = shape.model, np.random.default_rng(0)
                x = rng.standard_normal((2 * shape.batch, *input_shape(*model)), np.float32)
                self._save("maps", "train", x, rng.integers(10, size=len(x)))
                job = self._job_of(model, "maps", len(x), shape.batch, "sgd")
                needed = {"flop": flop("train", model, shape.batch)}
                needed |= {"bytes": traffic("train", model, shape.batch)}
                self._turns(name, str(shape), "train", job, self._of(sides), **needed)
        finally:
            self.scale, self.rounds = scale, rounds

    def _on_device(self) -> int:
        """Device memory that all processes hold, their contexts included, in bytes.

        An idle worker asks the driver. This needs no process ids, which `nvidia-smi` gets wrong in
        a container.
        """
        if not self.on_gpu:
            return 0
        for side in ("xbp", "torch"):
            if side in self.workers:
                return int(self.workers[side].ask("held")["device"])
        msg = "the driver is asked by xbp or by PyTorch, and neither takes part"
        raise SideError(msg)

    def _growth(self, name: str, sides: list[str], batch: int) -> None:
        """Bytes held after the last epoch, minus those held after the first tenth of all epochs."""
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
        """Each side in new processes, as a profiler stays in its process for good.

        Of two timelines the one with more kernels counts; see `Worker.timeline`.
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


def precision(tf32: bool) -> str:
    return "TF32" if tf32 else "float32"


def threads_label(n: int) -> str:
    return f"{n} thread" + "s" * (n > 1)
