"""The parts: their commands, and their approximate times on an H200 with 16 cores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xbp.benchmarks.workloads import NEXT, SIDES, on_gpu, takes_part
from xbp.testing.workers import cores

XBP = (sys.executable, "-m", "xbp")
PEERS = ("xbp", "xbp-eager", "torch", "torch-graph")  # those that do not compile for minutes
COMPILED = ("xbp", "torch", "torch-compiled", "jax")


@dataclass(frozen=True)
class Part:
    """A command to be run.

    Attributes
    ----------
    name, what : str
    command : tuple of str
    seconds : float
        Its approximate time.
    together : bool
        Whether it may run concurrently with others.
    """

    name: str
    what: str
    command: tuple[str, ...]
    seconds: float
    together: bool = False


@dataclass(frozen=True)
class Settings:
    """Options of all commands.

    Attributes
    ----------
    backend : str
    folder : Path
        Where results go.
    stem : str
        The common beginning of file names, such as ``gpu_nvidia_h200``.
    quick : bool
        Whether all commands run in their shortest form, as a trial.
    hurried : bool
        Whether measurements have three rounds in place of seven.
    """

    backend: str
    folder: Path
    stem: str
    quick: bool = False
    hurried: bool = False

    def file(self, part: str, ending: str) -> Path:
        """A file of a part's results."""
        return self.folder / f"{self.stem}_{part}.{ending}"

    def log(self, part: str) -> Path:
        """The log of a part's output."""
        return self.folder / f"{self.stem}_logs" / f"{part}.txt"


def parts(settings: Settings) -> list[Part]:
    """All parts of a backend, in the order in which they run."""
    backend, quick = settings.backend, settings.quick
    third = str(max(1, cores() // 3))
    workers = ["-n", third] * bool(find_spec("xdist"))
    which = ["tests/backend/test_backend.py"] if quick else []
    required = ["--xbp-require", backend, "-k", backend]
    xbp = [*XBP, "parity", "--backend", backend, "--jobs", third]
    xbp += ["--only", "Linear("] if quick else []
    for ending in ("json", "md"):
        option = {"json": "--json", "md": "--markdown"}[ending]
        xbp += [option, str(settings.file("parity", ending))]
    train = [*XBP, "train", "lenet5", "--backend", backend, "--output"]
    train += [str(settings.log("training").with_suffix(""))]
    train += ["--limit", "512", "--epochs", "1"] if quick else []
    roofline = [sys.executable, "-m", "benchmarks.gpu", "roofline"]
    roofline += ["--output", str(settings.folder)]
    tests = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *required, *workers]

    def together(name: str, what: str, command: list[str], seconds: float) -> Part:
        return Part(name, what, tuple(command), seconds, together=True)

    def bench(name: str, what: str, seconds: float, *workloads: str, **more: Any) -> Part:
        return benchmark(settings, name, what, seconds, *workloads, **more)

    step = "lenet5-train"
    found = [
        together("info", "what is installed, and what is wrong with it", [*XBP, "info"], 10),
        together(
            "compile",
            "the kernels of the benchmarks, compiled ahead and kept",
            [sys.executable, "-m", "benchmarks.gpu.compile"],
            15,
        ),
        together("parity", "that every result is numpy's", xbp, 90),
        together("tests", "the tests on this backend", [*tests, *which], 150),
        together("training", "a training of LeNet-5", train, 20),
        bench("step", "LeNet-5's step, batch 128 and 32", 60, step, batches=(128, 32)),
        bench("kernels", "kernels and copies of a step", 40, "kernels"),
        bench("ten-epochs", "ten epochs of MNIST", 40, "ten-epochs", batches=(2048,)),
        bench("mlp", "the step of an MLP", 40, "mlp", "mlp-products"),
        bench("rnn", "the step of an RNN", 40, "rnn"),
        bench("seeds", "final errors beside numpy's", 120, "seeds", sides=None),
        Part("roofline", "what each launch of a step must take, and takes", tuple(roofline), 60),
        bench("sizes", "LeNet-5's step, other batches", 90, step, batches=(512, 2048, 64)),
        bench("growth", "memory over 50 epochs", 30, "growth"),
        bench("infer", "LeNet-5's inference", 40, "lenet5-infer"),
        bench("next", "the steps of larger networks", 240, *NEXT),
        bench("floor", "what the machine reaches", 40, "sgemm", "copy"),
        bench("launch", "kernels that do nothing", 30, "launch"),
        bench("memory", "peak memory", 60, "memory"),
        bench("tf32", "in TF32", 80, step, "mlp", batches=(128,), tf32=True),
        bench("bfloat16", "in bfloat16", 150, *WIDE, bfloat16=True),
        bench("accuracy", "time to 99 % accuracy", 180, "accuracy", "two-epochs", "one-epoch"),
        bench("compiled", "beside compilers", 240, step, batches=(128,), sides=COMPILED),
    ]
    return [part for part in found if on_gpu(backend) or part.name not in GPU_ONLY]


GPU_ONLY = ("compile", "roofline", "kernels", "launch", "tf32", "bfloat16")
WIDE = ("mlp", "vgg", "resnet20", "gpt")
"""Workloads with large products."""


def benchmark(
    settings: Settings,
    name: str,
    what: str,
    seconds: float,
    *workloads: str,
    sides: Sequence[str] | None = PEERS,
    batches: Sequence[int] = (),
    tf32: bool = False,
    bfloat16: bool = False,
) -> Part:
    """`xbp bench` of some workloads, with the sides that are installed."""
    command = [*XBP, "bench", "--backend", settings.backend, *workloads]
    for side in sides or ():
        here = find_spec(SIDES[side].module) and (
            SIDES[side].where == "named" or takes_part(SIDES[side].where, settings.backend)
        )
        command += ["--side", side] * bool(here)
    for size in dict.fromkeys(min(size, 256) for size in batches) if settings.quick else batches:
        command += ["--batch", str(size)]
    command += ["--rounds", "3"] * (settings.hurried and not settings.quick)
    command += ["--quick"] * settings.quick + ["--tf32"] * tf32
    command += ["--bfloat16"] * bfloat16
    command += ["--json", str(settings.file(name, "json"))]
    command += ["--markdown", str(settings.file(name, "md"))]
    return Part(name, what, tuple(command), seconds)
