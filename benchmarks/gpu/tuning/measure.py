"""Checks and times of tiles, on a GPU or in the emulation."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.timing import replayed, replayed_by_torch
from benchmarks.gpu.tuning.choosing import forced
from benchmarks.gpu.tuning.row import Case, Draw, Row
from benchmarks.gpu.tuning.table import Table, timed
from xbp.accelerators.cuda import launch
from xbp.accelerators.cuda.ahead import Program, programs

TESTS = Path(__file__).parents[3] / "tests"
PEER = "PyTorch"
IDLE = 2.0
"""As how many tiles one counts that was no faster than the best before."""
EVERY = 2.0
"""Seconds from one writing of the table to the next."""


class Device:
    """What computes: `draw` makes an array, `time` the microseconds of a call or None."""

    def __init__(self, draw: Draw, time: Callable[[Any], float | None], peer: bool) -> None:
        self.draw, self.time, self.peer = draw, time, peer


@contextlib.contextmanager
def emulation() -> Iterator[Device]:
    """The emulation of the tests, on numpy arrays: no times."""
    sys.path.insert(0, str(TESTS))
    try:
        from accelerators.emulation.machine import Emulation
    finally:
        sys.path.remove(str(TESTS))
    before = dict(launch.machines)
    launch.machines["numpy"] = Emulation(order=3)
    try:
        yield Device(drawing(np), lambda call: None, peer=False)
    finally:
        launch.machines.clear()
        launch.machines.update(before)


@contextlib.contextmanager
def gpu() -> Iterator[Device]:
    """The current GPU, with PyTorch as a peer, in float32 without TF32."""
    import cupy

    peer = find_spec("torch") is not None
    if peer:
        import torch

        peer = torch.cuda.is_available()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    yield Device(drawing(cupy), replayed, peer)


def drawing(xp: Any) -> Draw:
    """Random arrays of a library."""
    rng = np.random.default_rng(0)
    return lambda *sizes: xp.asarray(rng.standard_normal(sizes, "f4"))


def zeros(*sizes: int) -> Any:
    """An array that takes no memory until it is written to."""
    return np.zeros(sizes, "f4")


def to_compile(rows: Iterable[Row], table: Table, most: int = sys.maxsize) -> list[Program]:
    """The programs of tiles that remain to be measured, those of the rules first."""
    wanted: dict[Program, int] = {}
    for row in rows:
        case = row.case(zeros)
        for rank, label in enumerate(table.left(row)[:most]):
            with forced(row.kernel, row.tiles[label], row.decision):
                for program in programs(case.call, architecture=""):
                    wanted[program] = min(rank, wanted.get(program, rank))
    return sorted(wanted, key=wanted.__getitem__)


def compile_one(program: Program) -> str:
    """Compile into CuPy's cache on disk; what went wrong."""
    file, macros = program
    machine: Any = launch.machine_for("cupy")
    try:
        machine.module(file, dict(macros)).compile()
    except Exception as error:  # a tile too many is no reason to stop
        return f"{file}: {last_line(error)}"
    return ""


def compile_all(wanted: Sequence[Program], seconds: float) -> tuple[int, list[str]]:
    """Compile in processes, as NVRTC may compile one program of a process at a time.

    Returns the number of programs compiled in time, and what went wrong. The others are compiled
    when they are needed.
    """
    workers = max(1, (os.cpu_count() or 2) - 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(compile_one, program) for program in wanted]
        done, _ = wait(futures, seconds)
        pool.shutdown(wait=False, cancel_futures=True)
    said = [future.result() for future in done]
    return len(said), [failed for failed in said if failed]


def measure(
    rows: Sequence[Row], table: Table, device: Device, end: float, most: int = sys.maxsize
) -> None:
    """Check and time one tile after the other, until `end`, at most so many of each row.

    The next one is of the row with the most to gain: its share of the steps, divided by the number
    of its tiles that were tried, where those count more that were no faster than the best.
    """
    cases: dict[str, Case] = {}
    left = {row.name: iter(todo(row, table, device)[:most]) for row in rows}
    tried, written = dict.fromkeys(left, 1.0), time.perf_counter()
    going = list(rows)
    while going:
        row = max(going, key=lambda row: row.share / tried[row.name])
        label = next(left[row.name], None)
        if label is None or time.perf_counter() >= end:
            going.remove(row)
            continue
        entry = table.row(row)
        before = min(timed(entry).values(), default=math.inf)
        entry["failed"].pop(label, None)
        try:
            if row.name not in cases:
                cases[row.name] = row.case(device.draw)
            case = cases[row.name]
            if label == PEER:
                entry["peer"] = replayed_by_torch(case.peer())
            else:
                with forced(row.kernel, row.tiles[label], row.decision):
                    entry["tiles"][label] = checked(case, device)
        except Exception as error:  # the others go on
            entry["failed"][label] = last_line(error)
            print(f"{row.name}, {label}: {last_line(error)}", flush=True)
        idle = min(timed(entry).values(), default=math.inf) >= before
        tried[row.name] += IDLE if idle and label != PEER else 1
        if time.perf_counter() > written + EVERY:
            table.write()
            written = time.perf_counter()
    table.write()


def todo(row: Row, table: Table, device: Device) -> list[str]:
    """The labels of what remains to be measured of a row: the rule's tile, PyTorch, the others."""
    left = table.left(row)
    missing = device.peer and row.peer and table.row(row)["peer"] is None
    return [*left[:1], *[PEER] * missing, *left[1:]]


def checked(case: Case, device: Device) -> float | None:
    """The time of a call whose result is right."""
    error = case.error(case.call())
    if not error <= 1:
        msg = f"wrong by {error:.3g} times what rounding allows"
        raise ArithmeticError(msg)
    return device.time(case.call)


def last_line(error: Exception) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[-1][:150]}"
