"""The times of kernels in replays of a recorded step, by PyTorch's profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, TypeAlias

from benchmarks.gpu.roofline.dry import data_of, trainer_of

Key: TypeAlias = "tuple[str, tuple[int, int], int]"
"""Name, blocks and threads of a kernel."""
EPOCHS = 20
COPIES = {"gpu_memcpy", "gpu_memset"}


class Timed(NamedTuple):
    """A kernel in a step: how often, and its mean time in seconds."""

    count: float
    seconds: float


class Timeline(NamedTuple):
    """The kernels of a step, and the seconds from the end of a step to that of the next."""

    kernels: dict[Key, Timed]
    step: float


def timeline(workload: str, batch: int) -> Timeline:
    """The kernels of a workload's recorded step on the current GPU.

    CUPTI sees the kernels of every library in this process. With some versions of PyTorch it
    misses graphs captured before its first use (pytorch/pytorch#100441), so that it listens once
    before.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    import xbp

    with profile(activities=[ProfilerActivity.CUDA]):
        torch.cuda.synchronize()
    xbp.set_backend("cupy")
    trainer, (x, y) = trainer_of(workload), map(xbp.asarray, data_of(workload, batch))
    fitting: dict[str, Any] = {"batch_size": batch, "verbose": False}
    trainer.fit(x, y, epochs=2, **fitting)  # compiles, records
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        trainer.fit(x, y, epochs=EPOCHS, **fitting)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="xbp.") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return of_events(events, first="take")


def of_events(events: Iterable[dict[str, Any]], first: str) -> Timeline:
    """The kernels of steps in a trace in Chrome's format; each step begins with the kernel `first`.

    The last step is left out, as its end is not seen, and the longer half of the others, as a step
    at the end of an epoch waits for the host.

    Raises
    ------
    RuntimeError
        There are no two steps.
    """
    kinds = {"kernel", *COPIES}
    seen = sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])
    begins = [i for i, event in enumerate(seen) if event["name"] == first]
    if len(begins) < 2:
        msg = "the profiler saw no two recorded steps"
        raise RuntimeError(msg)
    steps = [seen[a:b] for a, b in pairwise(begins)]
    done = [seen[begin]["ts"] for begin in begins]
    spans = [b - a for a, b in pairwise(done)]
    middle = sorted(spans)[(len(spans) - 1) // 2]
    kept = [step for step, span in zip(steps, spans, strict=True) if span <= middle]
    times: dict[Key, list[float]] = {}
    for event in (event for step in kept for event in step):
        given = event.get("args", {})
        grid, block = given.get("grid", (0, 0, 0)), given.get("block", (0, 0, 0))
        key = (event["name"], (grid[0], grid[1]), block[0])
        times.setdefault(key, []).append(1e-6 * event["dur"])
    kernels = {key: Timed(len(each) / len(kept), mean(each)) for key, each in times.items()}
    return Timeline(kernels, 1e-6 * mean(span for span in spans if span <= middle))
