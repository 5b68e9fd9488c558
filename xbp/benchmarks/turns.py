"""Turns of the sides: they compute the same, and are timed one after the other, round by round."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

import xbp
from xbp import machine
from xbp.benchmarks.comparison import Costs, deviation, median, spread
from xbp.benchmarks.networks import DATA, MARGIN, NETWORKS, input_shape, make_model
from xbp.benchmarks.options import LARGE, QUICK, Options, Scale
from xbp.benchmarks.process import OURS, SideError, SideProcess
from xbp.benchmarks.workloads import SIDES, WORKLOADS, on_gpu
from xbp.errors import InputError
from xbp.machine import cpus
from xbp.random import permutation

Sides: TypeAlias = "dict[str, SideProcess]"
"""The processes of the sides by their names."""

RATES = {"sgd": 0.01, "adam": 0.001}
"""Learning rates."""

SAME_TF32 = 2e-3
"""Largest distance in TF32, where factors of a product are rounded by up to 5e-4 (not measured)."""

SAME_BFLOAT16 = 5e-2
"""Largest distance in bfloat16, of which PyTorch also makes the numbers between layers: on a CPU
2e-5 for LeNet-5 and the MLP. By Adam the first losses alone are compared, since a step has the size
of the rate even where a gradient is only rounding."""


class Turns:
    """Starts the sides that are installed, compares what they compute, and times them in turns.

    A context manager, which ends their processes.

    Parameters
    ----------
    options : Options
    sides : iterable of str
        Names from `SIDES`.
    say : callable
        Receives messages on progress, a line each.

    Attributes
    ----------
    rows : list of dict
        The measurements: the costs of each side, round by round, in seconds or bytes a step; for
        each side of xbp, the ratios of the other sides' costs to its own in the same round.
    versions : dict
        The versions that each side reports.
    not_run : dict
        Why a side does not take part.
    failures : list of str
        One sentence for each workload that a side could not do, or did wrongly.
    machine : dict
        The machine, and its load before the first workload.
    """

    def __init__(
        self, options: Options, sides: Iterable[str], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options, self.say = options, say
        self.found: Callable[[], None] = lambda: None  # called after each row
        self.on_gpu = self.resident = on_gpu(options.backend)  # data on the device
        self.scale = QUICK if options.quick else Scale(**(LARGE if self.on_gpu else {}))
        self.rounds = options.rounds or self.scale.rounds
        self.rows: list[dict[str, Any]] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.not_run: dict[str, str] = {}
        self.failures: list[str] = []
        self.workers: Sides = {}
        self.sides = list(sides)
        self.machine = conditions()

    def __enter__(self) -> Self:
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
            self._save("digits", part, xbp.datasets.standardize_images(x), y.astype(np.int64))
        for name in list(self.sides):
            try:
                self._start(name, stack)
            except SideError as error:
                self.not_run[name] = str(error)
                self.sides.remove(name)

    def _save(self, data: str, part: str, x: NDArray[Any], y: NDArray[Any]) -> None:
        np.save(self.folder / f"{data}_x_{part}.npy", x)
        np.save(self.folder / f"{data}_y_{part}.npy", y)

    def _crop(self) -> None:
        """Files of the middles of the digits."""
        inner = slice(MARGIN, -MARGIN)
        for part in ("train", "test"):
            x, y = (np.load(self.folder / f"digits_{name}_{part}.npy") for name in "xy")
            self._save("middles", part, x[..., inner, inner], y)

    def _draw(self, data: str, n: int) -> None:
        """Files of at least n samples."""
        path = self.folder / f"{data}_x_train.npy"
        if not path.exists() or len(np.load(path, mmap_mode="r")) < n:
            self._save(data, "train", *DATA[data].draw(np.random.default_rng(0), n))

    def _start(self, name: str, stack: ExitStack) -> None:
        side = SIDES[name]
        if find_spec(side.module) is None:
            msg = f"not installed; {side.install}" if side.install else f"there is no {side.module}"
            raise SideError(msg)
        if self.options.bfloat16 and side.file and not side.reduces:
            msg = "it has no bfloat16 here"
            raise SideError(msg)
        if side.file:
            self.workers[name] = self._worker(stack, name)
            self.versions[name] = self.workers[name].ask("versions")

    def _worker(
        self, stack: ExitStack, name: str, threads: int | None = None, **changed: Any
    ) -> SideProcess:
        options = replace(self.options, **changed)
        worker = SideProcess(name, options, threads or options.threads)
        stack.callback(worker.close)
        return worker

    def _of(self, sides: list[str]) -> Sides:
        return {side: self.workers[side] for side in sides}

    def _by_threads(self, sides: list[str]) -> Iterator[tuple[int, Sides]]:
        """SideProcesss of 1, 2, 4, … threads, and last of all threads."""
        most = self.options.threads
        threads = 1
        while threads < most and not self.on_gpu:
            with ExitStack() as stack:
                yield threads, {side: self._worker(stack, side, threads) for side in sides}
            threads *= 2
        yield most, self._of(sides)

    def _job(self, name: str, batch: int) -> dict[str, Any]:
        """The options of a worker that trains or runs the workload's network."""
        whole = WORKLOADS[name].model
        model: list[Any] = [self.scale.hidden if size == 4096 else size for size in whole]
        data = NETWORKS[model[0]].data
        drawn = DATA.get(data)
        most = self.scale.images if drawn is None else max(2 * batch, drawn.least)
        images = most if drawn else min(most, max(2 * batch, 8192))
        if images < batch:
            msg = f"the batch size must not exceed {images}, the number of images; got {batch}"
            raise InputError(msg)
        if drawn:
            self._draw(data, most)
        elif data == "middles":
            self._crop()
        if self.resident:  # whole epochs of whole batches
            images = most // batch * batch
        return self._job_of(model, data, images, batch, WORKLOADS[name].optimizer)

    def _job_of(
        self, model: list[Any], data: str, images: int, batch: int, optimizer: str
    ) -> dict[str, Any]:
        resident: dict[str, Any] = {}
        if self.resident:
            guard = min(self.scale.guard, images // batch) * batch
            resident = {"order": self._orders(images, 1), "guard_orders": self._orders(guard, 2)}
        return resident | {
            "model": model,
            "shape": input_shape(*model),
            "data": str(self.folder / data),
            "weights": self._weights(model, 0),
            "images": images,
            "batch": batch,
            "optimizer": optimizer,
            "lr": RATES[optimizer],
            "guard": self.scale.guard,
        }

    def _orders(self, n: int, epochs: int) -> str:
        """A file of the shuffles that a `Trainer` with seed 0 makes."""
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
        self, name: str, label: str, command: str, job: dict[str, Any], workers: Sides
    ) -> tuple[Sides, dict[str, Any]]:
        """Set up a workload; returns sides with the losses of the first one, and all losses."""
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
        same = SAME_TF32 if self.options.tf32 else WORKLOADS[name].same
        compared = len(expected)
        if self.options.bfloat16:
            same, compared = SAME_BFLOAT16, 1 if WORKLOADS[name].optimizer == "adam" else compared
        apart = {
            side: deviation(values[:compared], expected[:compared])
            for side, values in losses.items()
        }
        for side, value in apart.items():
            if value > same:
                got, right = (", ".join(f"{v:.7g}" for v in w) for w in (losses[side], expected))
                what = f"its losses {got} are not {right} within {same:g}: it is not timed"
                self._fail(f"{where}, {SIDES[side].title}: {what}")
        ready = {side: workers[side] for side in losses if apart[side] <= same}
        checked = {"losses": losses, "deviation": apart} if expected else {}
        return ready, checked

    def _drop(self, where: str, side: str, error: SideError, *tables: dict[str, Any]) -> None:
        """Note the failure of a side, and go on without it."""
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
        workers: Sides,
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

    def _steps(self, worker: SideProcess) -> int:
        """The number of steps that fills a turn."""
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


def conditions() -> dict[str, Any]:
    """What measurements depend on besides the libraries."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(digits=7),
        "processor": machine.processor(),
        "cpus": len(cpus()) or os.cpu_count(),
        "load": machine.load(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
