"""What no GPU has run yet, in the order in which it should be run; `docs/gpu.md` lists it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.gpu.parts import XBP, Part, Settings, benchmark
from xbp.benchmarks.workloads import SWITCHED
from xbp.testing.workers import cores

NAME = "untried"
"""These parts together, on the command line."""
BESIDE = ("xbp", *SWITCHED, "torch-graph")
REDUCED = "(round_their or test_reduced or test_capture_precision)"


def untried(settings: Settings) -> list[Part]:
    """Whether results are right with each switch on, and then what it gains.

    Each of the first parts has a quarter of the cores.
    """
    quarter = str(max(1, cores() // 4))
    parity = [*XBP, "parity", "--backend", settings.backend, "--jobs", quarter]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--xbp-require"]

    def right(side: str, value: str, *only: str) -> Part:
        what, variable, _ = SWITCHED[side]
        given = [word for name in only for word in ("--only", name)]
        command = ("env", f"{variable}={value}", *parity, *given)
        return Part(f"parity-{side}", f"that results are numpy's: {what}", command, 60, True)

    def gains(side: str, seconds: float, *workloads: str, batches: Sequence[int] = ()) -> Part:
        sides, what = tuple(it for it in BESIDE if it == side or it not in SWITCHED), SWITCHED[side]
        return benchmark(settings, side, what[0], seconds, *workloads, sides=sides, batches=batches)

    return [
        right("xbp-whole", "all", "chain"),
        right("xbp-winograd", "all", "convolve"),
        right("xbp-attention", "blocks", "attention"),
        right("xbp-dependent", "1"),
        Part(
            *("reduced", "products in reduced precision"),
            (*tests, settings.backend, "-k", f"{settings.backend} and {REDUCED}", "tests"),
            *(90, True),
        ),
        gains("xbp-whole", 100, "lenet5-train", "mlp-128", batches=(128, 512, 2048)),
        gains("xbp-dependent", 60, "lenet5-train", "gpt", batches=(128,)),
        gains("xbp-winograd", 90, "vgg", "fastcifar"),
        gains("xbp-attention", 40, "gpt"),
    ]
