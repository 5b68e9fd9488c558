"""``python -m benchmarks.gpu roofline``; see the docstring of the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import benchmarks.gpu.roofline
from benchmarks.gpu.facts import file_stem
from benchmarks.gpu.roofline.device import H200, Device, Usage, device_of, usages
from benchmarks.gpu.roofline.dry import GEMM, launches_of
from benchmarks.gpu.roofline.rows import rows_of, table
from benchmarks.gpu.roofline.timeline import timeline
from xbp.accelerators.cuda.ahead import Program
from xbp.backend import why_unavailable
from xbp.benchmarks.workloads import WORKLOADS, flop
from xbp.machine import facts_of, surroundings
from xbp.training.files import write_text

STEPS = [name for name, it in WORKLOADS.items() if it.model and it.kind == "train"]
FIRST = ("lenet5-train", "vgg", "resnet20", "lstm", "gpt")
"""What is shown by default: a workload of each kind."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu roofline",
        description=benchmarks.gpu.roofline.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(STEPS))
    parser.add_argument("--batch", type=int, help="by default the workload's first")
    parser.add_argument(
        "--compile", action="store_true", help="registers and shared memory by nvcc"
    )
    parser.add_argument("--dry", action="store_true", help="no times, even on a GPU")
    parser.add_argument("--output", type=Path, help="a folder; by default it is only printed")
    given = parser.parse_args(arguments)
    for name in given.workloads:
        if name not in STEPS:
            parser.error(f"there is no training step {name!r}; choose from {', '.join(STEPS)}")
    if given.batch is not None and given.batch < 1:
        parser.error(f"--batch must be 1 or more, got {given.batch}")
    dry = given.dry or why_unavailable("cupy") is not None
    backend = "numpy" if dry else "cupy"
    facts, device = facts_of(backend) | surroundings(), H200
    if not dry:
        import cupy

        device = device_of(cupy)
    said = "; ".join(f"{key}: {value}" for key, value in facts.items())
    pages = ["# What launches compute and move\n\n`python -m benchmarks.gpu roofline`\n\n" + said]
    failed = False
    for name in given.workloads or FIRST:
        try:
            pages.append(page(name, given.batch or WORKLOADS[name].sizes[0], device, given, dry))
        except Exception as error:  # the other workloads go on
            failed = True
            pages.append(f"## {WORKLOADS[name].title}\n\n{type(error).__name__}: {error}")
        print(pages[-1], flush=True)
        if given.output:
            given.output.mkdir(parents=True, exist_ok=True)
            path = given.output / f"{file_stem(backend, facts)}_roofline.md"
            write_text(path, "\n\n".join(pages) + "\n")
    return int(failed)


def page(name: str, batch: int, device: Device, given: argparse.Namespace, dry: bool) -> str:
    """The table of a workload, and its sums in words."""
    launches = launches_of(name, batch, device.architecture)
    programs: dict[Program, None] = {
        (it.file, tuple(it.macros.items())): None for it in launches if it.name != GEMM
    }
    used: dict[tuple[Program, str], Usage] = {}
    if given.compile:
        used = usages(programs, device.architecture)
    timed = None if dry or find_spec("torch") is None else timeline(name, batch)
    step = timed.step if timed else None
    rows = rows_of(launches, used, timed)
    least = sum(row.count * row.least(device)[0] for row in rows)
    work = flop("train", WORKLOADS[name].model, batch)
    said = (
        f"{len(launches)} launches of kernels and products known here; {work / 1e9:.3g} GFLOP, at "
        f"the peak of {device.name} {1e6 * work / device.flop:.3g} µs; the sum of the least times "
        f"of launches {1e6 * least:.4g} µs"
    )
    if step is not None:
        said += f"; a step takes {1e6 * step:.4g} µs, {work / step / 1e12:.3g} TFLOP/s"
    title = f"## {WORKLOADS[name].title}, batch {batch}"
    return "\n".join([title, "", said + ".", "", *table(rows, device, step)])
